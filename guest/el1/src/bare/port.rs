//! The serial port: requests come in by interrupt, reports go out byte by byte.
#![expect(unsafe_code, reason = "the port's registers are at an address")]

use core::ptr::{self, NonNull};

use arm_pl011_uart::{Interrupts, PL011Registers, Uart};
use guest_protocol::heapless::Deque;
use safe_mmio::fields::ReadWrite;
use safe_mmio::{UniqueMmioPointer, field};
use spin::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::machine::{PortKind, PortPlace};
use super::registers::without_interrupts;

/// Bytes that arrived and were not looked at: one line, and some.
const INPUT_BYTES: usize = 8192;

static PORT: Mutex<Option<Port>> = Mutex::new(None);

struct Port {
    driver: Driver,
    input: Deque<u8, INPUT_BYTES>,
}

enum Driver {
    Ns16550(UniqueMmioPointer<'static, Ns16550>),
    Pl011(Uart<'static>),
}

/// Registers of a 16550, as far as they are used.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Ns16550 {
    /// Received byte, byte to send.
    data: ReadWrite<u8>,
    interrupt_enable: ReadWrite<u8>,
    fifo: ReadWrite<u8>,
    line_control: ReadWrite<u8>,
    modem_control: ReadWrite<u8>,
    line_status: ReadWrite<u8>,
}

const RECEIVED: u8 = 1;
const FIFO_ON: u8 = 1;
const EIGHT_BITS: u8 = 3;
const DATA_READY: u8 = 1;
const SENDER_EMPTY: u8 = 1 << 5;

impl Driver {
    /// A driver for the port, whose interrupt for received bytes is on.
    fn attach(place: &PortPlace) -> Self {
        let base = NonNull::new(ptr::with_exposed_provenance_mut::<()>(place.base));
        let base = base.expect("the device tree has it above 0");
        match place.kind {
            PortKind::Ns16550 => {
                // SAFETY: the device tree has such a port at this address, which is mapped as
                // device memory, and this is called once.
                let mut port = unsafe { UniqueMmioPointer::new(base.cast::<Ns16550>()) };
                field!(port, line_control).write(EIGHT_BITS);
                field!(port, fifo).write(FIFO_ON);
                field!(port, interrupt_enable).write(RECEIVED);
                Self::Ns16550(port)
            }
            PortKind::Pl011 => {
                // SAFETY: as above.
                let port = unsafe { UniqueMmioPointer::new(base.cast::<PL011Registers>()) };
                let mut port = Uart::new(port);
                port.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
                Self::Pl011(port)
            }
        }
    }

    fn take(&mut self) -> Option<u8> {
        match self {
            Self::Ns16550(port) => {
                let mut port = port.reborrow();
                let ready = field!(port, line_status).read() & DATA_READY != 0;
                ready.then(|| field!(port, data).read())
            }
            // A byte with an error is passed over.
            Self::Pl011(port) => port.read_word().ok().flatten(),
        }
    }

    fn send(&mut self, byte: u8) {
        match self {
            Self::Ns16550(port) => {
                let mut port = port.reborrow();
                while field!(port, line_status).read() & SENDER_EMPTY == 0 {}
                field!(port, data).write(byte);
            }
            Self::Pl011(port) => {
                while port.is_tx_fifo_full() {}
                port.write_word(byte);
            }
        }
    }
}

/// Opens the port.
pub fn open(place: &PortPlace) {
    *PORT.lock() = Some(Port {
        driver: Driver::attach(place),
        input: Deque::new(),
    });
}

fn with_port<R>(act: impl FnOnce(&mut Port) -> R) -> Option<R> {
    without_interrupts(|| PORT.lock().as_mut().map(act))
}

/// Takes in what arrived; for the interrupt. What there is no room for is lost.
pub fn receive() {
    with_port(|port| {
        while let Some(byte) = port.driver.take() {
            let _ = port.input.push_back(byte);
        }
    });
}

/// The next byte that arrived.
pub fn next() -> Option<u8> {
    with_port(|port| port.input.pop_front()).flatten()
}

/// Whether a byte has arrived.
pub fn has_input() -> bool {
    with_port(|port| !port.input.is_empty()).unwrap_or(false)
}

/// Sends bytes; interrupts come in between.
pub fn send(bytes: &[u8]) {
    for byte in bytes {
        with_port(|port| port.driver.send(*byte));
    }
}

/// Lets go of the port, whoever holds it: for the last report, after which nobody goes on.
pub fn seize() {
    // SAFETY: the CPU that held it is this one, in code that is never returned to, or another in
    // the middle of one byte: at worst that byte is lost.
    unsafe { PORT.force_unlock() }
}
