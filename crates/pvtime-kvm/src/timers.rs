//! A vCPU's timers in KVM's registers.

use std::io;

use kvm_ioctls::VcpuFd;
use pvtime::host::timers::{Timer, TimerControl, VcpuTimers};
use pvtime::scale::CompareValue;

use crate::registers::{PTIMER_CTL, PTIMER_CVAL, TIMER_CTL, TIMER_CVAL};

/// `CNTKCTL_EL1`, which holds the event stream.
const CNTKCTL_EL1: u64 = 0x6030_0000_0013_c708;

/// Reads a 64-bit register.
pub fn get(vcpu: &VcpuFd, register: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(register, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes a 64-bit register.
pub fn set(vcpu: &VcpuFd, register: u64, value: u64) -> io::Result<()> {
    vcpu.set_one_reg(register, &value.to_le_bytes())?;
    Ok(())
}

/// Reads a vCPU's timers; what the guest asked for is not in them.
pub fn read(vcpu: &VcpuFd) -> io::Result<VcpuTimers> {
    let timer = |control, compare| -> io::Result<Timer> {
        // The upper half of a control register is reserved, and KVM may make up ISTATUS.
        let switches = TimerControl::ENABLE | TimerControl::IMASK;
        let [control, ..] = get(vcpu, control)?.to_le_bytes();
        Ok(Timer {
            control: TimerControl(u32::from(control) & switches),
            compare_value: CompareValue(get(vcpu, compare)?),
        })
    };
    Ok(VcpuTimers::new(
        timer(TIMER_CTL, TIMER_CVAL)?,
        timer(PTIMER_CTL, PTIMER_CVAL)?,
        get(vcpu, CNTKCTL_EL1)?,
    ))
}

/// Writes a vCPU's timers: each compare value before the control that lets it fire.
pub fn write(vcpu: &VcpuFd, timers: &VcpuTimers) -> io::Result<()> {
    let VcpuTimers {
        virtual_timer,
        physical_timer,
        event_control,
        asked: _,
    } = timers;
    set(vcpu, CNTKCTL_EL1, *event_control)?;
    set(vcpu, TIMER_CVAL, virtual_timer.compare_value.0)?;
    set(vcpu, PTIMER_CVAL, physical_timer.compare_value.0)?;
    set(vcpu, TIMER_CTL, virtual_timer.control.0.into())?;
    set(vcpu, PTIMER_CTL, physical_timer.control.0.into())
}
