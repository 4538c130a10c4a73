//! A host, and on it the snapshot of a bare-metal guest with live physical time whose memory goes on
//! changing.

use crate::bare::{Bare, OnHost};
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::scenario::Stage;
use anyhow::Result;
use guest_protocol::Workload;
use guest_protocol::request::Fill;

/// The snapshot, among the host's files.
pub const SAVED: &str = "good";

/// Boots both and saves the guest, paused.
pub fn prepare(stage: &mut Stage, fill: Fill) -> Result<Host> {
    let mut host = stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?;
    let spec = GuestSpec {
        image: GuestImage::El1,
        cpus: 2,
        memory_mib: 16,
        vmm_options: &["--live-physical-time", "1000000000"],
        ..GuestSpec::new("first")
    };
    let mut guest = Guest::start(&spec, &mut host)?;
    guest.await_hello(&mut host)?;
    let mut asked = OnHost {
        guest: &mut guest,
        host: &mut host,
    };
    asked.fill(fill)?;
    asked.give_work(1, Workload::Change)?;
    guest.pause(&mut host)?;
    let folder = host.file(SAVED);
    guest.ctl(&mut host, &["snapshot", &folder])?;
    stage.keep_records(&guest, &mut host)?;
    guest.stop(&mut host)?;
    Ok(host)
}
