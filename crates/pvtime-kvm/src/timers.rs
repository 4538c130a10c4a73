//! A vCPU's timers in KVM's registers.

use std::io;

use kvm_ioctls::VcpuFd;
use pvtime::host::timers::{Timer, TimerControl, VcpuTimers};
use pvtime::scale::CompareValue;

use crate::registers::{CNTKCTL_EL1, PTIMER_CTL, PTIMER_CVAL, TIMER_CTL, TIMER_CVAL, TIMERS};

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

/// Writes a vCPU's timers.
pub fn write(vcpu: &VcpuFd, timers: &VcpuTimers) -> io::Result<()> {
    let VcpuTimers {
        virtual_timer,
        physical_timer,
        event_control,
        asked: _,
    } = timers;
    let values = [
        *event_control,
        virtual_timer.compare_value.0,
        physical_timer.compare_value.0,
        virtual_timer.control.0.into(),
        physical_timer.control.0.into(),
    ];
    let mut registers = TIMERS.into_iter().zip(values);
    registers.try_for_each(|(register, value)| set(vcpu, register, value))
}
