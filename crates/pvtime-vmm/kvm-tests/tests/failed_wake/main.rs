//! A guest that suspended itself, under the whole VMM, where KVM refuses to wake it: it is suspended still,
//! and wakes as it asked for at the next try.
//!
//! KVM is made to refuse from outside of the VMM's code: the number by which it knows the vCPU is given to a
//! file that is none, and back. So no other test is in this process. Needs arm64 KVM.
#![cfg(target_arch = "aarch64")]
#![expect(
    unsafe_code,
    reason = "the guest's program is taken between two symbols, and files by their numbers"
)]

use std::arch::global_asm;
use std::fs;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use clap::Parser;
use pvtime_vmm::api::answers::{Events, Instance, VmState};
use pvtime_vmm::api::client::{Client, Error};
use pvtime_vmm::api::requests::{ChangeState, WantedState};
use pvtime_vmm::boot::Boot;
use pvtime_vmm::cli::{Cli, Command};
use pvtime_vmm::run;
use tempfile::TempDir;

global_asm!(include_str!("guest.s"));

/// The guest's `Image`.
fn image() -> &'static [u8] {
    unsafe extern "C" {
        static sleeping_guest: u8;
        static sleeping_guest_end: u8;
    }
    let (start, end) = (&raw const sleeping_guest, &raw const sleeping_guest_end);
    let bytes = end.addr() - start.addr();
    // SAFETY: the assembler put the program between the two, where nobody writes.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Returns when the VM is in this state.
fn await_state(client: &Client, state: VmState) {
    let limit = Instant::now() + LIMIT;
    let is_reached = || matches!(client.get::<Instance>("/"), Ok(it) if it.state == state);
    while !is_reached() {
        assert!(Instant::now() < limit, "the VM is not {state}");
        sleep(Duration::from_millis(10));
    }
}

/// What was done to the VM's time.
fn events(client: &Client) -> Vec<String> {
    let events: Events = client.get("/time/events").unwrap();
    events.events.into_iter().map(|it| it.event).collect()
}

fn resume(client: &Client) -> Result<(), Error> {
    let state = WantedState::Resumed;
    client.change("PATCH", "/vm", &ChangeState { state })
}

/// The number of this process's only vCPU of that index.
fn number_of_vcpu(index: usize) -> RawFd {
    let name = format!("anon_inode:kvm-vcpu:{index}");
    let of = |entry: fs::DirEntry| {
        let is_vcpu = fs::read_link(entry.path()).is_ok_and(|it| it == Path::new(&name));
        is_vcpu.then(|| entry.file_name().to_str()?.parse().ok())?
    };
    let files = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let found: Vec<RawFd> = files.filter_map(of).collect();
    let [number] = found[..] else {
        panic!("this process has one VM with such a vCPU: {found:?}")
    };
    number
}

/// Has a file of this process be this one from now on, whoever has its number.
fn replace(number: RawFd, file: BorrowedFd) {
    // SAFETY: the number is a file's, and remains one.
    let mut its = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup2(file, &mut its).unwrap();
}

#[test]
fn a_guest_that_could_not_be_woken_wakes_at_the_next_try() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("Image"), image()).unwrap();
    let cli = Cli::parse_from([
        "pvtime",
        "run",
        "--kernel",
        &path("Image"),
        "--suspend-guest",
        "on",
        "--console",
        "off",
        "--serial",
        &path("serial"),
        "--api-socket",
        &path("socket"),
    ]);
    let Command::Run(args) = cli.command else {
        unreachable!("it says run")
    };
    let boot = Boot::new(&args.kernel, None, &args.cmdline, args.memory).unwrap();
    let vm = spawn(move || run::run(&args, boot).unwrap());
    let client = Client::new(Path::new(&path("socket")));
    await_state(&client, VmState::Suspended);
    let asleep = events(&client);

    let number = number_of_vcpu(0);
    // SAFETY: the VMM has it open until its guest is off.
    let vcpu = unsafe { BorrowedFd::borrow_raw(number) };
    let vcpu = vcpu.try_clone_to_owned().unwrap();
    let nothing = fs::File::open("/dev/null").unwrap();
    replace(number, nothing.as_fd());
    let refused = resume(&client);
    replace(number, vcpu.as_fd());
    drop(vcpu);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("cannot wake the guest"), "{refused}");
    await_state(&client, VmState::Suspended);
    assert_eq!(events(&client), asleep, "nothing was done to its time");
    assert_eq!(fs::read_to_string(path("serial")).unwrap(), "");

    resume(&client).unwrap();
    let limit = Instant::now() + LIMIT;
    while !vm.is_finished() {
        assert!(Instant::now() < limit, "the guest did not wake");
        sleep(Duration::from_millis(10));
    }
    let status = vm.join().unwrap();
    assert_eq!(format!("{status:?}"), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(fs::read_to_string(path("serial")).unwrap(), "w");
}
