//! The devices of the bus, on those of vm-superio.

use std::io::{self, Write};

use vm_superio::serial::SerialEvents;
use vm_superio::{Rtc, Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Registers;
use crate::event::Event;

/// An interrupt: KVM raises it when the event is written.
#[derive(Debug)]
pub struct Interrupt(pub EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells whoever feeds a port that the guest has read all there was.
#[derive(Debug)]
pub struct InputDrained(pub Event);

impl SerialEvents for InputDrained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.raise();
    }
}

/// A serial port that writes to anything.
pub type SerialPort = Serial<Interrupt, InputDrained, Box<dyn Write + Send>>;

impl Registers for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            *value = Serial::read(self, offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            // Output that its receiver does not take is lost, as on a cable.
            let _ = Serial::write(self, offset, *value);
        }
    }
}

impl Registers for Rtc<vm_superio::rtc_pl031::NoEvents> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), data.try_into()) {
            Rtc::read(self, offset, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), data.try_into()) {
            Rtc::write(self, offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn interrupt() -> Interrupt {
        Interrupt(EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn a_port_takes_bytes_and_says_when_it_has_no_more() {
        let output = Output::default();
        let drained = Event::new().unwrap();
        let mut port = SerialPort::with_events(
            interrupt(),
            InputDrained(drained.clone()),
            Box::new(output.clone()),
        );
        Registers::write(&mut port, 0, b"x");
        assert_eq!(*output.0.lock().unwrap(), b"x");

        port.enqueue_raw_bytes(b"in").unwrap();
        let mut byte = [0xa5];
        Registers::read(&mut port, 0, &mut byte);
        assert_eq!((&byte, drained.clear()), (b"i", false));
        Registers::read(&mut port, 0, &mut byte);
        assert_eq!((&byte, drained.clear()), (b"n", true));
    }

    #[test]
    fn accesses_of_another_width_change_nothing() {
        let output = Output::default();
        let mut port = SerialPort::with_events(
            interrupt(),
            InputDrained(Event::new().unwrap()),
            Box::new(output.clone()),
        );
        Registers::write(&mut port, 0, b"long");
        Registers::write(&mut port, 0x400, b"x");
        assert!(output.0.lock().unwrap().is_empty());
        let mut rtc = Rtc::new();
        let mut data = [0xa5; 8];
        Registers::read(&mut rtc, 0, &mut data);
        assert_eq!(data, [0xa5; 8]);
    }
}
