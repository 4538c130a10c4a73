//! What one move of a guest came to.

use crate::report::{Check, Limit};
use crate::scenarios::pauses::Pause;
use crate::scenarios::watch::{structure, worst};
use crate::status::Status;
use anyhow::Result;
use std::time::Duration;

/// What the time of a VM takes that is restored and goes on at once.
pub struct Work {
    /// By the VMM's own clock.
    pub took_us: f64,
    /// How many times as long a system call takes on that host as here.
    pub slowness: f64,
}

/// One move: a pause, and what else was known around it.
pub struct Move {
    pub pause: Pause,
    /// The VM when it was saved, and when it was restored and had not run yet.
    pub saved: Status,
    pub restored: Status,
    pub is_far: bool,
    /// From the stop to the resumption by the hosts' counters and the lab's clock, and its error.
    pub passed_ns: i128,
    pub passed_error: Duration,
    pub uptime_difference_s: f64,
}

impl Move {
    /// By how much what a structure says differs between when its VM was saved and when it is restored
    /// and has not run yet, the most of all vCPUs.
    pub fn stolen_loss_ns(&self) -> f64 {
        let apart = (0..self.saved.vcpus.len()).map(|vcpu| {
            let ns = grown_ns(&self.saved, &self.restored, vcpu);
            ns.map_or(f64::NAN, |ns| seconds(ns.abs()) * 1e9)
        });
        worst(apart)
    }

    /// By how much a structure grew since then beyond what the new thread of its vCPU has ever waited
    /// for a CPU, the most of all vCPUs.
    pub fn stolen_beyond_run_delay_ns(&self) -> f64 {
        let after = &self.pause.after;
        let beyond = after.vcpus.iter().enumerate().map(|(index, vcpu)| {
            let grown = grown_ns(&self.restored, after, index);
            let beyond = grown.map(|ns| (ns - i128::from(vcpu.run_delay_ns)).max(0));
            beyond.map_or(f64::NAN, |ns| seconds(ns) * 1e9)
        });
        worst(beyond)
    }

    /// What passed over the move and the guest's counter did not show, and its error.
    pub fn hidden(&self) -> (i128, Duration) {
        let shown_ns = i128::from(self.pause.ns(self.pause.shown_ticks()));
        (self.passed_ns - shown_ns, self.passed_error)
    }

    /// How far the step of the guest's own counter is from what passed by both hosts' counters and
    /// the lab's clock.
    pub fn step_error_us(&self) -> f64 {
        self.pause.step_excess_us(self.passed_ns)
    }

    /// What the guest's counter showed of the gap, against what passed: on one host by its counter,
    /// between hosts by the counters of both and the lab's clock.
    pub fn check_error(&self, name: &str) -> Check {
        let shown_ns = i128::from(self.pause.ns(self.pause.shown_ticks()));
        let (stop, resume) = (&self.pause.stop, &self.pause.resume);
        let stated_ns = resume.gap.as_ref().and_then(|gap| gap.error_ns);
        if !self.is_far {
            let passed = resume.after.host.wrapping_sub(stop.after.host);
            let error_ns = shown_ns - i128::from(self.pause.ns(passed));
            return check_error(error_ns, 100.0, format!("{name}, on the same host"));
        }
        let lab_us = self.passed_error.as_secs_f64() * 1e6;
        let bound_us = stated_ns.map_or(f64::NAN, |ns| seconds(ns.into()) * 1e6);
        let detail = format!(
            "{name}, to another host over {:.1} s; the record states {bound_us:.0} us, and the lab's \
             own reading is good to {lab_us:.0} us",
            seconds(self.passed_ns)
        );
        check_error(shown_ns - self.passed_ns, bound_us + lab_us, detail)
    }
}

fn check_error(error_ns: i128, most_us: f64, detail: String) -> Check {
    let measured_us = seconds(error_ns).abs() * 1e6;
    Check::new(
        "counter_error_us",
        measured_us,
        Limit::AtMost(most_us),
        "us",
    )
    .with_detail(detail)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to a hundred days")]
pub fn seconds(ns: i128) -> f64 {
    ns as f64 / 1e9
}

/// By how much the structure of a vCPU grew.
fn grown_ns(before: &Status, after: &Status, vcpu: usize) -> Result<i128> {
    let before = structure(before, vcpu)?.stolen_ns;
    Ok(i128::from(structure(after, vcpu)?.stolen_ns) - i128::from(before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Adjustment, Counters, Gap};
    use crate::status::{Generation, Structure, VcpuStatus};
    use guest_protocol::report::{Spin, SpinGap};

    const MS: u64 = 1_000_000;

    fn status(run_delay_ns: u64, stolen_ns: u64) -> Status {
        let structure = Structure {
            address: 0,
            claimed: true,
            stolen_ns,
            surplus_ns: 0,
        };
        Status {
            state: "Running".into(),
            elapsed_ns: 0,
            paused_ns: 0,
            generation: Generation::default(),
            vcpus: vec![VcpuStatus {
                thread_id: 1,
                run_ns: 0,
                run_delay_ns,
                stolen_time: Some(structure),
            }],
        }
    }

    fn record(host: u64, guest: u64) -> Adjustment {
        let at = Counters {
            host,
            guest,
            frequency_hz: 1_000_000_000,
        };
        Adjustment {
            sequence: 1,
            wall_ns: 0,
            event: String::new(),
            policy: None,
            gap: Some(Gap {
                ns: 0,
                error_ns: Some(MS),
            }),
            hidden_ns: 0,
            shown_ticks: None,
            before: at,
            after: at,
            live: None,
            unanswered_ms: None,
            unfinished_ms: None,
        }
    }

    /// A move over which the guest's counter shows a second.
    fn one(is_far: bool, passed_ns: u64, stolen_ns: [u64; 2], after: (u64, u64)) -> Move {
        Move {
            is_far,
            passed_ns: passed_ns.into(),
            passed_error: Duration::from_micros(500),
            uptime_difference_s: 0.0,
            saved: status(7 * MS, stolen_ns[0]),
            restored: status(MS, stolen_ns[1]),
            pause: Pause {
                kept: (Duration::ZERO, Duration::ZERO),
                stop: record(0, 1000),
                resume: record(passed_ns, 1000 + 1000 * MS),
                before: status(0, 0),
                after: status(after.0, after.1),
                held_up: Duration::ZERO,
                spins: Vec::new(),
                samples: None,
                quiet_growths_ms: vec![0.0],
            },
        }
    }

    #[test]
    fn stolen_time_is_neither_lost_nor_made_up() {
        let figures = |saved, restored, after| {
            let it = one(true, 0, [saved, restored], after);
            (it.stolen_loss_ns(), it.stolen_beyond_run_delay_ns())
        };
        let near = |(loss, beyond): (f64, f64), want: (f64, f64)| {
            (loss - want.0).abs() < 1e-6 && (beyond - want.1).abs() < 1e-6
        };
        let old = 10 * MS;
        assert!(near(figures(old, old, (2 * MS, 12 * MS)), (0.0, 0.0)));
        assert!(near(figures(old, old - 1, (2 * MS, 11 * MS)), (1.0, 0.0)));
        assert!(near(figures(old, old + 3, (2 * MS, 11 * MS)), (3.0, 0.0)));
        assert!(near(figures(old, old, (2 * MS, 12 * MS + 5)), (0.0, 5.0)));
    }

    #[test]
    fn a_step_is_held_against_what_passed() {
        let mut it = one(true, 1000 * MS, [0; 2], (0, 0));
        assert!(it.step_error_us().is_nan(), "nothing spun");
        let mut spin = Spin {
            reads: 2,
            last_counter: 2000 * MS,
            ..Spin::default()
        };
        spin.largest_gaps[0] = SpinGap {
            start: 500,
            ticks: 1007 * MS,
            stolen_ns: 5 * MS,
        };
        it.pause.spins = vec![spin];
        assert!((it.step_error_us() - 2000.0).abs() < 1e-6);
        it.passed_ns += 3_000_000;
        assert!((it.step_error_us() + 1000.0).abs() < 1e-6);
        // It stopped spinning before the move: nothing is known of a step over it.
        it.pause.spins[0].largest_gaps[0] = SpinGap::default();
        it.pause.spins[0].last_counter = 900;
        assert!(it.step_error_us().is_nan());
    }

    #[test]
    fn what_the_counter_shows_is_what_passed() {
        let passes = |is_far, passed_ns| {
            let it = one(is_far, passed_ns, [0; 2], (0, 0));
            it.check_error("one").pass
        };
        assert!(passes(false, 1000 * MS + 100_000));
        assert!(!passes(false, 1000 * MS + 101_000));
        // The record's bound of a millisecond, and half of one of the lab's.
        assert!(passes(true, 1001 * MS + 500_000));
        assert!(!passes(true, 1001 * MS + 501_000));
        assert!(!passes(true, 0));
    }
}
