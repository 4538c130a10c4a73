//! What is left of a VM that was not restored, or is being shut down, against real KVM.

use std::sync::mpsc::channel;
use std::thread::spawn;
use std::time::Duration;

use crate::caller::caller;
use crate::machine::{Machine, RAM, set, x};
use crate::stolen_time_saved::{Guest, vcpu};
use pvtime::host::Cause;
use pvtime::host::saved::SavedVm;
use pvtime_kvm::{Error, StolenTimeChoice, VmTimeConfig};

/// The same with accounts that have no room for the time since.
fn unrestorable(saved: &[u8]) -> Vec<u8> {
    let mut vcpu = vcpu(saved);
    vcpu.accounts.physical_ns = u64::MAX;
    [&saved[..SavedVm::SIZE_BYTES], &vcpu.emit()].concat()
}

#[test]
fn r6_a_vm_that_was_restored_in_part_does_not_run() {
    let saved = Guest::saved();
    let guest = Guest::blank();
    for _ in 0..2 {
        let error = guest.time.restore(&unrestorable(&saved), Cause::Snapshot);
        let error = error.unwrap_err();
        // The timers were written before.
        assert!(matches!(error, Error::Account { index: 0, .. }), "{error}");
        assert!(matches!(guest.time.resume(), Err(Error::Timeline(_))));
        assert!(matches!(guest.time.start(), Err(Error::HalfRestored)));
        assert!(matches!(guest.time.save(), Err(Error::Timeline(_))));
        let records = guest.time.records().after(0, Duration::ZERO);
        assert!(records.is_empty(), "{records:?}");
    }
    guest.time.restore(&saved, Cause::Snapshot).unwrap();
    guest.time.resume().unwrap();
    assert_eq!(guest.time.records().after(0, Duration::ZERO).len(), 2);
}

#[test]
fn r6_a_vm_with_a_vcpu_whose_thread_has_left_is_not_restored() {
    let mut saved = Guest::saved();
    let second = vcpu(&saved).emit();
    saved.extend(second);
    let machine = caller();
    let config = VmTimeConfig {
        stolen_time: StolenTimeChoice::On,
        ..Machine::config(2)
    };
    let time = machine.time(config).unwrap();
    let [mut first, second] = [0, 1].map(|index| machine.vcpu(index));
    set(&first, x(32), RAM + 8);
    let attached = time.attach(&first, 0).unwrap();
    let left = time.attach(&second, 1).unwrap();
    let (bound, is_bound) = channel();
    let thread = spawn(move || {
        let running = attached.bind_thread().unwrap();
        bound.send(()).unwrap();
        while running.run(&mut first).is_some() {}
    });
    is_bound.recv().unwrap();
    drop(left.bind_thread().unwrap());
    let error = time.restore(&saved, Cause::Snapshot).unwrap_err();
    let one_of_two = Error::ThreadEnded {
        vcpus: 2,
        threads: 1,
    };
    assert_eq!(error.to_string(), one_of_two.to_string());
    assert!(time.on_each_vcpu(|_, _| ()).is_none());
    time.shut_down();
    thread.join().unwrap();
}

#[test]
fn a_vm_that_is_being_shut_down_is_neither_saved_nor_restored() {
    let guest = Guest::new();
    guest.time.start().unwrap();
    guest.time.pause(Cause::Snapshot).unwrap();
    let saved = guest.time.save().unwrap();
    guest.time.shut_down();
    assert!(matches!(guest.time.save(), Err(Error::ShutDown)));
    let other = Guest::blank();
    other.time.shut_down();
    let error = other.time.restore(&saved, Cause::Snapshot).unwrap_err();
    assert!(matches!(error, Error::ShutDown), "{error}");
}
