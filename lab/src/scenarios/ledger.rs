//! The ledger balances: over contention, idling and pauses its accounts add up to physical time.

use super::watch::ms;
use crate::control::Accounts;
use crate::guest::{Guest, GuestSpec, boot_host};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "ledger",
    about: "run, idle, stolen and paused time of a vCPU add up to physical time",
    must_fail: None,
    play,
};

/// How long the guest competes, and how long it idles.
const STRETCH: Duration = Duration::from_secs(8);
const PAUSES: u32 = 3;
const LENGTH: Duration = Duration::from_secs(2);

/// Most that no account may have: this part of the time, or this time.
const RESIDUAL_PERCENT: f64 = 0.1;
const RESIDUAL_MS: f64 = 1.0;

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    accounts: Vec<Accounts>,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "let a guest compete, idle and be paused",
                act: spend,
                checks: |scene| scene.accounts.iter().flat_map(checks).collect(),
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    scene.host = Some(boot_host(stage)?);
    Ok(())
}

fn spend(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let start = |name, host: &mut Host| {
        let spec = GuestSpec {
            workload: Workload::Busy,
            ..GuestSpec::new(name)
        };
        Guest::start(&spec, host)
    };
    let mut guests = [start("judged", host)?, start("rival", host)?];
    for guest in &mut guests {
        guest.await_hello(host)?;
        guest.pin(host, &[0], &[1])?;
    }
    let [mut judged, mut rival] = guests;
    sleep(STRETCH)?;
    stage.keep_time(&mut rival, host)?;
    rival.power_off(host)?;
    judged.set_workload(host, 0, Workload::Idle)?;
    sleep(STRETCH)?;
    for _ in 0..PAUSES {
        judged.pause(host)?;
        sleep(LENGTH)?;
        judged.resume(host)?;
    }
    scene.accounts = judged.ledger(host)?;
    stage.keep_time(&mut judged, host)?;
    judged.power_off(host)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to a hundred days")]
fn checks(accounts: &Accounts) -> Vec<Check> {
    let physical_ms = ms(accounts.physical_ns);
    let residual_ms = accounts.residual_ns as f64 / 1e6;
    let limit = RESIDUAL_PERCENT.max(100.0 * RESIDUAL_MS / physical_ms);
    let detail = format!("{residual_ms:.3} ms of {physical_ms:.0} ms");
    let all_ns = [
        accounts.run_ns,
        accounts.idle_ns,
        accounts.stolen_ns,
        accounts.paused_ns.operator_ns,
    ];
    let sum = all_ns.iter().map(|ns| i128::from(*ns)).sum::<i128>();
    let missing = i128::from(accounts.physical_ns) - sum - accounts.residual_ns;
    let at_least = |name, ns, seconds: Duration| {
        let limit = Limit::AtLeast(seconds.as_secs_f64() * 1e3);
        Check::new(name, ms(ns), limit, "ms")
    };
    let [run_ns, idle_ns, stolen_ns, paused_ns] = all_ns;
    vec![
        Check::new(
            "residual_percent",
            (100.0 * residual_ms / physical_ms).abs(),
            Limit::AtMost(limit),
            "%",
        )
        .with_detail(detail),
        Check::new(
            "unexplained_ns",
            missing.unsigned_abs() as f64,
            Limit::Equals(0.0),
            "ns",
        ),
        // Nothing balances where there is nothing: each account has its part.
        at_least("run_ms", run_ns, STRETCH / 3),
        at_least("stolen_ms", stolen_ns, STRETCH / 3),
        at_least("idle_ms", idle_ns, STRETCH / 2),
        at_least("paused_ms", paused_ns, LENGTH * PAUSES),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Paused;

    const MS: u64 = 1_000_000;

    fn passes(residual_ms: i128, physical_ms: u64) -> bool {
        let accounts = Accounts {
            physical_ns: physical_ms * MS,
            run_ns: 0,
            idle_ns: 0,
            stolen_ns: 0,
            paused_ns: Paused {
                snapshot_ns: 0,
                migration_ns: 0,
                operator_ns: 0,
                host_suspend_ns: 0,
            },
            residual_ns: residual_ms * i128::from(MS),
        };
        checks(&accounts)[0].pass
    }

    #[test]
    fn the_residual_may_be_a_thousandth_or_a_millisecond_either_way() {
        assert!(passes(30, 30_000) && passes(-30, 30_000));
        assert!(!passes(31, 30_000) && !passes(-31, 30_000));
        assert!(passes(1, 100) && !passes(2, 100));
    }
}
