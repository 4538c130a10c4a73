//! Fails: a figure that is measured as all others are, with a limit that nothing can keep. Where it
//! passes, checks do not check.

use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step};
use anyhow::Result;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "canary",
    about: "must fail: a host's clock is asked to stand still",
    must_fail: Some("no clock stands still for 20 ms"),
    play,
};

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        0,
        &[Step {
            name: "read the clock of a host twice",
            act: read_twice,
            checks: |passed_ns| {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a difference of seconds at most"
                )]
                let passed_ms = *passed_ns as f64 / 1e6;
                vec![Check::new(
                    "passed_between_two_reads_ms",
                    passed_ms,
                    Limit::AtMost(0.0),
                    "ms",
                )]
            },
        }],
    )
}

fn read_twice(passed_ns: &mut u64, stage: &mut Stage) -> Result<()> {
    let mut host = stage.boot(&HostSpec {
        memory_mib: 512,
        ..HostSpec::new("host")
    })?;
    let agent = host.facts().agent_pid;
    let first_ns = host.threads(agent)?.after_ns;
    std::thread::sleep(Duration::from_millis(20));
    *passed_ns = host.threads(agent)?.before_ns - first_ns;
    host.power_off()
}
