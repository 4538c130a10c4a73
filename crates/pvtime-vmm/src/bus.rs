//! The memory-mapped bus: finds the device for an address.

use std::sync::{Arc, Mutex, PoisonError};

use crate::layout::Device;

/// A device with registers. It knows its registers and no addresses.
pub trait Registers: Send {
    /// Reads at `offset`; the length is that of `data`, 1 to 8 bytes.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// Devices by address.
#[derive(Default)]
pub struct Bus {
    devices: Vec<(Device, Arc<Mutex<dyn Registers>>)>,
}

impl Bus {
    /// Puts a device at its place.
    ///
    /// # Panics
    ///
    /// If something is there: the layout is this VMM's own.
    pub fn insert(&mut self, place: Device, registers: Arc<Mutex<dyn Registers>>) {
        assert!(
            self.find(place.base).is_none(),
            "two devices at {:#x}",
            place.base
        );
        self.devices.push((place, registers));
    }

    /// Reads for a vCPU. Where there is no device everything reads as zero.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some((offset, registers)) = self.find(address) {
            registers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(offset, data);
        }
    }

    /// Writes for a vCPU. Where there is no device nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, registers)) = self.find(address) {
            registers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &Mutex<dyn Registers>)> {
        self.devices.iter().find_map(|(place, registers)| {
            let offset = address.checked_sub(place.base)?;
            (offset < Device::BYTES).then_some((offset, registers.as_ref()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{CONSOLE, SERIAL};

    /// Remembers the last write and reads as its offset.
    #[derive(Default)]
    struct Probe {
        written: Option<(u64, Vec<u8>)>,
    }

    impl Registers for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap();
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written = Some((offset, data.to_vec()));
        }
    }

    #[test]
    fn each_address_reaches_its_own_device() {
        let (console, serial) = <(Arc<Mutex<Probe>>, Arc<Mutex<Probe>>)>::default();
        let mut bus = Bus::default();
        bus.insert(CONSOLE, console.clone());
        bus.insert(SERIAL, serial.clone());

        bus.write(SERIAL.base + 3, &[7]);
        assert_eq!(serial.lock().unwrap().written, Some((3, vec![7])));
        assert_eq!(console.lock().unwrap().written, None);

        let mut data = [0xa5; 4];
        bus.read(CONSOLE.base + 5, &mut data);
        assert_eq!(data, [5, 0, 0, 0]);
    }

    #[test]
    fn nothing_reads_as_zero_and_swallows_writes() {
        let bus = Bus::default();
        let mut data = [0xa5; 8];
        bus.read(CONSOLE.base, &mut data);
        assert_eq!(data, [0; 8]);
        bus.write(u64::MAX, &[1]);
    }
}
