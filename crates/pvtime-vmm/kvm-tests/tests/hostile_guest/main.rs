//! A guest that writes where it can only read, under the whole VMM. Needs arm64 KVM.
#![cfg(target_arch = "aarch64")]
#![expect(
    unsafe_code,
    reason = "the guest's program is taken between two symbols"
)]

use std::arch::global_asm;
use std::fs;
use std::process::ExitCode;

use clap::Parser;
use pvtime_vmm::boot::Boot;
use pvtime_vmm::cli::{Cli, Command};
use pvtime_vmm::run;
use tempfile::TempDir;

global_asm!(include_str!("guest.s"));

/// The guest's `Image`.
fn image() -> &'static [u8] {
    unsafe extern "C" {
        static hostile_guest: u8;
        static hostile_guest_end: u8;
    }
    let (start, end) = (&raw const hostile_guest, &raw const hostile_guest_end);
    let bytes = end.addr() - start.addr();
    // SAFETY: the assembler put the program between the two, where nobody writes.
    unsafe { std::slice::from_raw_parts(start, bytes) }
}

/// For each block, instructions that KVM cannot decode and so must be told what to do with: pairs and
/// those that write their base back.
const ABORTS: u8 = 3 * 4;

#[test]
fn b3_writes_into_time_blocks_harm_nobody() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("Image"), image()).unwrap();
    let cli = Cli::parse_from([
        "pvtime",
        "run",
        "--kernel",
        &path("Image"),
        "--live-physical-time",
        "1000000000",
        "--paused-time",
        "on",
        "--console",
        "off",
        "--serial",
        &path("serial"),
    ]);
    let Command::Run(args) = cli.command else {
        unreachable!("it says run")
    };
    let boot = Boot::new(&args.kernel, None, &args.cmdline, args.memory).unwrap();
    let status = run::run(&args, boot).unwrap();
    assert_eq!(format!("{status:?}"), format!("{:?}", ExitCode::SUCCESS));
    let said = fs::read_to_string(path("serial")).unwrap();
    let aborts = char::from(b'a' + ABORTS);
    assert_eq!(
        said,
        format!("...k{aborts}\n"),
        "blocks unchanged, aborts taken"
    );
}
