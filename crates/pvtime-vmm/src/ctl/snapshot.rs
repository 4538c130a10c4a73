//! `pvtime ctl SOCKET snapshot`.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::api::answers::{Saving, SnapshotPhase};
use crate::api::client::Client;
use crate::api::requests::CreateSnapshot;
use crate::cli;

/// How often progress is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long it is from one line of progress to the next, and how long the first takes to come.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Saves the VM, and shows how far that is on standard error.
pub fn save(client: &Client, folder: &Path, json: bool) -> Result<()> {
    let create = CreateSnapshot {
        snapshot_path: cli::absolute(folder)?,
    };
    let mut display = match (json, io::stderr().is_terminal()) {
        (true, _) => Display::Nothing,
        (false, true) => Display::Bar(bar()),
        (false, false) => Display::Lines(Lines::new()),
    };
    watch(client, &create, &mut display)?;
    if json {
        let saving: Saving = client.get("/snapshot")?;
        super::print(&serde_json::to_string(&saving)?)?;
    }
    Ok(())
}

/// Sends the request on a thread of its own, since its answer comes at the snapshot's end, and shows
/// progress until it does.
fn watch(client: &Client, create: &CreateSnapshot, display: &mut Display) -> Result<()> {
    let (answer, answered) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            // The other end waits for it.
            let _ = answer.send(client.change("PUT", "/snapshot/create", create));
        });
        loop {
            match answered.recv_timeout(LOOK_EVERY) {
                Ok(answer) => {
                    display.end();
                    return Ok(answer?);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the thread sends its answer"),
            }
            // Where this cannot be heard, the other answer tells why.
            if let Ok(saving) = client.get::<Saving>("/snapshot")
                && is_of(&saving, create)
            {
                display.show(&saving);
            }
        }
    })
}

/// Whether this is the snapshot that was asked for, and not the one before it.
fn is_of(saving: &Saving, create: &CreateSnapshot) -> bool {
    saving.phase == SnapshotPhase::Saving
        && saving.memory_bytes > 0
        && saving.snapshot_path.as_ref() == Some(&create.snapshot_path)
}

/// Where progress goes.
enum Display {
    /// Onto a terminal.
    Bar(ProgressBar),
    /// Into a file, a log or a pipe.
    Lines(Lines),
    Nothing,
}

impl Display {
    fn show(&mut self, saving: &Saving) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(saving.memory_bytes);
                bar.set_position(saving.done_bytes);
            }
            Self::Lines(lines) => {
                if let Some(line) = lines.next(Instant::now(), saving) {
                    eprintln!("pvtime: {line}");
                }
            }
            Self::Nothing => {}
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("saving {bar:30} {binary_bytes}/{binary_total_bytes}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Lines of progress, of which a short snapshot has none.
struct Lines {
    last: Instant,
    done_bytes: u64,
}

impl Lines {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            done_bytes: 0,
        }
    }

    /// The line that is due now, if there is anything new to say.
    fn next(&mut self, now: Instant, saving: &Saving) -> Option<String> {
        let is_due = now.saturating_duration_since(self.last) >= LINE_EVERY;
        if !is_due || saving.done_bytes <= self.done_bytes {
            return None;
        }
        *self = Self {
            last: now,
            done_bytes: saving.done_bytes,
        };
        Some(format!(
            "saving: {} of {} MiB",
            saving.done_bytes >> 20,
            saving.memory_bytes >> 20
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saving(phase: SnapshotPhase, done_mib: u64) -> Saving {
        Saving {
            phase,
            snapshot_path: Some("/a".into()),
            memory_bytes: 64 << 20,
            done_bytes: done_mib << 20,
        }
    }

    #[test]
    fn lines_come_once_a_second_where_there_is_anything_new() {
        let mut lines = Lines::new();
        let start = lines.last;
        let mut at = |ms, done_mib| {
            let now = start + Duration::from_millis(ms);
            lines.next(now, &saving(SnapshotPhase::Saving, done_mib))
        };
        let line = |done_mib| Some(format!("saving: {done_mib} of 64 MiB"));
        assert_eq!(at(0, 2), None);
        assert_eq!(at(999, 8), None);
        assert_eq!(at(1_000, 10), line(10));
        assert_eq!(at(1_900, 20), None);
        assert_eq!(at(2_100, 10), None, "nothing new");
        assert_eq!(at(2_200, 30), line(30));
        assert_eq!(at(3_200, 64), line(64));
    }

    #[test]
    fn progress_of_another_snapshot_is_not_shown() {
        let create = |path: &str| CreateSnapshot {
            snapshot_path: path.into(),
        };
        let under_way = saving(SnapshotPhase::Saving, 2);
        assert!(is_of(&under_way, &create("/a")));
        assert!(!is_of(&under_way, &create("/b")));
        for phase in [
            SnapshotPhase::Idle,
            SnapshotPhase::Saved,
            SnapshotPhase::Failed,
        ] {
            assert!(!is_of(&saving(phase, 64), &create("/a")), "{phase:?}");
        }
        let begun = Saving {
            memory_bytes: 0,
            ..saving(SnapshotPhase::Saving, 0)
        };
        assert!(!is_of(&begun, &create("/a")), "a bar without a length");
    }
}
