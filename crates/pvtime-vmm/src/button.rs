//! The keys that a guest has for a sleep of its host: sleep, and wake-up.
//!
//! They are lines of a [PL061](crate::pl061) that the device tree calls `gpio-keys`, which Linux
//! reports as `KEY_SLEEP` and `KEY_WAKEUP`. What the guest does about a key is the guest's: systemd's
//! logind suspends it when the sleep key was let go again, and takes one that is held for five
//! seconds for another wish. So the key is let go soon after the guest has looked at it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::pl061::Pl061;

/// Line of the sleep key.
pub const SLEEP_LINE: u8 = 0;
/// Line of the wake-up key, for a guest that sleeps without having told its firmware.
pub const WAKE_UP_LINE: u8 = 1;

/// For how long a key is held: a driver takes what is much shorter for a bounce.
const HELD: Duration = Duration::from_millis(50);
/// The longest for which a guest is waited for that does not look.
const UNSEEN: Duration = Duration::from_secs(1);
/// How often it is looked whether the guest has looked.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Both keys.
pub struct Keys(Arc<Mutex<Pl061>>);

impl Keys {
    /// The keys at this device.
    #[must_use]
    pub const fn new(gpio: Arc<Mutex<Pl061>>) -> Self {
        Self(gpio)
    }

    /// Presses a key and lets it go when the guest has seen that it is pressed, or does not look.
    pub fn press(&self, line: u8) {
        let start = Instant::now();
        self.gpio().drive(line, true);
        while !self.gpio().is_seen_high(line) && start.elapsed() < UNSEEN {
            sleep(LOOK_EVERY);
        }
        sleep(HELD);
        self.gpio().drive(line, false);
    }

    /// The device.
    pub fn gpio(&self) -> MutexGuard<'_, Pl061> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::bus::Registers;
    use crate::pl061::Pl061State;

    fn keys() -> (Keys, Arc<Mutex<Pl061>>) {
        let gpio = Pl061::from_state(Pl061State::default(), Box::new(|_| ()));
        let gpio = Arc::new(Mutex::new(gpio));
        (Keys::new(Arc::clone(&gpio)), gpio)
    }

    #[test]
    fn a_key_is_held_until_the_guest_has_seen_it() {
        let (keys, gpio) = keys();
        let its_gpio = Arc::clone(&gpio);
        let guest = thread::spawn(move || {
            let data_of_line = 4 << WAKE_UP_LINE;
            loop {
                let mut data = [0];
                its_gpio.lock().unwrap().read(data_of_line, &mut data);
                if data[0] != 0 {
                    return Instant::now();
                }
                sleep(Duration::from_millis(1));
            }
        });
        keys.press(WAKE_UP_LINE);
        assert!(guest.join().unwrap().elapsed() >= HELD);
        assert_eq!(gpio.lock().unwrap().state().inputs, 0);
    }

    #[test]
    fn a_guest_that_does_not_look_is_not_waited_for() {
        let (keys, gpio) = keys();
        let start = Instant::now();
        keys.press(SLEEP_LINE);
        assert!(start.elapsed() >= UNSEEN);
        assert_eq!(gpio.lock().unwrap().state().inputs, 0);
    }
}
