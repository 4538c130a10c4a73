//! A small KVM virtual machine monitor whose clocks are right: the `pvtime` command.
//!
//! It runs arm64 Linux on arm64 hosts. On others its parts that need no KVM can be built and
//! tested, and `pvtime run` says that it cannot.
//!
//! The VMM holds no clock logic of its own: a VM's time is `pvtime_kvm::VmTime`'s.

pub mod api;
pub mod boot;
pub mod bus;
pub mod button;
pub mod cli;
pub mod console;
pub mod ctl;
pub mod devices;
mod entropy;
pub mod event;
pub mod failure;
pub mod fdt;
pub mod generation;
pub mod history;
pub mod kernel;
pub mod kvm;
pub mod layout;
pub mod migrate;
pub mod migration;
pub mod pl061;
pub mod probe;
pub mod snapshot;
pub mod state;
pub mod suspension;
mod table;

#[cfg(target_arch = "aarch64")]
mod attendance;
#[cfg(target_arch = "aarch64")]
mod input;
#[cfg(target_arch = "aarch64")]
mod leaving;
#[cfg(target_arch = "aarch64")]
pub mod machine;
#[cfg(target_arch = "aarch64")]
mod receive;
#[cfg(target_arch = "aarch64")]
pub mod run;
#[cfg(target_arch = "aarch64")]
mod status;
#[cfg(target_arch = "aarch64")]
mod vcpu;

#[cfg(not(target_arch = "aarch64"))]
pub mod run {
    //! `pvtime run` where there is no arm64 KVM.

    use std::process::ExitCode;

    use anyhow::{Result, bail};

    use crate::boot::Boot;
    use crate::cli::{ReceiveArgs, RestoreArgs, RunArgs};
    use crate::snapshot::Snapshot;

    /// # Errors
    ///
    /// Always.
    pub fn run(_: &RunArgs, _: Boot) -> Result<ExitCode> {
        no_host("run")
    }

    /// # Errors
    ///
    /// Always.
    pub fn restore(_: &RestoreArgs, _: Snapshot) -> Result<ExitCode> {
        no_host("restore")
    }

    /// # Errors
    ///
    /// Always.
    pub fn receive(_: &ReceiveArgs) -> Result<ExitCode> {
        no_host("receive")
    }

    fn no_host(command: &str) -> Result<ExitCode> {
        bail!(
            "this is a build for {}, and pvtime {command} needs an arm64 host; on other machines \
             `cargo xtask lab` makes one",
            std::env::consts::ARCH
        )
    }
}
