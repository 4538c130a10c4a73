//! The state of vCPUs and the interrupt controller against real KVM: a guest that is saved at any
//! of its exits, restored into another VM and run on there does what it does when nobody stops it.
//!
//! Runs on arm64 hosts with KVM; `cargo xtask test` runs it on an emulated one.
#![cfg(target_arch = "aarch64")]
#![expect(unsafe_code, reason = "memory slots and ioctls that kvm-ioctls lacks")]

mod machine;
mod whole;

use std::fs;

use kvm_bindings::{KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED};
use machine::{AFFINITIES, Exit, INTERRUPTS, Machine, RAM, Saved};
use pvtime_kvm::registers::{PTIMER_CTL, PTIMER_CVAL, TIMER_CNT, is_time_register};
use pvtime_vmm::generation::Generation;
use pvtime_vmm::snapshot::{self, Contents};
use pvtime_vmm::state::MachineState;
use pvtime_vmm::state::devices::DeviceStates;
use pvtime_vmm::state::gic::{Error as GicError, FreshGic, GicState};
use pvtime_vmm::state::register::{Register, RegisterId, Step};
use pvtime_vmm::state::vcpu::{Error as VcpuError, SError, VcpuState};
use tempfile::TempDir;
use vm_memory::Bytes;

/// What the guest does when nobody stops it.
fn reference() -> Vec<Exit> {
    let mut trace = Vec::new();
    Machine::boot().run(&mut trace, usize::MAX);
    trace
}

/// A machine in the middle of its guest's work, with interrupts pending.
fn saved() -> Saved {
    saved_after(6)
}

/// The same a little later.
fn saved_while_handling_a_level() -> Saved {
    saved_after(11)
}

fn saved_after(exits: usize) -> Saved {
    let mut machine = Machine::boot();
    machine.run(&mut Vec::new(), exits);
    machine.save()
}

#[test]
fn a_guest_that_nobody_stops_takes_its_interrupts_by_priority() {
    let written: Vec<u64> = reference()
        .iter()
        .filter_map(|exit| match exit {
            Exit::Wrote(value) => Some(*value),
            Exit::Read => None,
        })
        .collect();
    // After each interrupt's number the priority that it runs at.
    let interrupts = [1, 0x1_0040, 32, 0x1_0080, 33, 0x1_00a0, 2, 0x1_00c0, 4];
    assert_eq!(written[5..14], interrupts);
    let (power_on, sgis_but_5) = (0, 0xffdf);
    assert_eq!(written[14..16], [power_on, sgis_but_5]);
    let (rounding, inexact, thread) = (0xc0_0000, 0x10, 0x7157);
    assert_eq!(written[20..23], [rounding, inexact, thread]);
    assert_eq!(written[23..], [0xe0d, 0xc0de, 3, 0x1_0000, 0xe0d]);
}

#[test]
fn a_guest_goes_on_from_each_of_its_exits() {
    let reference = reference();
    for exits in 0..reference.len() {
        let mut trace = Vec::new();
        let mut machine = Machine::boot();
        machine.run(&mut trace, exits);
        let saved = machine.save();
        let mut unmoved = trace.clone();
        machine.run(&mut unmoved, usize::MAX);
        assert_eq!(unmoved, reference, "saved after {exits} exits, and no more");
        drop(machine);
        Machine::restore(&saved).run(&mut trace, usize::MAX);
        assert_eq!(trace, reference, "saved after {exits} exits");
    }
}

/// What a machine that was just made holds already need not be written to it.
#[test]
fn a_guest_goes_on_from_what_differs() {
    let reference = reference();
    for exits in (0..reference.len()).step_by(3) {
        let mut trace = Vec::new();
        let mut machine = Machine::boot();
        machine.run(&mut trace, exits);
        let saved = machine.save();
        drop(machine);
        let whole = Machine::restore(&saved).save();
        let mut machine = Machine::new();
        machine.memory.write_slice(&saved.memory, RAM).unwrap();
        machine.put_what_differs(&saved.vcpus, &saved.gic);
        let put = machine.save();
        assert!(put.vcpus == whole.vcpus, "vCPUs saved after {exits} exits");
        assert_eq!(put.gic, whole.gic, "saved after {exits} exits");
        machine.run(&mut trace, usize::MAX);
        assert_eq!(trace, reference, "saved after {exits} exits");
    }
}

/// A VM that stands still is not asked for it again.
#[test]
fn what_a_vcpu_is_does_not_change_while_it_runs() {
    const PSCI_VERSION: u64 = 0x6030_0000_0014_0000;
    const PSCI_0_2: u64 = 2;
    let mut machine = Machine::boot();
    machine.run(&mut Vec::new(), 11);
    let mut saved = machine.save();
    for state in &mut saved.vcpus {
        let mut registers = state.registers.iter_mut();
        let version = registers.find(|it| it.id.0 == PSCI_VERSION).unwrap();
        assert_ne!(version.value, PSCI_0_2.to_le_bytes());
        version.value = PSCI_0_2.to_le_bytes().into();
    }
    let mut restored = [(); 2].map(|()| Machine::new());
    restored[0].put(&saved.vcpus, &saved.gic);
    restored[1].put_what_differs(&saved.vcpus, &saved.gic);
    for machine in &mut restored {
        machine.memory.write_slice(&saved.memory, RAM).unwrap();
        machine.run(&mut Vec::new(), usize::MAX);
        assert_eq!(machine.register(0, PSCI_VERSION), PSCI_0_2);
    }
    for machine in std::iter::once(machine).chain(restored) {
        let [now, before] = machine.profiles();
        assert!(now.iter().all(|it| it.identity.len() > 10));
        assert_eq!(now, before);
    }
}

#[test]
fn an_interrupt_is_for_the_vcpu_that_it_was_routed_to() {
    let mut saved = saved();
    let route = saved.gic.routes.last_mut().unwrap();
    assert_ne!(*route, AFFINITIES[1]);
    *route = AFFINITIES[1];
    let whole = Machine::restore(&saved);
    let mut differing = Machine::new();
    differing.put_what_differs(&saved.vcpus, &saved.gic);
    for mut machine in [whole, differing] {
        assert_eq!(machine.save().gic.routes, saved.gic.routes);
    }
}

#[test]
fn a_guest_goes_on_from_a_snapshot() {
    let reference = reference();
    let temporary = std::env::temp_dir();
    fs::create_dir_all(&temporary).unwrap();
    let folder = TempDir::new_in(temporary).unwrap();
    for exits in (0..reference.len()).step_by(5) {
        let path = folder.path().join(exits.to_string());
        let mut trace = Vec::new();
        let mut machine = Machine::boot();
        machine.run(&mut trace, exits);
        let Saved { vcpus, gic, .. } = machine.save();
        let devices = DeviceStates::default();
        let contents = Contents {
            machine: &MachineState {
                vcpus,
                gic,
                devices,
                generation: Generation::default(),
                suspend_call: None,
            },
            time: b"none",
            memory: &machine.memory,
            counter_frequency_hz: 1,
        };
        snapshot::save(&path, &contents, &mut |_| ()).unwrap();
        drop(machine);

        let mut machine = Machine::new();
        let opened = snapshot::open(&path).unwrap();
        let loaded = opened.load(&machine.memory, &mut |_| ()).unwrap();
        machine.put(&loaded.machine.vcpus, &loaded.machine.gic);
        machine.run(&mut trace, usize::MAX);
        assert_eq!(trace, reference, "saved after {exits} exits");
    }
}

#[test]
fn a_state_is_the_same_after_being_restored_and_after_a_file() {
    for saved in [saved(), saved_while_handling_a_level()] {
        let again = Machine::restore(&saved).save();
        assert_eq!(again.gic, saved.gic);
        assert_eq!(again.vcpus, saved.vcpus);
        let json = serde_json::to_string(&(&saved.vcpus, &saved.gic)).unwrap();
        let read: (Vec<VcpuState>, GicState) = serde_json::from_str(&json).unwrap();
        assert_eq!(read, (saved.vcpus, saved.gic));
    }
}

#[test]
fn pending_interrupts_and_power_are_in_the_state() {
    let saved = saved();
    assert_eq!(saved.gic.interrupts, INTERRUPTS);
    assert_eq!(saved.gic.cpus[0].private.latched, [0b110]);
    assert_eq!(saved.gic.shared.latched, [0b01]);
    assert_eq!(saved.gic.shared.lines, [0b10]);
    assert_eq!(saved.vcpus[0].mp_state, KVM_MP_STATE_RUNNABLE);
    assert_eq!(saved.vcpus[1].mp_state, KVM_MP_STATE_STOPPED);

    let saved = saved_while_handling_a_level();
    assert_eq!(saved.gic.cpus[0].private.latched, [0b100]);
    assert_eq!(saved.gic.shared.active, [0b10]);
    assert_eq!(saved.gic.shared.lines, [0]);
    assert!(
        saved.gic.cpus[0]
            .interface
            .ap1r
            .iter()
            .any(|bits| *bits != 0)
    );
}

#[test]
fn firmware_and_identity_come_first_and_time_is_left_out() {
    for vcpu in saved().vcpus {
        let ids: Vec<RegisterId> = vcpu.registers.iter().map(|register| register.id).collect();
        assert!(ids.is_sorted_by_key(|id| id.step()));
        assert_eq!(ids[0].step(), Step::Firmware);
        assert!(ids.iter().any(|id| id.step() == Step::Identity));
        assert!(!ids.iter().any(|id| is_time_register(id.0)));
        for register in &vcpu.registers {
            assert_eq!(register.value.len(), register.id.size());
        }
    }
}

#[test]
fn t4_no_state_sets_a_counter() {
    let mut saved = saved();
    saved.vcpus[0].registers.push(Register {
        id: RegisterId(TIMER_CNT),
        value: (1u64 << 60).to_le_bytes().into(),
    });
    let machine = Machine::restore(&saved);
    let counter = machine.register(0, TIMER_CNT);
    assert!(counter < 1 << 60, "{counter:#x}");
}

#[test]
fn a_pending_system_error_survives() {
    const ID_AA64PFR0: u64 = 0x6030_0000_0013_c020;
    let mut machine = Machine::boot();
    let mut before = machine.save();
    assert_eq!(before.vcpus[0].serror, None);
    // A syndrome comes with RAS.
    let has_ras = machine.register(0, ID_AA64PFR0) >> 28 & 0xf != 0;
    let serror = SError {
        syndrome: has_ras.then_some(0x1234),
    };
    before.vcpus[0].serror = Some(serror);
    let mut machine = Machine::restore(&before);
    let after = machine.save();
    assert_eq!(after.vcpus[0].serror, Some(serror));
    assert_eq!(after.vcpus[1].serror, None);
}

/// Every register that describes the CPU or the firmware, changed by one bit, either is what it was
/// changed to or is refused by name; most are refused.
#[test]
fn a_state_of_another_cpu_is_refused_by_the_name_of_a_register() {
    let saved = saved();
    let state = &saved.vcpus[0];
    let describing = state
        .registers
        .iter()
        .position(|register| register.id.step() == Step::Rest);
    let mut refused = Vec::new();
    for index in 0..describing.unwrap() {
        let mut foreign = state.clone();
        foreign.registers[index].value[0] ^= 1;
        let id = foreign.registers[index].id;
        let machine = Machine::new();
        match foreign.restore(&machine.vcpus[0], &machine.init, None) {
            Ok(_) => assert_eq!(
                machine.register(0, id.0).to_le_bytes(),
                *foreign.registers[index].value
            ),
            Err(VcpuError::Foreign { register, .. }) => {
                assert_eq!(register, id);
                refused.push(id.0 & 0xffff);
            }
            Err(error) => panic!("{id}: {error}"),
        }
    }
    let (midr, pfr0, mmfr0) = (0xc000, 0xc020, 0xc038);
    for register in [midr, pfr0, mmfr0] {
        assert!(refused.contains(&register), "{register:#x} in {refused:x?}");
    }
}

#[test]
fn a_foreign_register_is_named_with_both_values() {
    const MIDR: u64 = 0x6030_0000_0013_c000;
    let mut state = saved().vcpus.remove(0);
    let midr = state
        .registers
        .iter_mut()
        .find(|register| register.id.0 == MIDR);
    midr.unwrap().value = vec![0; 8];
    let machine = Machine::new();
    let error = state
        .restore(&machine.vcpus[0], &machine.init, None)
        .unwrap_err()
        .to_string();
    let here = machine.register(0, MIDR);
    assert_eq!(
        error,
        format!(
            "MIDR_EL1 (0x603000000013c000) was 0x0000000000000000 in the saved vCPU and is \
             {here:#018x} on this host, where KVM does not change it: Invalid argument (os error \
             22); restore it on a host with the same CPU and firmware"
        )
    );
}

#[test]
fn a_register_that_the_host_lacks_is_named() {
    let mut state = saved().vcpus.remove(0);
    // S3_0_C13_C3_7 is nobody's.
    let unknown = RegisterId(0x6030_0000_0013_c69f);
    state.registers.push(Register {
        id: unknown,
        value: vec![0; 8],
    });
    let machine = Machine::new();
    let error = state
        .restore(&machine.vcpus[0], &machine.init, None)
        .unwrap_err();
    assert!(
        matches!(error, VcpuError::NoSuchRegister { register } if register == unknown),
        "{error}"
    );
}

#[test]
fn a_vcpu_with_other_features_is_refused() {
    let mut state = saved().vcpus.remove(0);
    state.features[0] ^= 1 << 3;
    let machine = Machine::new();
    let error = state
        .restore(&machine.vcpus[0], &machine.init, None)
        .unwrap_err();
    assert!(matches!(error, VcpuError::Features { .. }), "{error}");
}

#[test]
fn a_controller_of_another_size_is_refused() {
    let refused = |state: &GicState, machine: &Machine, affinities: &[u64]| {
        let error = state
            .restore(&machine.gic, affinities, &FreshGic::default())
            .unwrap_err();
        assert!(matches!(error, GicError::Shape { .. }), "{error}");
    };
    let state = saved().gic;
    refused(&state, &Machine::with_interrupts(96), &AFFINITIES);
    let machine = Machine::new();
    refused(&state, &machine, &[0]);
    refused(&state, &machine, &[1, 0]);
    for spoil in [
        |state: &mut GicState| state.routes.truncate(1),
        |state: &mut GicState| state.shared.latched.clear(),
        |state: &mut GicState| state.cpus[1].private.priorities.push(0),
        |state: &mut GicState| state.cpus[0].interface.ap1r.clear(),
    ] {
        let mut spoilt = state.clone();
        spoil(&mut spoilt);
        refused(&spoilt, &machine, &AFFINITIES);
    }
    state
        .restore(&machine.gic, &AFFINITIES, &FreshGic::default())
        .unwrap();
}

#[test]
fn what_the_host_s_controller_lacks_is_named() {
    let mut state = saved().gic;
    // More bits of priority and of identification than it has.
    state.cpus[1].interface.ctlr |= 7 << 8 | 7 << 11;
    state.cpus[1].interface.ap0r.resize(4, 0);
    state.cpus[1].interface.ap1r.resize(4, 0);
    let machine = Machine::new();
    let error = state
        .restore(&machine.gic, &AFFINITIES, &FreshGic::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot set ICC_CTLR_EL1 of the GICv3 to 0x"),
        "{error}"
    );
}

/// A timer whose time comes while its VM is stopped raises its line. The VM that is restored has a
/// frozen counter, by which the time has not come. Where KVM emulates the timer (hosts without VHE,
/// or started with `kvm-arm.mode=nvhe`), a line that was restored high would stay so.
#[test]
fn a_timer_s_line_is_not_restored() {
    const PPI: u32 = 30;
    let mut machine = Machine::boot();
    machine.set_counter_offset(1 << 40);
    machine.set_register(0, PTIMER_CVAL, 0);
    machine.set_register(0, PTIMER_CTL, 1);
    machine.enter_and_leave(0);
    assert_eq!(machine.private_lines(0), 1 << PPI);
    let saved = machine.save();

    let mut machine = Machine::restore(&saved);
    machine.set_counter_offset(1 << 40);
    machine.set_register(0, PTIMER_CVAL, u64::MAX);
    machine.set_register(0, PTIMER_CTL, 1);
    machine.enter_and_leave(0);
    assert_eq!(machine.private_lines(0), 0);

    // Nor is it lost where the time has come.
    machine.set_register(0, PTIMER_CVAL, 0);
    machine.enter_and_leave(0);
    assert_eq!(machine.private_lines(0), 1 << PPI);
}
