//! What process 1 of an emulated host does before and after it serves.

use crate::stop::CGROUPS;
use anyhow::{Context, Result, bail};
use lab_agent::PORT_NAME;
use rustix::fs::sync;
use rustix::mount::{MountFlags, mount as mount_fs};
use rustix::system::{RebootCommand, reboot};
use std::fs::{self, File};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Longest wait for the kernel to find the virtio-serial port.
const PORT_LIMIT: Duration = Duration::from_secs(20);

const PORTS: &str = "/sys/class/virtio-ports";

/// Mounts the kernel's file systems.
pub fn mount() -> Result<()> {
    for (kind, folder) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("cgroup2", CGROUPS),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
        mount_fs(kind, folder, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {folder}"))?;
    }
    Ok(())
}

/// Opens the port of the name [`PORT_NAME`].
pub fn open_port() -> Result<File> {
    let start = Instant::now();
    while start.elapsed() < PORT_LIMIT {
        if let Some(path) = find_port() {
            return File::options()
                .read(true)
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()));
        }
        sleep(Duration::from_millis(10));
    }
    bail!("no virtio-serial port is called {PORT_NAME}: add it to the machine");
}

fn find_port() -> Option<PathBuf> {
    for entry in fs::read_dir(PORTS).ok()?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        let device = PathBuf::from("/dev").join(entry.file_name());
        if name.trim() == PORT_NAME && device.exists() {
            return Some(device);
        }
    }
    None
}

/// Powers the machine off; process 1 must not return.
pub fn power_off() -> ! {
    sync();
    let refused = reboot(RebootCommand::PowerOff);
    eprintln!("lab-agent: cannot power off: {refused:?}");
    loop {
        sleep(Duration::from_secs(3600));
    }
}
