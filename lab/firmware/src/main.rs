//! What an emulated host with `FEAT_ECV` has at EL3: it lets EL2 have the physical counter's offset.
//!
//! Under QEMU `CNTPOFF_EL2` counts for something only where `SCR_EL3.ECVEn` is set, which nobody does
//! on a machine without EL3, and which QEMU does not do either on one with EL3 whose kernel it loads
//! itself: it stands in for firmware, but sets other bits. This sets that one. Everything else stays
//! QEMU's, so that no list of features is kept here.
//!
//! QEMU's loader device starts the first CPU here, at EL3. It puts a handler where `VBAR_EL3`
//! points after a reset: at 0, in flash that only the secure world sees and that has no file, so that
//! it is written by flash commands. Then it has the second CPU start it anew through PSCI, which QEMU
//! answers, with all that a kernel needs at EL2, and both go on as if this had not been. The first access of each CPU
//! to `CNTPOFF_EL2` traps to the handler, which sets the bit and lets it try again; after a CPU was off
//! the same again.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("el3: this is firmware of the lab; build it with --target aarch64-unknown-none");
    std::process::ExitCode::FAILURE
}
