//! What the lab is doing, on standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// From one movement of the spinner to the next.
const TICK: Duration = Duration::from_millis(120);

/// Shows one step at a time: a spinner on a terminal, a line per step elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    scope: String,
    start: Instant,
}

impl Progress {
    /// Begins; `scope` stands before every line.
    #[must_use]
    pub fn new(scope: &str) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix}: {msg} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner()
                .with_style(style)
                .with_prefix(scope.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            bar,
            scope: scope.to_owned(),
            start: Instant::now(),
        }
    }

    /// Time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Shows nothing until the next step.
    pub fn pause(&self) {
        if let Some(bar) = &self.bar {
            bar.disable_steady_tick();
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
    }

    /// Names the step that begins now.
    pub fn step(&self, name: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(TICK);
                bar.set_message(name.to_owned());
            }
            None => self.line(name),
        }
    }

    /// Leaves a line to be read later.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("{}: {text}", self.scope)),
            None => self.line(text),
        }
    }

    fn line(&self, text: &str) {
        eprintln!(
            "[{:6.1} s] {}: {text}",
            self.start.elapsed().as_secs_f64(),
            self.scope
        );
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
