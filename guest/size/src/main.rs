//! How much code the guest half of pvtime is.
//!
//! Built for `aarch64-unknown-none` this is a program that uses every reader; built for the
//! machine at hand it measures that program and fails if its code is larger than the limit.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bare_metal;
#[cfg(not(target_os = "none"))]
mod measure;

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    measure::main()
}
