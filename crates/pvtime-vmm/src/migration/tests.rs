//! Whole migrations between two sides that have no KVM, over connections that fail.

mod faulty;
mod hostile;
mod sides;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use faulty::{Cut, Faulty};
use proptest::prelude::*;
use sides::{Carrier, Outcome, Side, World};

use super::frame::Kind;
use super::message::LiveOffer;
use super::monitor::{Monitor, Phase};
use super::pace::Plan;
use super::receive::Patience;
use super::report;
use super::send::{Failure, Reason};

pub use sides::offer;

/// A VM whose memory is written to for some rounds.
fn world() -> World {
    World::default()
}

#[test]
fn a_vm_moves_with_all_that_it_is() {
    let carriers = [Carrier::Clear, Carrier::Tls, Carrier::TlsOverFaults];
    for (runs, carrier) in [true, false]
        .into_iter()
        .flat_map(|runs| carriers.map(|it| (runs, it)))
    {
        let world = World {
            carrier,
            runs,
            ..world()
        };
        let (outcome, report) = world.migrate(Cut::default());
        assert_eq!(outcome, Outcome::moved(runs));
        let report = report.unwrap();
        assert_eq!(report.outcome, report::Outcome::Moved);
        assert_eq!(report.record.is_some(), runs);
        assert_eq!(report.stolen_at_stop_ns, sides::STOLEN_NS);
        let transfer = report.transfer.unwrap();
        assert!(transfer.rounds >= 2 && transfer.converged, "{transfer:?}");
        assert!(transfer.stopped_bytes < transfer.sent_bytes);
    }
}

#[test]
fn zero_pages_are_not_sent() {
    let (_, report) = world().migrate(Cut::default());
    let transfer = report.unwrap().transfer.unwrap();
    assert!(
        transfer.sent_bytes < transfer.memory_bytes / 8,
        "{transfer:?}"
    );
}

#[test]
fn a_source_does_not_fall_silent_over_memory_that_is_zero() {
    let empty = World {
        is_empty: true,
        dirty_rounds: 0,
        ..world()
    };
    let talkative = World {
        longest_silence: Duration::ZERO,
        ..empty.clone()
    };
    let pieces = sides::MEMORY_BYTES / super::frame::MEMORY_BYTES as u64;
    let frames = talkative.count_frames().to_destination;
    assert!(frames > pieces, "{frames} frames for {pieces} pieces");
    assert!(empty.count_frames().to_destination < pieces);
    let (outcome, _) = talkative.migrate(Cut::default());
    assert_eq!(outcome, Outcome::moved(true));
    let (outcome, _) = World {
        longest_silence: Duration::ZERO,
        ..world()
    }
    .migrate(Cut::default());
    assert_eq!(outcome, Outcome::moved(true), "and clears nothing else");
}

#[test]
fn a_vm_that_was_stopped_for_too_long_goes_on_here() {
    let slow = World {
        assembly_takes: Duration::from_millis(1500),
        plan: Plan {
            stop_limit: Duration::from_millis(300),
            ..world().plan
        },
        ..world()
    };
    let (outcome, report) = slow.migrate(Cut::default());
    let Err(Failure::Kept(reason @ Reason::Stopped { limit_ms: 300 })) = report else {
        panic!("{report:?}");
    };
    let said = reason.to_string();
    assert!(said.contains("give a longer --stop-limit"), "{said}");
    assert_eq!(outcome.source, Side::Runs);
    assert_eq!(outcome.destination, Side::Nothing);
    // One that stands still anyway has time.
    let paused = World {
        runs: false,
        ..slow
    };
    let (outcome, _) = paused.migrate(Cut::default());
    assert_eq!(outcome, Outcome::moved(false));
}

#[test]
fn a_destination_waits_until_the_vm_is_stopped() {
    let slow = World {
        pause_takes: Duration::from_secs(4),
        patience: Patience {
            frame: Duration::from_secs(3),
            ..Patience::default()
        },
        ..world()
    };
    let (outcome, report) = slow.migrate(Cut::default());
    assert_eq!(outcome, Outcome::moved(true), "{report:?}");
}

#[test]
fn a_dry_run_and_a_refusal_move_nothing() {
    let dry = World {
        dry_run: true,
        ..world()
    };
    let refused = World {
        refusals: vec!["too small", "too slow"],
        ..world()
    };
    let unprepared = World {
        prepare_fails: true,
        ..world()
    };
    let dry_unprepared = World {
        dry_run: true,
        ..unprepared.clone()
    };
    for (world, expected, reasons) in [
        (dry, report::Outcome::Accepted, 0),
        (refused, report::Outcome::Refused, 2),
        (unprepared, report::Outcome::Refused, 1),
        (dry_unprepared, report::Outcome::Refused, 1),
    ] {
        let (outcome, report) = world.migrate(Cut::default());
        let report = report.unwrap();
        assert_eq!((report.outcome, report.refusals.len()), (expected, reasons));
        assert_eq!(report.transfer, None);
        assert_eq!(report.stolen_at_stop_ns, []);
        assert_eq!(outcome.source, Side::Runs);
        assert_eq!(outcome.destination, Side::Nothing);
        assert!(!outcome.was_paused && !outcome.was_logged, "it noticed");
    }
}

#[test]
fn what_a_destination_says_is_printed_as_text() {
    let refused = World {
        refusals: vec!["too\u{1b}[2Jsmall\npvtime: the VM is at \u{9b}mars"],
        ..world()
    };
    let (_, report) = refused.migrate(Cut::default());
    let said = &report.unwrap().refusals;
    assert_eq!(said[..], ["too [2Jsmall pvtime: the VM is at  mars"]);

    let mut record = crate::api::fake::record("resume");
    record.policy = Some("a\u{1b}[2J".into());
    record.gap.as_mut().unwrap().source = "x".repeat(2000);
    let record = Some(record);
    let started = super::message::Started { record }.printable();
    let record = started.record.unwrap();
    assert_eq!(record.policy.as_deref(), Some("a [2J"));
    assert_eq!(record.gap.unwrap().source.len(), 1000);
}

#[test]
fn a_vm_that_does_not_start_there_goes_on_here() {
    for (world, expected) in [
        (
            World {
                assemble_fails: true,
                ..world()
            },
            "no such register",
        ),
        (
            World {
                start_fails: true,
                ..world()
            },
            "no such clock",
        ),
    ] {
        let (outcome, report) = world.migrate(Cut::default());
        assert_eq!(outcome.source, Side::Runs);
        assert_eq!(outcome.destination, Side::Nothing);
        let Err(Failure::Kept(Reason::There(reason))) = report else {
            panic!("{report:?}");
        };
        assert_eq!(reason, expected);
    }
}

#[test]
fn a_vm_whose_state_cannot_be_read_stays() {
    for world in [
        World {
            pause_fails: true,
            ..world()
        },
        World {
            state_fails: true,
            ..world()
        },
    ] {
        let (outcome, report) = world.migrate(Cut::default());
        assert!(matches!(report, Err(Failure::Kept(Reason::Here(_)))));
        assert_eq!(outcome.source, Side::Runs);
        assert_eq!(outcome.destination, Side::Nothing);
        assert!(!outcome.is_logged, "it still costs the guest speed");
    }
}

#[test]
fn a_guest_that_writes_faster_than_memory_is_sent_is_stopped_at_last() {
    let world = World {
        dirty_rounds: u32::MAX,
        plan: Plan {
            downtime: Duration::ZERO,
            ..world().plan
        },
        ..world()
    };
    let (outcome, report) = world.migrate(Cut::default());
    assert_eq!(outcome, Outcome::moved(true));
    assert!(!report.unwrap().transfer.unwrap().converged);
}

#[test]
fn memory_is_not_sent_faster_than_asked_for() {
    let world = World {
        plan: Plan {
            bytes_per_s: Some(1 << 20),
            downtime: Duration::from_secs(10),
            ..world().plan
        },
        ..world()
    };
    let (_, report) = world.migrate(Cut::default());
    let transfer = report.unwrap().transfer.unwrap();
    let least_ms = ((transfer.sent_bytes - transfer.stopped_bytes) * 1000) >> 20;
    assert!(
        transfer.total_ms >= least_ms * 9 / 10 && least_ms > 50,
        "{transfer:?}"
    );
}

#[test]
fn a_migration_that_is_called_off_leaves_the_vm_running() {
    // It would take minutes.
    let world = World {
        plan: Plan {
            bytes_per_s: Some(1 << 10),
            downtime: Duration::ZERO,
            ..world().plan
        },
        cancel_after: Some(Duration::from_millis(100)),
        ..world()
    };
    let (outcome, report) = world.migrate(Cut::default());
    let Err(Failure::Kept(reason)) = report else {
        panic!("{report:?}");
    };
    assert_eq!(reason.to_string(), "it was called off");
    assert_eq!(outcome.source, Side::Runs);
    assert_eq!(outcome.destination, Side::Nothing);
    assert!(!outcome.is_logged && !outcome.was_paused);
}

/// What each failure may leave: one owner, or a VM that is stopped and in doubt.
fn assert_one_owner(outcome: &Outcome, what: &str) {
    let sides = [outcome.source, outcome.destination];
    let running = sides.iter().filter(|it| **it == Side::Runs).count();
    let doubting = sides.iter().filter(|it| **it == Side::InDoubt).count();
    assert!(running <= 1, "{what}: two owners");
    assert!(
        running + doubting >= 1,
        "{what}: the VM is lost: {outcome:?}"
    );
    // A source that still owns the VM does not leave it stopped.
    assert!(!(outcome.source == Side::Stopped), "{what}: {outcome:?}");
    assert!(outcome.memory_is_right, "{what}: memory differs");
}

#[test]
fn a_connection_that_ends_at_any_message_leaves_one_owner() {
    for carrier in [Carrier::Clear, Carrier::Tls] {
        let world = World { carrier, ..world() };
        let whole = world.count_frames();
        assert!(
            whole.to_destination > 10 && whole.to_source == 3,
            "{whole:?}"
        );
        let to_destination = (0..whole.to_destination).map(Cut::frame_to_destination);
        let to_source = (0..whole.to_source).map(Cut::frame_to_source);
        let mut doubts = 0;
        for cut in to_destination.chain(to_source) {
            let (outcome, _) = world.migrate(cut);
            doubts += u32::from(outcome.source == Side::InDoubt);
            assert_one_owner(&outcome, &format!("{carrier:?}, {cut:?}"));
        }
        // Commit did not arrive, Started did not.
        assert_eq!(doubts, 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_connection_that_ends_at_any_byte_leaves_one_owner(
        to_destination: bool, part in 0u64..=10_000, from_end: bool, runs: bool
    ) {
        let world = World { runs, ..world() };
        let total = world.count_bytes();
        let total = if to_destination { total.to_destination } else { total.to_source };
        // The end is where it matters, and is short.
        let byte = if from_end { total.saturating_sub(part % 600) } else { total * part / 10_000 };
        let cut = if to_destination {
            Cut::byte_to_destination(byte)
        } else {
            Cut::byte_to_source(byte)
        };
        let (outcome, _) = world.migrate(cut);
        if runs {
            assert_one_owner(&outcome, &format!("{cut:?}"));
        } else {
            prop_assert!(outcome.source != Side::Runs && outcome.destination != Side::Runs);
            prop_assert!(outcome.memory_is_right);
        }
    }

    #[test]
    fn a_byte_that_changes_is_noticed(part in 0u64..10_000, bit in 0u8..8) {
        let world = world();
        let total = world.count_bytes().to_destination;
        let (outcome, _) = world.migrate(Cut::flip(total * part / 10_000, bit));
        assert_one_owner(&outcome, "a changed byte");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_carries_tls_may_end_or_change_at_any_byte(
        to_destination: bool, part in 0u64..10_000, bit in proptest::option::of(0u8..8)
    ) {
        let carrier = Carrier::TlsOverFaults;
        let world = World { carrier, ..world() };
        let total = world.count_bytes();
        let byte = if to_destination { total.to_destination } else { total.to_source } * part / 10_000;
        let cut = match bit {
            Some(bit) => Cut::flip(total.to_destination * part / 10_000, bit),
            None if to_destination => Cut::byte_to_destination(byte),
            None => Cut::byte_to_source(byte),
        };
        let (outcome, report) = world.migrate(cut);
        prop_assert!(report.is_err() || bit.is_none(), "a changed byte was taken: {cut:?}");
        assert_one_owner(&outcome, &format!("{cut:?}"));
    }
}

#[test]
fn progress_is_shown() {
    let monitor = Monitor::default();
    assert_eq!(monitor.progress().phase, Phase::Idle);
    monitor.begin("tcp:there:1".into());
    let progress = monitor.progress();
    assert_eq!(progress.phase, Phase::Asking);
    assert_eq!(progress.destination.as_deref(), Some("tcp:there:1"));
    let json = serde_json::to_value(Monitor::default().progress()).unwrap();
    assert_eq!(json["phase"], "None");
}

#[test]
fn an_offer_is_the_same_after_the_stream() {
    let offer = super::message::Offer {
        live: Some(LiveOffer {
            pv_frequency_hz: 1,
            found: true,
        }),
        ..offer()
    };
    let json = serde_json::to_string(&offer).unwrap();
    assert_eq!(
        serde_json::from_str::<super::message::Offer>(&json).unwrap(),
        offer
    );
}

/// A pair of connections, one of which fails as told.
fn pair(cut: Cut) -> (Faulty, Faulty) {
    let (source, destination) = UnixStream::pair().unwrap();
    (
        Faulty::new(source, cut.of_source(), cut.patience()),
        Faulty::new(destination, cut.of_destination(), cut.patience()),
    )
}

/// The last kinds of frames that a whole migration ends with.
const HANDOVER: [Kind; 3] = [Kind::Ready, Kind::Commit, Kind::Started];
