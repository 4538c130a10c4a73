//! Frames as docs have them, written a second time, and a VM for them.

use std::hash::Hasher;
use std::sync::LazyLock;

use serde_json::{Value, json};
use twox_hash::XxHash3_64;

pub const RAM: u64 = 0x4000_0000;
pub const MEMORY: usize = 1 << 20;

/// What a stream begins with.
pub const HELLO: [u8; 16] = *b"PVTIMEMV\x02\0\0\0\0\0\0\0";

pub static OFFER: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "who": "fuzz", "id": "fuzz", "dry_run": false, "architecture": "aarch64",
        "counter_frequency_hz": 25_000_000, "wall_error_ns": null, "counter_offset": true,
        "live": null,
        "time": { "stolen_time": "on", "stolen_time_period": 100, "on_pause": "freeze",
                  "on_restore": "freeze", "on_migrate": "freeze", "on_suspend": "freeze",
                  "on_stall": "report", "watch_host": "off" },
        "memory": [{ "start": RAM, "bytes": MEMORY }],
        "vcpus": 1,
        "cpu": { "features": [4, 0, 0, 0, 0, 0, 0], "identity": [], "others": [] },
        "gic_implementation": 0, "system_suspend": false
    })
});

pub static ARRIVAL: LazyLock<Value> = LazyLock::new(|| {
    let interrupts = json!({ "groups": [], "priorities": [], "configurations": [], "enabled": [],
        "lines": [], "latched": [], "active": [] });
    let port = json!({ "baud_divisor_low": 0, "baud_divisor_high": 0, "interrupt_enable": 0,
        "interrupt_identification": 1, "line_control": 3, "line_status": 96, "modem_control": 8,
        "modem_status": 176, "scratch": 0, "in_buffer": [] });
    json!({
        "runs": true,
        "machine": {
            "vcpus": [{ "features": [4, 0, 0, 0, 0, 0, 0], "mp_state": 0, "serror": null,
                        "registers": [] }],
            "gic": { "interrupts": 64, "implementation": 0, "control": 0, "routes": [],
                "shared": interrupts, "cpus": [{ "affinity": 0, "private": interrupts,
                    "interface": { "sre": 7, "ctlr": 0, "pmr": 0, "bpr0": 0, "bpr1": 0,
                        "ap0r": [], "ap1r": [], "igrpen0": 0, "igrpen1": 0 } }] },
            "devices": { "console": port, "serial": port,
                "rtc": { "lr": 0, "offset": 0, "mr": 0, "imsc": 0, "ris": 0 } }
        }
    })
});

/// A stream with right headers.
pub struct Forged {
    pub bytes: Vec<u8>,
    number: u64,
    checksum: u64,
}

impl Forged {
    pub fn new(hello: &[u8]) -> Self {
        Self {
            bytes: hello.to_vec(),
            number: 0,
            checksum: 0,
        }
    }

    pub fn frame(&mut self, kind: u32, contents: &[u8]) {
        self.frame_with(kind, contents.len() as u32, contents);
    }

    pub fn frame_with(&mut self, kind: u32, length: u32, contents: &[u8]) {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(length.to_le_bytes());
        header.extend(self.number.to_le_bytes());
        let mut hash = XxHash3_64::with_seed(self.checksum);
        hash.write(&header);
        hash.write(contents);
        self.checksum = hash.finish();
        self.number += 1;
        self.bytes.extend(header);
        self.bytes.extend(self.checksum.to_le_bytes());
        self.bytes.extend(contents);
    }
}
