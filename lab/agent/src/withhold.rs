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

/// An ioctl that the kernel answers as if it had never had what is asked for.
pub struct Withheld {
    request: u64,
    /// The one third argument of which this holds; none for all.
    argument: Option<u64>,
    /// What it is answered; 0 is no error but the answer itself.
    error: u32,
}

/// Attributes of VMs and vCPUs, so the SMCCC filter and a place for stolen time:
/// `_IOW(KVMIO, 0xe3, struct kvm_device_attr)` of `linux/kvm.h` fails with `ENXIO`.
pub const ATTRIBUTES: [Withheld; 1] = [Withheld {
    request: 0x4018_aee3,
    argument: None,
    error: libc::ENXIO.cast_unsigned(),
}];

/// The offset for all counters of a VM: `_IO(KVMIO, 0x03)`, `KVM_CHECK_EXTENSION`, says 0 to
/// `KVM_CAP_COUNTER_OFFSET`, and `_IOW(KVMIO, 0xb5, struct kvm_arm_counter_offset)` is unknown.
pub const COUNTER_OFFSET: [Withheld; 2] = [
    Withheld {
        request: 0xae03,
        argument: Some(227),
        error: 0,
    },
    Withheld {
        request: 0x4010_aeb5,
        argument: None,
        error: libc::ENOTTY.cast_unsigned(),
    },
];

/// Becomes the program, for which the kernel has none of this.
pub fn from(argv: &[String], withheld: &[Withheld]) -> Result<Infallible> {
    let [program, arguments @ ..] = argv else {
        bail!("no program to withhold anything from: give one");
    };
    for ioctl in withheld {
        apply_filter(&ioctl.filter()?).context("cannot withhold a system call")?;
    }
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {program}"))
}

impl Withheld {
    fn filter(&self) -> Result<BpfProgram> {
        let is =
            |index, length, value| SeccompCondition::new(index, length, SeccompCmpOp::Eq, value);
        let mut conditions = vec![is(1, SeccompCmpArgLen::Dword, self.request)?];
        if let Some(argument) = self.argument {
            conditions.push(is(2, SeccompCmpArgLen::Qword, argument)?);
        }
        let rules = BTreeMap::from([(libc::SYS_ioctl, vec![SeccompRule::new(conditions)?])]);
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(self.error),
            ARCH.try_into()?,
        )?;
        Ok(filter.try_into()?)
    }
}
