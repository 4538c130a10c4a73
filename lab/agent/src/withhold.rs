//! A program that finds less than its host has: the kernel itself says that it has no such thing.

use anyhow::{Context, Result, bail};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::env::consts::ARCH;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `_IOW(KVMIO, 0xe3, struct kvm_device_attr)` of `linux/kvm.h`.
const KVM_HAS_DEVICE_ATTR: u64 = 0x4018_aee3;

/// Becomes the program, for which no VM and no vCPU has attributes, so no SMCCC filter and no place
/// for stolen time: as on a kernel that never had them, asking fails with `ENXIO`.
pub fn attributes_from(argv: &[String]) -> Result<Infallible> {
    let [program, arguments @ ..] = argv else {
        bail!("no program to withhold attributes from: give one");
    };
    apply_filter(&filter()?).context("cannot withhold a system call")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {program}"))
}

fn filter() -> Result<BpfProgram> {
    let asks = SeccompCondition::new(
        1,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        KVM_HAS_DEVICE_ATTR,
    )?;
    let rules = BTreeMap::from([(libc::SYS_ioctl, vec![SeccompRule::new(vec![asks])?])]);
    let error = u32::try_from(libc::ENXIO).expect("a small number");
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(error),
        ARCH.try_into()?,
    )?;
    Ok(filter.try_into()?)
}
