//! `pvtime ctl SOCKET events`.

use std::io::{self, ErrorKind};
use std::process::exit;
use std::thread::Builder;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use pvtime_kvm::record::{GapRecord, Record};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::api::answers::Events;
use crate::api::client::{Client, Error};
use crate::table::milliseconds;

/// How long the VM is asked to wait for an event; then it is asked again.
const WAIT: Duration = Duration::from_secs(30);

/// Shows the records after number `after`; with `follow` those to come too, until the VM ends or
/// somebody interrupts.
pub fn show(client: &Client, after: u64, follow: bool, json: bool) -> Result<()> {
    if follow {
        exit_when_interrupted()?;
        follow_from(client, after, json)
    } else {
        show_after(client, after, json).map(drop)
    }
}

/// Shows the records after number `after` and returns the number of the last.
pub fn show_after(client: &Client, after: u64, json: bool) -> Result<u64> {
    let mut printer = Printer::new(after, json);
    loop {
        let page = client.get(&format!("/time/events?after={}", printer.after))?;
        if printer.print(&page)?.is_up_to_date {
            return Ok(printer.after);
        }
    }
}

fn follow_from(client: &Client, after: u64, json: bool) -> Result<()> {
    let mut printer = Printer::new(after, json);
    let mut has_answered = false;
    loop {
        let target = format!(
            "/time/events?after={}&wait_ms={}",
            printer.after,
            WAIT.as_millis()
        );
        let page: Events = match client.get_after(&target, WAIT) {
            // A VMM that ends in order takes its socket with it.
            Err(Error::Unreachable { source, .. })
                if has_answered && source.kind() == ErrorKind::NotFound =>
            {
                return Ok(());
            }
            page => page?,
        };
        has_answered = true;
        if printer.print(&page)?.is_up_to_date && page.ended {
            return Ok(());
        }
    }
}

/// Ends this process, with success, between two lines of its output.
fn exit_when_interrupted() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot catch signals")?;
    Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                let _between_lines = io::stdout().lock();
                exit(0);
            }
        })
        .context("cannot start a thread for signals")?;
    Ok(())
}

/// Prints records as they come.
struct Printer {
    /// Number of the last record that was printed, or that was to be left out.
    after: u64,
    json: bool,
    has_begun: bool,
}

struct Printed {
    /// There is no record beyond.
    is_up_to_date: bool,
}

impl Printer {
    fn new(after: u64, json: bool) -> Self {
        Self {
            after,
            json,
            has_begun: false,
        }
    }

    fn print(&mut self, page: &Events) -> Result<Printed> {
        for record in &page.events {
            if let Some(gone) = gone(self.after, record.sequence) {
                eprintln!("pvtime: {gone}");
            }
            if !self.json && !self.has_begun {
                super::print(HEAD)?;
            }
            self.has_begun = true;
            super::print(&if self.json {
                serde_json::to_string(record)?
            } else {
                line(record)
            })?;
            self.after = record.sequence;
        }
        let is_up_to_date = page.events.is_empty() || self.after >= page.last;
        Ok(Printed { is_up_to_date })
    }
}

/// What is missing between two records.
fn gone(after: u64, next: u64) -> Option<String> {
    let first = after + 1;
    (next > first).then(|| {
        format!(
            "the records {first} to {} are gone: a VMM keeps the last ones only",
            next - 1
        )
    })
}

const HEAD: &str = "     #  time                      event          cause         policy           gap ms         \
     ± ms       hidden ms       shown ticks";

fn line(record: &Record) -> String {
    let time = UNIX_EPOCH + Duration::from_nanos(record.wall_ns);
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let line = format!(
        "{:>6}  {}  {:<13}  {:<12}  {:<7}  {:>14}  {:>11}  {:>14}  {:>16}",
        record.sequence,
        humantime::format_rfc3339_millis(time),
        record.event,
        text(&record.cause),
        text(&record.policy),
        gap(record.gap.as_ref()),
        error(record.gap.as_ref()),
        milliseconds(record.hidden_ns),
        record
            .shown_ticks
            .map_or_else(|| "-".into(), |ticks| ticks.to_string()),
    );
    let clamped = if record.clamped { "  clamped" } else { "" };
    line + clamped + &moved(record).unwrap_or_default()
}

/// What a change of the counter's frequency did.
fn moved(record: &Record) -> Option<String> {
    let Record {
        before,
        after,
        live,
        timers,
        ..
    } = record;
    let live = live.as_ref()?;
    if before.frequency_hz == after.frequency_hz {
        return None;
    }
    let timers = timers.unwrap_or_default();
    let (lost, off) = (timers.unreachable, timers.lost_stream_bits);
    let lost = (lost > 0).then(|| format!(", {lost} timers too far off for it"));
    let off = (off != 0).then(|| format!(", event stream off by {off} bits"));
    Some(format!(
        "  {} to {} Hz, {} PV ticks from the ideal{}{}",
        before.frequency_hz,
        after.frequency_hz,
        live.distance,
        lost.unwrap_or_default(),
        off.unwrap_or_default()
    ))
}

fn gap(gap: Option<&GapRecord>) -> String {
    gap.map_or_else(|| "-".into(), |gap| milliseconds(gap.ns))
}

fn error(gap: Option<&GapRecord>) -> String {
    match gap {
        None => "-".into(),
        Some(gap) => gap
            .error_ns
            .map_or_else(|| "unbounded".into(), milliseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvtime_kvm::record::{LiveRecord, TimersRecord};

    use crate::api::fake::record;

    fn words(line: &str) -> Vec<&str> {
        line.split_whitespace().collect()
    }

    #[test]
    fn a_line_has_all_that_was_done() {
        let start = record("start");
        assert_eq!(
            words(&line(&start))[1..],
            [
                "2026-09-10T00:26:40.123Z",
                "start",
                "-",
                "-",
                "-",
                "-",
                "0.000",
                "-"
            ]
        );
        let mut resume = record("resume");
        resume.sequence = 3;
        assert_eq!(
            words(&line(&resume)),
            [
                "3",
                "2026-09-10T00:26:40.123Z",
                "resume",
                "operator",
                "freeze",
                "3000.000",
                "0.002",
                "3000.000",
                "0"
            ]
        );
        resume.clamped = true;
        resume.gap.as_mut().unwrap().error_ns = None;
        assert!(line(&resume).ends_with("0  clamped"));
        assert_eq!(words(&line(&resume))[6], "unbounded");
    }

    #[test]
    fn a_change_of_frequency_says_how_near_it_came() {
        let mut resume = record("resume");
        resume.live = Some(LiveRecord {
            pv_before: 2_000_000_000,
            pv_after: 2_000_000_000,
            distance: "-0.250000".into(),
            hold_ticks: 0,
        });
        assert!(line(&resume).ends_with('0'), "nothing changed");
        resume.after.frequency_hz = 100_000_000;
        let end = "  25000000 to 100000000 Hz, -0.250000 PV ticks from the ideal";
        assert!(line(&resume).ends_with(end), "{}", line(&resume));
        resume.timers = Some(TimersRecord {
            unreachable: 2,
            lost_stream_bits: -3,
        });
        let end = format!("{end}, 2 timers too far off for it, event stream off by -3 bits");
        assert!(line(&resume).ends_with(&end), "l13: {}", line(&resume));
    }

    #[test]
    fn the_head_stands_over_its_columns() {
        let columns = |line: &str| line.chars().count();
        assert_eq!(columns(HEAD), columns(&line(&record("resume"))));
    }

    #[test]
    fn missing_records_are_named() {
        assert_eq!(gone(0, 1), None);
        assert_eq!(gone(7, 8), None);
        assert!(
            gone(1, 5)
                .unwrap()
                .starts_with("the records 2 to 4 are gone")
        );
    }
}
