//! The whole machine, before its vCPUs have threads: who may let it go on, and where it may go.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use clap::Parser;
use kvm_ioctls::VcpuFd;
use pvtime::host::Cause;
use pvtime_kvm::VcpuTime;
use pvtime_vmm::cli::{Cli, Command};
use pvtime_vmm::generation::Generation;
use pvtime_vmm::machine::arriving::answer;
use pvtime_vmm::machine::{Blank, Machine, MachineConfig};
use pvtime_vmm::snapshot::{self, Contents, Loaded, OpenError};
use pvtime_vmm::state::MachineState;
use tempfile::TempDir;

fn config(cpus: u64) -> MachineConfig {
    let cli = Cli::parse_from(["pvtime", "run", "--kernel", "none"]);
    let Command::Run(args) = cli.command else {
        unreachable!("it says run")
    };
    MachineConfig {
        memory_mib: 1,
        cpus,
        time: args.vm.time,
        live_physical_time: None,
        paused_time: false,
        console: Box::new(io::sink()),
        serial: Box::new(io::sink()),
    }
}

fn blank() -> Blank {
    Blank::prepare(config(1)).unwrap()
}

/// A machine whose vCPU has no thread.
fn machine() -> Machine {
    blank().finish(Generation::default(), None).unwrap()
}

#[test]
fn what_kvm_lacks_is_known_before_anything_arrives() {
    let mut offer = machine().offer("web", true).unwrap();
    blank().try_out(&offer).unwrap();
    offer.system_suspend = true;
    blank().try_out(&offer).unwrap();
    assert_eq!(answer(&offer).refusals, [""; 0]);
    // The revision.
    offer.gic_implementation ^= 0xf000;
    let refusals = answer(&offer).refusals;
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert!(refusals[0].contains("interrupt controller"), "{refusals:?}");
}

/// A snapshot of a machine with two vCPUs, all of whose checksums are right.
struct Snapshots {
    folder: TempDir,
    loaded: Loaded,
    memory: Blank,
    counter_frequency_hz: u64,
}

impl Snapshots {
    fn new() -> Self {
        let temporary = std::env::temp_dir();
        fs::create_dir_all(&temporary).unwrap();
        let folder = TempDir::new_in(temporary).unwrap();
        let path = folder.path().join("first");
        let machine = Blank::prepare(config(2)).unwrap();
        let mut machine = machine.finish(Generation::default(), None).unwrap();
        let vcpus = machine.take_vcpus();
        let threads = Threads::start(&machine, vcpus);
        machine.time.start().unwrap();
        machine.time.pause(Cause::Snapshot).unwrap();
        machine.save(&path, &mut |_| ()).unwrap();
        drop(threads);
        let (memory, opened) = (blank(), snapshot::open(&path).unwrap());
        let counter_frequency_hz = opened.facts().counter_frequency_hz;
        Self {
            folder,
            loaded: opened.load(memory.memory(), &mut |_| ()).unwrap(),
            memory,
            counter_frequency_hz,
        }
    }

    /// Restores what it becomes by a change, out of a file of memory in which a byte is another one.
    fn restore(&self, name: &str, change: impl FnOnce(&mut MachineState)) -> OpenError {
        let path = self.folder.path().join(name);
        let mut machine = self.loaded.machine.clone();
        change(&mut machine);
        let contents = Contents {
            machine: &machine,
            time: &self.loaded.time,
            memory: self.memory.memory(),
            counter_frequency_hz: self.counter_frequency_hz,
        };
        snapshot::save(&path, &contents, &mut |_| ()).unwrap();
        let file = OpenOptions::new().write(true).open(path.join("memory"));
        file.unwrap().write_all_at(&[1], 0).unwrap();
        let opened = snapshot::open(&path).unwrap();
        let restored = Machine::restore(config(2), opened, &mut |_| ());
        restored.err().unwrap().downcast().unwrap()
    }
}

/// Memory that is damaged is what is said where memory is looked at.
#[test]
fn a_snapshot_of_other_hardware_is_refused_before_its_memory_is_read() {
    const MIDR: u64 = 0x6030_0000_0013_c000;
    let saved = Snapshots::new();
    let error = saved.restore("same", |_| ());
    assert!(matches!(error, OpenError::DamagedMemory { .. }), "{error}");

    let error = saved.restore("cpu", |machine| {
        let mut registers = machine.vcpus[1].registers.iter_mut();
        registers.find(|it| it.id.0 == MIDR).unwrap().value = vec![0; 8];
    });
    let OpenError::Foreign { reasons, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    let text = error.to_string();
    for part in [
        "cpu cannot go on here, for 1 reason(s), first: ",
        "MIDR_EL1 (0x603000000013c000) was 0x0000000000000000 in the saved vCPU and is 0x",
        "restore it on a host with the same CPU",
    ] {
        assert!(text.contains(part), "{text}");
    }

    // The revision.
    let error = saved.restore("gic", |machine| machine.gic.implementation ^= 0xf000);
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert!(
        error.to_string().contains("interrupt controller"),
        "{error}"
    );
}

/// Runs vCPUs until the machine is dropped.
struct Threads<'a> {
    machine: &'a Machine,
    threads: Vec<JoinHandle<()>>,
}

impl<'a> Threads<'a> {
    fn start(machine: &'a Machine, vcpus: Vec<(VcpuFd, VcpuTime)>) -> Self {
        let (bound, all_bound) = channel();
        let threads = vcpus.into_iter().map(|(mut vcpu, time)| {
            let bound = bound.clone();
            thread::spawn(move || {
                let running = time.bind_thread().unwrap();
                bound.send(()).unwrap();
                // There is no memory where it begins: it aborts for ever.
                while running.run(&mut vcpu).is_some() {}
            })
        });
        let threads: Vec<_> = threads.collect();
        for _ in &threads {
            all_bound.recv().unwrap();
        }
        Self { machine, threads }
    }
}

impl Drop for Threads<'_> {
    fn drop(&mut self) {
        self.machine.time.shut_down();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn the_end_of_a_sleep_lets_no_vm_go_on_that_another_host_may_run() {
    let mut machine = machine();
    let vcpus = machine.take_vcpus();
    let threads = Threads::start(&machine, vcpus);
    machine.time.start().unwrap();
    machine.prepare_sleep().unwrap();
    machine.ownership.give_away();
    for refused in [machine.finish_sleep(), machine.resume()] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("the VM is in doubt"), "{error}");
        assert!(!machine.time.is_running());
    }
    machine.ownership.take_over().unwrap();
    machine.finish_sleep().unwrap();
    assert!(machine.time.is_running());
    drop(threads);
}
