//! The bare-metal test guest.
//!
//! It is an arm64 `Image` that a VMM boots where a kernel would be: at EL1, with a device tree. It
//! turns on its MMU, caches and CPUs, finds every time interface that there is through
//! `pvtime::guest` alone, keeps clocks, timers and a pattern in memory, and tells whoever runs it
//! what it saw, in the messages of `guest-protocol` over a serial port. `docs/guests.md` is its
//! manual.
//!
//! Every CPU runs one loop (`work`): errands that the first CPU has for it, then a slice of its
//! workload. The first CPU answers requests besides. Interrupts only count and wake.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare;
#[cfg(any(target_os = "none", test))]
mod cmdline;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!(
        "el1: this is a bare-metal guest; build it with --target aarch64-unknown-none and boot it \
         with `pvtime run --kernel`"
    );
    std::process::ExitCode::FAILURE
}
