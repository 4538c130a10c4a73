//! What this project and the kernel must agree on.

use crate::headers::Headers;
use crate::structures::Field;
use core::mem::offset_of;
use pvtime::abi::smccc::{CallResult, Dialect, FunctionId, PvTimeCall, Version};
use pvtime::abi::stolen_time::StolenTimeLayout;
use pvtime::abi::vmclock::{
    self, ClockStatus, CounterId, LeapIndicator, SmearingHint, TimeType, VmClock, VmClockLayout,
};

/// A difference between this project and the headers, or something that the headers lack.
pub type Difference = String;

/// One thing that was compared.
#[derive(Debug)]
pub struct Check {
    /// Its name in the headers.
    pub name: &'static str,
    /// What is wrong with it.
    pub differences: Vec<Difference>,
}

/// Compares everything.
pub fn run(headers: &Headers) -> Vec<Check> {
    let mut checks = vec![vmclock_structure(headers), stolen_time_structure(headers)];
    let structures = KVM_STRUCTURES.iter();
    checks.extend(structures.map(|(name, size, fields)| structure(headers, name, *size, fields)));
    let constants = vmclock_constants()
        .into_iter()
        .chain(smccc_constants())
        .chain(KVM_CONSTANTS);
    checks.extend(constants.map(|(name, ours)| constant(headers, name, ours)));
    checks
}

fn constant(headers: &Headers, name: &'static str, ours: i128) -> Check {
    let differences = match headers.constant(name) {
        Ok(theirs) if theirs == ours => vec![],
        Ok(theirs) => vec![format!("here {ours:#x}, in the headers {theirs:#x}")],
        Err(error) => vec![format!("{error:#}")],
    };
    Check { name, differences }
}

/// Name, offset and size of a member as this project has it.
type OwnField = (&'static str, usize, usize);

fn structure(headers: &Headers, name: &'static str, size: usize, fields: &[OwnField]) -> Check {
    let differences = match headers.structure(name) {
        Ok(theirs) => {
            let mut differences = compare(fields, &theirs.fields);
            if theirs.size != size {
                differences.push(format!("size here {size}, in the headers {}", theirs.size));
            }
            differences
        }
        Err(error) => vec![format!("{error:#}")],
    };
    Check { name, differences }
}

fn compare(ours: &[OwnField], theirs: &[Field]) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (name, offset, size) in ours {
        match theirs.iter().find(|field| field.name == *name) {
            Some(field) if (field.offset, field.size) == (*offset, *size) => {}
            Some(field) => differences.push(format!(
                "{name}: here {size} bytes at {offset:#x}, in the headers {} at {:#x}",
                field.size, field.offset
            )),
            None => differences.push(format!("{name}: not in the headers")),
        }
    }
    for field in theirs
        .iter()
        .filter(|field| !ours.iter().any(|own| own.0 == field.name))
    {
        differences.push(format!(
            "{}: only in the headers, at {:#x}",
            field.name, field.offset
        ));
    }
    differences
}

/// The members of a layout type, whose names are those of the header unless given.
macro_rules! own_fields {
    ($layout:ty: $($field:ident $(as $name:literal)?),+ $(,)?) => {
        [$({
            const fn size<T, M>(_: fn(&T) -> &M) -> usize {
                size_of::<M>()
            }
            let name = [$($name,)? stringify!($field)][0];
            let size = size(|layout: &$layout| &layout.$field);
            (name, offset_of!($layout, $field), size)
        }),+]
    };
}

fn vmclock_structure(headers: &Headers) -> Check {
    let fields = own_fields!(VmClockLayout:
        magic, size, version, counter_id, time_type, seq_count, disruption_marker, flags, pad,
        clock_status, leap_second_smearing_hint, tai_offset_sec, leap_indicator,
        counter_period_shift, counter_value, counter_period_frac_sec,
        counter_period_esterror_rate_frac_sec, counter_period_maxerror_rate_frac_sec, time_sec,
        time_frac_sec, time_esterror_nanosec, time_maxerror_nanosec, vm_generation_counter,
    );
    structure(headers, "vmclock_abi", size_of::<VmClockLayout>(), &fields)
}

fn stolen_time_structure(headers: &Headers) -> Check {
    let fields = own_fields!(StolenTimeLayout:
        revision, attributes, stolen_ns as "stolen_time", padding,
    );
    structure(
        headers,
        "pvclock_vcpu_stolen_time",
        size_of::<StolenTimeLayout>(),
        &fields,
    )
}

type Constant = (&'static str, i128);

fn vmclock_constants() -> Vec<Constant> {
    let time_type = |time_type| {
        i128::from(
            VmClock {
                time_type,
                ..VmClock::without_time(0)
            }
            .layout()
            .time_type,
        )
    };
    vec![
        ("VMCLOCK_MAGIC", vmclock::MAGIC.into()),
        ("VMCLOCK_COUNTER_ARM_VCNT", CounterId::ARM_VCNT.0.into()),
        ("VMCLOCK_COUNTER_X86_TSC", CounterId::X86_TSC.0.into()),
        ("VMCLOCK_COUNTER_INVALID", CounterId::INVALID.0.into()),
        ("VMCLOCK_TIME_UTC", time_type(TimeType::Utc)),
        ("VMCLOCK_TIME_TAI", time_type(TimeType::Tai)),
        ("VMCLOCK_TIME_MONOTONIC", time_type(TimeType::Monotonic)),
        (
            "VMCLOCK_FLAG_TAI_OFFSET_VALID",
            vmclock::FLAG_TAI_OFFSET_VALID.into(),
        ),
        (
            "VMCLOCK_FLAG_DISRUPTION_SOON",
            vmclock::FLAG_DISRUPTION_SOON.into(),
        ),
        (
            "VMCLOCK_FLAG_DISRUPTION_IMMINENT",
            vmclock::FLAG_DISRUPTION_IMMINENT.into(),
        ),
        (
            "VMCLOCK_FLAG_PERIOD_ESTERROR_VALID",
            vmclock::FLAG_PERIOD_ESTERROR_VALID.into(),
        ),
        (
            "VMCLOCK_FLAG_PERIOD_MAXERROR_VALID",
            vmclock::FLAG_PERIOD_MAXERROR_VALID.into(),
        ),
        (
            "VMCLOCK_FLAG_TIME_ESTERROR_VALID",
            vmclock::FLAG_TIME_ESTERROR_VALID.into(),
        ),
        (
            "VMCLOCK_FLAG_TIME_MAXERROR_VALID",
            vmclock::FLAG_TIME_MAXERROR_VALID.into(),
        ),
        (
            "VMCLOCK_FLAG_TIME_MONOTONIC",
            vmclock::FLAG_TIME_MONOTONIC.into(),
        ),
        (
            "VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT",
            vmclock::FLAG_VM_GEN_COUNTER_PRESENT.into(),
        ),
        (
            "VMCLOCK_FLAG_NOTIFICATION_PRESENT",
            vmclock::FLAG_NOTIFICATION_PRESENT.into(),
        ),
        ("VMCLOCK_STATUS_UNKNOWN", ClockStatus::UNKNOWN.0.into()),
        (
            "VMCLOCK_STATUS_INITIALIZING",
            ClockStatus::INITIALIZING.0.into(),
        ),
        (
            "VMCLOCK_STATUS_SYNCHRONIZED",
            ClockStatus::SYNCHRONIZED.0.into(),
        ),
        (
            "VMCLOCK_STATUS_FREERUNNING",
            ClockStatus::FREERUNNING.0.into(),
        ),
        (
            "VMCLOCK_STATUS_UNRELIABLE",
            ClockStatus::UNRELIABLE.0.into(),
        ),
        ("VMCLOCK_SMEARING_STRICT", SmearingHint::STRICT.0.into()),
        (
            "VMCLOCK_SMEARING_NOON_LINEAR",
            SmearingHint::NOON_LINEAR.0.into(),
        ),
        ("VMCLOCK_SMEARING_UTC_SLS", SmearingHint::UTC_SLS.0.into()),
        ("VMCLOCK_LEAP_NONE", LeapIndicator::NONE.0.into()),
        ("VMCLOCK_LEAP_PRE_POS", LeapIndicator::PRE_POS.0.into()),
        ("VMCLOCK_LEAP_PRE_NEG", LeapIndicator::PRE_NEG.0.into()),
        ("VMCLOCK_LEAP_POS", LeapIndicator::POS.0.into()),
        ("VMCLOCK_LEAP_POST_POS", LeapIndicator::POST_POS.0.into()),
        ("VMCLOCK_LEAP_POST_NEG", LeapIndicator::POST_NEG.0.into()),
    ]
}

fn smccc_constants() -> Vec<Constant> {
    let id = |call| {
        let id = Dialect::Final.id(call);
        i128::from(id.expect("the final dialect has the kernel's calls").0)
    };
    vec![
        (
            "ARM_SMCCC_VERSION_FUNC_ID",
            FunctionId::SMCCC_VERSION.0.into(),
        ),
        (
            "ARM_SMCCC_ARCH_FEATURES_FUNC_ID",
            FunctionId::SMCCC_ARCH_FEATURES.0.into(),
        ),
        ("ARM_SMCCC_HV_PV_TIME_FEATURES", id(PvTimeCall::Features)),
        ("ARM_SMCCC_HV_PV_TIME_ST", id(PvTimeCall::StolenTime)),
        ("ARM_SMCCC_VERSION_1_1", Version::V1_1.emit().0.into()),
        ("SMCCC_RET_SUCCESS", CallResult::SUCCESS.as_64_bit().into()),
        (
            "SMCCC_RET_NOT_SUPPORTED",
            CallResult::NOT_SUPPORTED.as_64_bit().into(),
        ),
    ]
}

/// What the host side asks KVM for by number: capabilities, ioctls, attributes and registers.
///
/// They are written out, because the crates that have them are built for arm64 alone.
const KVM_CONSTANTS: [Constant; 39] = [
    ("KVM_CAP_IMMEDIATE_EXIT", 136),
    ("KVM_CAP_STEAL_TIME", 187),
    ("KVM_CAP_PTP_KVM", 198),
    ("KVM_CAP_SYSTEM_EVENT_DATA", 215),
    ("KVM_CAP_ARM_SYSTEM_SUSPEND", 216),
    ("KVM_CAP_COUNTER_OFFSET", 227),
    ("KVM_ENABLE_CAP", 0x4068_AEA3),
    ("KVM_GET_ONE_REG", 0x4010_AEAB),
    ("KVM_SET_ONE_REG", 0x4010_AEAC),
    ("KVM_ARM_SET_COUNTER_OFFSET", 0x4010_AEB5),
    ("KVM_SET_DEVICE_ATTR", 0x4018_AEE1),
    ("KVM_GET_DEVICE_ATTR", 0x4018_AEE2),
    ("KVM_HAS_DEVICE_ATTR", 0x4018_AEE3),
    ("KVM_EXIT_HYPERCALL", 3),
    ("KVM_EXIT_INTR", 10),
    ("KVM_EXIT_SYSTEM_EVENT", 24),
    ("KVM_SYSTEM_EVENT_WAKEUP", 4),
    ("KVM_SYSTEM_EVENT_SUSPEND", 5),
    ("KVM_MP_STATE_SUSPENDED", 10),
    ("KVM_HYPERCALL_EXIT_SMC", 1),
    ("KVM_ARM_VM_SMCCC_CTRL", 0),
    ("KVM_ARM_VM_SMCCC_FILTER", 0),
    ("KVM_SMCCC_FILTER_HANDLE", 0),
    ("KVM_SMCCC_FILTER_DENY", 1),
    ("KVM_SMCCC_FILTER_FWD_TO_USER", 2),
    ("KVM_ARM_VCPU_TIMER_CTRL", 1),
    ("KVM_ARM_VCPU_TIMER_IRQ_VTIMER", 0),
    ("KVM_ARM_VCPU_TIMER_IRQ_PTIMER", 1),
    ("KVM_ARM_VCPU_PVTIME_CTRL", 2),
    ("KVM_ARM_VCPU_PVTIME_IPA", 0),
    // The identifiers of the virtual counter and its compare value are swapped for ever.
    ("KVM_REG_ARM_TIMER_CTL", 0x6030_0000_0013_DF19),
    ("KVM_REG_ARM_TIMER_CVAL", 0x6030_0000_0013_DF02),
    ("KVM_REG_ARM_TIMER_CNT", 0x6030_0000_0013_DF1A),
    ("KVM_REG_ARM_PTIMER_CTL", 0x6030_0000_0013_DF11),
    ("KVM_REG_ARM_PTIMER_CVAL", 0x6030_0000_0013_DF12),
    ("KVM_REG_ARM_PTIMER_CNT", 0x6030_0000_0013_DF01),
    ("KVM_REG_ARM_STD_HYP_BMAP", 0x6030_0000_0016_0001),
    ("KVM_REG_ARM_STD_HYP_BIT_PV_TIME", 0),
    ("KVM_REG_ARM_PSCI_VERSION", 0x6030_0000_0014_0000),
];

/// What KVM takes by address.
const KVM_STRUCTURES: [(&str, usize, &[OwnField]); 4] = [
    (
        "kvm_arm_counter_offset",
        16,
        &[("counter_offset", 0, 8), ("reserved", 8, 8)],
    ),
    (
        "kvm_smccc_filter",
        24,
        &[
            ("base", 0, 4),
            ("nr_functions", 4, 4),
            ("action", 8, 1),
            ("pad", 9, 15),
        ],
    ),
    (
        "kvm_device_attr",
        24,
        &[
            ("flags", 0, 4),
            ("group", 4, 4),
            ("attr", 8, 8),
            ("addr", 16, 8),
        ],
    ),
    ("kvm_one_reg", 16, &[("id", 0, 8), ("addr", 8, 8)]),
];

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTER_OFFSET: (&str, usize, &[OwnField]) = KVM_STRUCTURES[0];

    fn differences(text: &str) -> Vec<Difference> {
        let mut headers = Headers::default();
        headers.add(text).unwrap();
        let (name, size, fields) = COUNTER_OFFSET;
        structure(&headers, name, size, fields).differences
    }

    #[test]
    fn a_structure_that_agrees_has_no_difference() {
        let text = "struct kvm_arm_counter_offset { __u64 counter_offset; __u64 reserved; };";
        assert_eq!(differences(text), [""; 0]);
    }

    #[test]
    fn a_field_that_moved_is_named_with_both_places() {
        let text = "struct kvm_arm_counter_offset { __u64 reserved; __u64 counter_offset; };";
        assert_eq!(
            differences(text),
            [
                "counter_offset: here 8 bytes at 0x0, in the headers 8 at 0x8",
                "reserved: here 8 bytes at 0x8, in the headers 8 at 0x0",
            ]
        );
    }

    #[test]
    fn fields_that_one_side_lacks_and_other_sizes_are_named() {
        let text = "struct kvm_arm_counter_offset { __u32 counter_offset; __u32 extra; };";
        assert_eq!(
            differences(text),
            [
                "counter_offset: here 8 bytes at 0x0, in the headers 4 at 0x0",
                "reserved: not in the headers",
                "extra: only in the headers, at 0x4",
                "size here 16, in the headers 8",
            ]
        );
        assert_eq!(
            differences(""),
            ["struct kvm_arm_counter_offset is not in these headers"]
        );
    }

    #[test]
    fn a_constant_that_differs_or_is_missing_is_named() {
        let mut headers = Headers::default();
        headers.add("#define KVM_CAP_STEAL_TIME 188").unwrap();
        let check = constant(&headers, "KVM_CAP_STEAL_TIME", 187);
        assert_eq!(check.differences, ["here 0xbb, in the headers 0xbc"]);
        assert_eq!(
            constant(&headers, "KVM_CAP_STEAL_TIME", 188).differences,
            [""; 0]
        );
        let check = constant(&headers, "KVM_CAP_PTP_KVM", 198);
        assert!(check.differences[0].contains("`KVM_CAP_PTP_KVM` is not defined"));
    }

    #[test]
    fn everything_is_compared_and_nothing_agrees_with_nothing() {
        let checks = run(&Headers::default());
        assert!(checks.len() > 80);
        assert!(checks.iter().all(|check| !check.differences.is_empty()));
    }
}
