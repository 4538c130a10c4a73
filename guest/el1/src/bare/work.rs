//! The loop of every CPU.

use core::hint::black_box;

use guest_protocol::Workload;
use guest_protocol::report::SpinClock;

use super::{
    cpus, events, interfaces, memory, port, registers, service, spinning, suspend, timers,
};

/// Works until the machine stops.
pub fn run(cpu: usize) -> ! {
    let mut service = (cpu == 0).then(service::Service::new);
    let mut before = Workload::Idle;
    loop {
        cpus::run_errand(cpu);
        if cpu != 0 && suspend::is_asked() {
            suspend::leave(cpu);
        }
        events::follow(cpu);
        if let Some(service) = service.as_mut() {
            interfaces::era();
            service.answer_input();
        }
        let workload = cpus::workload(cpu);
        if workload != before {
            spinning::stop(cpu);
            before = workload;
        }
        match workload {
            Workload::Idle => registers::wait_for_interrupt_unless(|| {
                cpus::has_errand(cpu) || suspend::is_asked() || cpu == 0 && port::has_input()
            }),
            Workload::Busy => compute(),
            Workload::Spin => spinning::round(cpu, SpinClock::Virtual),
            Workload::SpinPhysical => spinning::round(cpu, SpinClock::Physical),
            Workload::SpinLive => {
                spinning::round(cpu, SpinClock::Live);
                timers::put_off(cpu);
            }
            Workload::Events => events::wait(),
            Workload::Change => memory::change(),
        }
    }
}

/// Computes for some microseconds.
fn compute() {
    let mut state = 1_u64;
    for _ in 0..4096 {
        // A linear congruential generator: each step needs the one before, so nothing is skipped.
        let next = state.wrapping_mul(6_364_136_223_846_793_005);
        state = black_box(next.wrapping_add(1));
    }
}
