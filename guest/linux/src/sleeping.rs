//! The guest suspends itself: because it is asked to, or because its sleep key was pressed.
//!
//! On a machine with systemd, logind reads the keys and has the kernel suspend when the sleep key is
//! let go again. Here is no systemd, and this program does the same with the same key and the same
//! file of the kernel's.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::system::finit_module;

/// What the archive has beside this program, to be loaded in the order of the names.
const MODULES: &str = "/modules";
const INPUTS: &str = "/sys/class/input";

/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`.
const COMPRESSED: i32 = 4;

/// `EV_KEY` and `KEY_SLEEP` of `linux/input-event-codes.h`.
const EV_KEY: u16 = 1;
const KEY_SLEEP: u16 = 142;
/// `struct input_event`: the time in 16 bytes, type, code, value.
const EVENT_BYTES: usize = 24;

/// Longest wait for the kernel to find the key.
const KEY_LIMIT: Duration = Duration::from_secs(10);

/// Has the kernel suspend, and returns when it has resumed.
pub fn suspend() -> Result<()> {
    fs::write("/sys/power/state", "mem").context(
        "the kernel does not suspend; does the machine have PSCI SYSTEM_SUSPEND \
         (pvtime run --suspend-guest on)?",
    )
}

/// Loads the modules in the archive, and suspends whenever the sleep key was pressed and let go.
pub fn follow_key() -> Result<()> {
    load_all(Path::new(MODULES))?;
    let path = await_key()?;
    let mut events = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    let follow = move || {
        let mut key = Key::default();
        let mut event = [0; EVENT_BYTES];
        loop {
            if let Err(error) = events.read_exact(&mut event) {
                return eprintln!("init: no more keys: {error}");
            }
            if key.is_let_go(&event)
                && let Err(error) = suspend()
            {
                eprintln!("init: {error:#}");
            }
        }
    };
    let thread = thread::Builder::new().name("keys".into()).spawn(follow);
    thread.map(drop).context("no thread for the keys")
}

/// Whether the sleep key is pressed.
#[derive(Debug, Default)]
struct Key {
    is_pressed: bool,
}

impl Key {
    /// Whether it was pressed and this event lets it go.
    fn is_let_go(&mut self, event: &[u8; EVENT_BYTES]) -> bool {
        let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
        let (kind, code) = (u16::from_ne_bytes([t0, t1]), u16::from_ne_bytes([c0, c1]));
        if (kind, code) != (EV_KEY, KEY_SLEEP) {
            return false;
        }
        let was_pressed = self.is_pressed;
        self.is_pressed = i32::from_ne_bytes([v0, v1, v2, v3]) != 0;
        was_pressed && !self.is_pressed
    }
}

/// The device file of the first input device that has a sleep key.
fn await_key() -> Result<String> {
    let start = Instant::now();
    while start.elapsed() < KEY_LIMIT {
        let devices = fs::read_dir(INPUTS).into_iter().flatten().flatten();
        for device in devices {
            let keys = device.path().join("device/capabilities/key");
            let name = device.file_name().to_string_lossy().into_owned();
            let keys = fs::read_to_string(keys).unwrap_or_default();
            if name.starts_with("event") && has_key(&keys, KEY_SLEEP) {
                return Ok(format!("/dev/input/{name}"));
            }
        }
        sleep(Duration::from_millis(20));
    }
    bail!(
        "no input device has a sleep key; it needs gpio_keys and evdev in the kernel or in \
         {MODULES}, and pvtime run --suspend-guest on"
    )
}

/// Whether a bitmap of sysfs, 64-bit words with the highest first, has a bit.
fn has_key(bitmap: &str, code: u16) -> bool {
    let mut words = bitmap.split_whitespace().rev();
    let word = words.nth(usize::from(code / 64));
    let word = word.and_then(|word| u64::from_str_radix(word, 16).ok());
    word.is_some_and(|word| word & 1 << (code % 64) != 0)
}

fn load_all(folder: &Path) -> Result<()> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths.iter().try_for_each(|path| load(path))
}

/// Loads a module that may be loaded already.
fn load(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let is_compressed = path.extension().is_some_and(|it| it != "ko");
    let flags = if is_compressed { COMPRESSED } else { 0 };
    match finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot load {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: i32) -> [u8; EVENT_BYTES] {
        let mut event = [0xa5; EVENT_BYTES];
        event[16..18].copy_from_slice(&kind.to_ne_bytes());
        event[18..20].copy_from_slice(&code.to_ne_bytes());
        event[20..].copy_from_slice(&value.to_ne_bytes());
        event
    }

    #[test]
    fn the_key_counts_when_it_is_let_go() {
        let mut key = Key::default();
        let seen = [
            (event(EV_KEY, KEY_SLEEP, 0), false),
            (event(EV_KEY, KEY_SLEEP, 1), false),
            (event(0, 0, 0), false),
            (event(EV_KEY, 143, 0), false),
            (event(EV_KEY, KEY_SLEEP, 2), false),
            (event(EV_KEY, KEY_SLEEP, 0), true),
            (event(EV_KEY, KEY_SLEEP, 0), false),
        ];
        for (event, let_go) in seen {
            assert_eq!(key.is_let_go(&event), let_go, "{event:?}");
        }
    }

    #[test]
    fn keys_are_bits_of_words_with_the_highest_first() {
        assert!(has_key("c000 0 0\n", KEY_SLEEP));
        assert!(!has_key("8000 0 0\n", KEY_SLEEP));
        assert!(!has_key("4000 0\n", KEY_SLEEP) && !has_key("", KEY_SLEEP));
        assert!(has_key("4000 0\n", 78));
    }
}
