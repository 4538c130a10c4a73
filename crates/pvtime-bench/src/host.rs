//! What it costs a host to keep its guests' time.

use crate::measure::Round;
use crate::report::{Fleet, Operation};
use anyhow::{Result, ensure};
use pvtime::abi::live_physical_time;
use pvtime::abi::paused_time::{self, PausedTime};
use pvtime::abi::stolen_time::{STOLEN_WORD, STRIDE_BYTES};
use pvtime::host::GuestCount;
use pvtime::host::live::LiveState;
use pvtime::host::stolen::StolenAccount;
use pvtime::scale::{Frequency, NS_PER_S};
use pvtime::seqlock::{SequenceWriter, WriteWords};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

const ROUNDS: usize = 200;
const TIMES: u32 = 2_000;
const FLEET: usize = 1_000_000;
const FLEET_ROUNDS: usize = 5;
/// A wait of a vCPU's thread for its CPU.
const WAIT_NS: u64 = 1_700;
/// Where a VM is stopped, ticks.
const STOPPED_AT: GuestCount = GuestCount(123_456_789_012);

/// The names of what is measured, in order.
const OPERATIONS: [&str; 3] = [
    "stolen time: count a wait and publish",
    "live physical time: re-base to another frequency and publish",
    "paused time: publish a pause",
];

/// Measures each operation.
pub fn measure() -> Result<Vec<Operation>> {
    let stolen = structure();
    let (mut account, mut run_delay_ns) = (StolenAccount::attach(0), 0);

    let live = [const { AtomicU64::new(0) }; live_physical_time::SIZE_BYTES / 8];
    let mut live_writer = SequenceWriter::start(live_physical_time::SHAPE);
    let hosts = [
        Frequency::from_hz(25_000_000)?,
        Frequency::from_hz(100_000_000)?,
    ];
    let mut state = LiveState::start(hosts[0], Frequency::from_hz(NS_PER_S)?)?;
    let mut count = STOPPED_AT;

    let pauses = [const { AtomicU32::new(0) }; paused_time::SIZE_BYTES / 4];
    let mut pauses_writer = SequenceWriter::start(paused_time::SHAPE);
    let mut total = PausedTime::default();

    let mut round = Round::default();
    round.add(|| {
        run_delay_ns += WAIT_NS;
        account_and_publish(&mut account, run_delay_ns, &stolen)
    });
    round.add(|| {
        let other = if state.native() == hosts[0] {
            hosts[1]
        } else {
            hosts[0]
        };
        (state, count) = state.rebase(count, other)?;
        live_writer.publish(&live[..], &state.mapping().emit())?;
        anyhow::Ok(())
    });
    round.add(|| {
        total.events += 1;
        total.paused_ns += WAIT_NS;
        pauses_writer.publish(&pauses[..], &total.emit())
    });
    let costs = round.run(ROUNDS, TIMES);

    let total_ns = u64::from(TIMES) * ROUNDS as u64 * WAIT_NS;
    ensure!(
        stolen[STOLEN_WORD].load(Ordering::Relaxed) == total_ns,
        "stolen time was lost"
    );
    ensure!(total.paused_ns == total_ns, "a pause was lost");
    ensure!(
        count == STOPPED_AT,
        "live physical time moved while the VM was stopped: {count}"
    );
    let named = OPERATIONS.into_iter().zip(costs);
    Ok(named
        .map(|(name, cost)| Operation::new(name, cost))
        .collect())
}

/// Accounts a million vCPUs and publishes the stolen time of each, in one thread.
pub fn fleet() -> Result<Fleet> {
    let mut accounts = vec![StolenAccount::attach(0); FLEET];
    let structures: Vec<_> = (0..FLEET).map(|_| structure()).collect();
    let mut seconds = f64::INFINITY;
    for round in 1..=FLEET_ROUNDS as u64 {
        let start = Instant::now();
        for (account, structure) in accounts.iter_mut().zip(&structures) {
            account_and_publish(account, round * WAIT_NS, structure)?;
        }
        seconds = seconds.min(start.elapsed().as_secs_f64());
    }
    let total_ns = FLEET_ROUNDS as u64 * WAIT_NS;
    let right = |words: &Structure| words[STOLEN_WORD].load(Ordering::Relaxed) == total_ns;
    ensure!(structures.iter().all(right), "stolen time was lost");
    Ok(Fleet {
        vcpus: FLEET,
        seconds,
        bytes_per_vcpu: size_of::<StolenAccount>(),
    })
}

/// A vCPU's structure in its guest's memory.
type Structure = [AtomicU64; STRIDE_BYTES / 8];

fn structure() -> Structure {
    [const { AtomicU64::new(0) }; STRIDE_BYTES / 8]
}

fn account_and_publish(
    account: &mut StolenAccount,
    run_delay_ns: u64,
    structure: &Structure,
) -> Result<()> {
    account.count(run_delay_ns)?;
    let published = account.publish(|value| {
        structure[..].store(STOLEN_WORD, value.stolen_ns);
        Ok::<_, Infallible>(())
    });
    Ok(published?)
}
