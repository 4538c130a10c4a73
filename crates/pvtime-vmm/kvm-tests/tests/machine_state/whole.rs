//! The whole machine, before its vCPUs have threads: who may let it go on, and where it may go.

use std::io;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use clap::Parser;
use kvm_ioctls::VcpuFd;
use pvtime_kvm::VcpuTime;
use pvtime_vmm::cli::{Cli, Command};
use pvtime_vmm::generation::Generation;
use pvtime_vmm::machine::{Blank, Machine, MachineConfig};

fn blank() -> Blank {
    let cli = Cli::parse_from(["pvtime", "run", "--kernel", "none"]);
    let Command::Run(args) = cli.command else {
        unreachable!("it says run")
    };
    let config = MachineConfig {
        memory_mib: 1,
        cpus: 1,
        time: args.vm.time,
        live_physical_time: None,
        paused_time: false,
        console: Box::new(io::sink()),
        serial: Box::new(io::sink()),
    };
    Blank::prepare(config).unwrap()
}

/// A machine whose vCPU has no thread.
fn machine() -> Machine {
    blank().finish(Generation::default(), None, None).unwrap()
}

#[test]
fn what_kvm_lacks_is_known_before_anything_arrives() {
    let mut offer = machine().offer("web", true).unwrap();
    blank().try_out(&offer).unwrap();
    offer.system_suspend = true;
    blank().try_out(&offer).unwrap();
    // The revision.
    offer.gic_implementation ^= 0xf000;
    let error = blank().try_out(&offer).unwrap_err();
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
