//! A sleep of the host under Debian's own system, whose logind suspends it by its sleep key.

use super::watch::ms;
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, WARNINGS, host_spec_with_debian};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::shell::{Printed, Shell};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "suspend-coordinated",
    about: "a stock Debian guest suspends itself by its sleep key, and its host sleeps for a minute",
    must_fail: None,
    play,
};

const SECONDS: u32 = 60;
/// Longest time for its kernel to say that it has resumed.
const RESUME_LIMIT: Duration = Duration::from_secs(30);
/// On a machine that may be busy.
const OPTIONS: &[&str] = &["--suspend-guest", "on", "--suspend-limit", "25000"];

/// Until logind has found the key.
const AWAIT_LOGIND: &str = "until journalctl --output cat --unit systemd-logind | \
                            grep '^Watching system buttons'; do sleep 1; done";
/// The kernel's own account of its clocks: `CLOCK_MONOTONIC`, and what the others are ahead of it, on the
/// first CPU.
const CLOCKS: &str = "grep --max-count 7 --regexp '^now at' --regexp get_time --regexp offset \
                      /proc/timer_list";
/// The guest's log of what was done with the key.
const LOG: &str = "journalctl --boot --output short-monotonic | grep --extended-regexp \
                   'logind.*(key|suspend)|systemd-sleep|PM: suspend'";
/// Has the kernel's words on its console, too: a port that is suspended still loses what is typed.
const TALK: &str = "echo 7 > /proc/sys/kernel/printk; cat /proc/sys/kernel/printk";
/// Who suspends there.
const SYSTEM: &str = "cat /proc/1/comm; grep PRETTY_NAME /etc/os-release";

/// Lines of that log.
const PRESSED: &str = "Suspend key pressed";
const SUSPENDS_NOW: &str = "PM: suspend entry (deep)";
const RESUMED: &str = "PM: suspend exit";

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    guest: Option<(Guest, Shell)>,
    seen: Option<Seen>,
}

/// The guest's clocks, read between two moments of the lab's.
struct Look {
    asked: Instant,
    answered: Instant,
    clocks: Clocks,
}

/// In ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Clocks {
    monotonic: u64,
    realtime: u64,
    boottime: u64,
}

/// What was seen over the sleep.
struct Seen {
    system: String,
    before: Look,
    after: Look,
    /// What the host was asleep for.
    slept_ns: u64,
    resume: Adjustment,
    log: Vec<String>,
    /// Records that hide anything, or that tell of a sleep of the host.
    hidden_sleeps: usize,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: |scene, stage| {
                    let spec = host_spec_with_debian("host", stage.assets, &stage.logs)?;
                    scene.host = Some(stage.boot(&spec)?);
                    Ok(())
                },
                checks: no_checks,
            },
            Step {
                name: "boot Debian in a guest",
                act: start,
                checks: no_checks,
            },
            Step {
                name: "put the host to sleep for a minute",
                act: suspend,
                checks: |scene| scene.seen.as_ref().map_or(Vec::new(), Seen::checks),
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn start(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let spec = GuestSpec {
        image: GuestImage::Debian,
        cpus: 2,
        memory_mib: 512,
        vmm_options: OPTIONS,
        // What its kernel and its services say is in its journal.
        kernel_options: WARNINGS,
        ..GuestSpec::new("debian")
    };
    let guest = Guest::start(&spec, host)?;
    let mut shell = Shell::await_prompt(&guest, host)?;
    shell.run(host, AWAIT_LOGIND, "Watching system buttons")?;
    scene.guest = Some((guest, shell));
    Ok(())
}

fn suspend(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let (guest, mut shell) = scene.guest.take().context("no guest")?;
    let mut system = shell.run(host, SYSTEM, "systemd")?.lines;
    system.retain(|line| line == "systemd" || line.starts_with("PRETTY_NAME="));
    shell.run(host, TALK, "7")?;
    let before = look(&mut shell, host)?;
    guest.prepare_suspend(host)?;
    let slept_ns = host.sleep(SECONDS)?.boottime_ns;
    let resume = guest.finish_sleep(host)?;
    let console = host.file(&format!("{}-console.log", guest.name()));
    host.wait_for_text(&console, RESUMED, RESUME_LIMIT)?;
    let after = look(&mut shell, host)?;
    let records = guest.adjustments(host)?;
    let hidden =
        |record: &&serde_json::Value| record["hidden_ns"] != 0 || record["event"] == "host sleep";
    scene.seen = Some(Seen {
        system: system.join(" "),
        before,
        after,
        slept_ns,
        resume,
        log: shell.run(host, LOG, "[")?.lines,
        hidden_sleeps: records.iter().filter(hidden).count(),
    });
    stage.keep_records(&guest, host)?;
    guest.stop(host)
}

fn look(shell: &mut Shell, host: &mut Host) -> Result<Look> {
    let printed = shell.run(host, CLOCKS, "now at")?;
    Ok(Look {
        asked: printed.asked,
        answered: printed.began,
        clocks: Clocks::parse(&printed)?,
    })
}

impl Clocks {
    fn parse(printed: &Printed) -> Result<Self> {
        Self::of_lines(&printed.lines)
            .with_context(|| format!("cannot understand the guest's clocks: {:?}", printed.lines))
    }

    fn of_lines(lines: &[String]) -> Option<Self> {
        let ns = |line: &str| line.strip_suffix(" nsecs")?.trim().parse::<u64>().ok();
        let now = lines.iter().find_map(|line| line.strip_prefix("now at "));
        let monotonic = ns(now?)?;
        let clock = |name: &str| {
            let mut lines = lines.iter();
            lines.find(|line| line.ends_with(name) && line.starts_with(".get_time:"))?;
            let offset = ns(lines.next()?.strip_prefix(".offset:")?)?;
            monotonic.checked_add(offset)
        };
        Some(Self {
            monotonic,
            realtime: clock(" ktime_get_real")?,
            boottime: clock(" ktime_get_boottime")?,
        })
    }
}

impl Seen {
    /// What a clock of the guest's gained from one look to the other.
    fn gained_ns(&self, clock: fn(&Clocks) -> u64) -> u64 {
        clock(&self.after.clocks).saturating_sub(clock(&self.before.clocks))
    }

    /// What the guest took itself to be asleep for.
    fn asleep_ns(&self) -> u64 {
        let boottime_ns = self.gained_ns(|it| it.boottime);
        boottime_ns.saturating_sub(self.gained_ns(|it| it.monotonic))
    }

    /// How far what a clock gained, and what it is known to have missed, are from what passed by the
    /// lab's clock, which was read before and after each look.
    fn off_ms(&self, clock: fn(&Clocks) -> u64, missed_ns: u64) -> f64 {
        let least = self.after.asked - self.before.answered;
        let most = self.after.answered - self.before.asked;
        let [least, most] =
            [least, most].map(|it| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX));
        let all_ns = self.gained_ns(clock).saturating_add(missed_ns);
        ms(least
            .saturating_sub(all_ns)
            .max(all_ns.saturating_sub(most)))
    }

    fn lines_with(&self, words: &str) -> f64 {
        let lines = self.log.iter().filter(|line| line.contains(words));
        u32::try_from(lines.count()).map_or(f64::INFINITY, f64::from)
    }

    /// For how long the guest did not run, by the record.
    fn gap_ns(&self) -> u64 {
        let gap = self.resume.gap.as_ref().map_or(0, |gap| gap.ns);
        u64::try_from(gap).unwrap_or(0)
    }

    /// The guest knows that it slept, and for how long.
    fn checks(&self) -> Vec<Check> {
        let (asleep_ns, gap_ns) = (self.asleep_ns(), self.gap_ns());
        let slept = format!(
            "the host slept for {:.0} ms, the guest was suspended for {:.0} ms and took it for {:.0} ms",
            ms(self.slept_ns),
            ms(gap_ns),
            ms(asleep_ns)
        );
        let check = |name, measured, limit, unit, detail: &str| {
            Check::new(name, measured, limit, unit).with_detail(detail)
        };
        let one = |name, words| {
            check(
                name,
                self.lines_with(words),
                Limit::Equals(1.0),
                "lines",
                words,
            )
        };
        let hidden = u32::try_from(self.hidden_sleeps).map_or(f64::INFINITY, f64::from);
        vec![
            one("key_presses", PRESSED).with_detail(self.system.clone()),
            one("suspend_entries", SUSPENDS_NOW),
            one("suspend_exits", RESUMED),
            check(
                "asleep_error_ms",
                ms(asleep_ns.abs_diff(gap_ns)),
                Limit::AtMost(100.0),
                "ms",
                &slept,
            ),
            check(
                "asleep_beyond_host_ms",
                ms(asleep_ns) - ms(self.slept_ns),
                Limit::AtLeast(0.0),
                "ms",
                &slept,
            ),
            check(
                "monotonic_jump_ms",
                self.off_ms(|it| it.monotonic, asleep_ns),
                Limit::AtMost(50.0),
                "ms",
                &slept,
            ),
            check(
                "realtime_error_ms",
                self.off_ms(|it| it.realtime, 0),
                Limit::AtMost(50.0),
                "ms",
                &slept,
            ),
            check(
                "hidden_sleeps",
                hidden,
                Limit::Equals(0.0),
                "records",
                &slept,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_read_from_the_kernels_list_of_timers() {
        let lines = [
            "grep --max-count 7 /proc/timer_list; echo",
            "now at 20000000005 nsecs",
            ".get_time:   ktime_get",
            ".offset:     0 nsecs",
            ".get_time:   ktime_get_real",
            ".offset:     1750000000000000000 nsecs",
            ".get_time:   ktime_get_boottime",
            ".offset:     60000000001 nsecs",
        ]
        .map(str::to_owned);
        let clocks = Clocks {
            monotonic: 20_000_000_005,
            realtime: 1_750_000_020_000_000_005,
            boottime: 80_000_000_006,
        };
        assert_eq!(Clocks::of_lines(&lines), Some(clocks));
        for missing in 1..lines.len() {
            let mut fewer = lines.to_vec();
            fewer.remove(missing);
            let needed = !matches!(missing, 2 | 3);
            assert_eq!(Clocks::of_lines(&fewer).is_none(), needed, "{missing}");
        }
    }
}
