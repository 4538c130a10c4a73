//! Requests about files.

use anyhow::{Context, Result};
use lab_agent::frame::PAYLOAD_MAX;
use lab_agent::message::Found;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// How often a file is looked at while a text is awaited.
const LOOK_EVERY: Duration = Duration::from_millis(2);

pub fn make_dirs(path: &str) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the folder {path}"))
}

pub fn put(path: &str, mode: u32, append: bool, bytes: &[u8]) -> Result<()> {
    let mut options = File::options();
    options
        .create(true)
        .append(append)
        .write(true)
        .truncate(!append)
        .mode(mode);
    options
        .open(path)
        .and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("cannot write {path}"))
}

pub fn read(path: &str, offset: u64, limit: u32) -> Result<Vec<u8>> {
    let mut piece = Vec::new();
    let mut file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| {
            file.take(limit.min(PAYLOAD_MAX).into())
                .read_to_end(&mut piece)
        })
        .with_context(|| format!("cannot read {path} from {offset}"))?;
    Ok(piece)
}

pub fn remove(path: &str) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove {path}"))
}

/// Waits until the file holds the text.
pub fn wait_for_text(path: &str, text: &str, timeout: Duration) -> Result<Option<Found>> {
    let start = Instant::now();
    let mut seen = Vec::new();
    loop {
        match read(path, seen.len() as u64, PAYLOAD_MAX) {
            Ok(piece) if !piece.is_empty() => {
                // The text may lie across the seam between two pieces.
                let from = seen.len().saturating_sub(text.len());
                seen.extend_from_slice(&piece);
                if let Some(at) = find(&seen[from..], text.as_bytes()) {
                    let offset = (from + at) as u64;
                    return Ok(Some(Found {
                        at_ns: crate::processes::monotonic_ns(),
                        offset,
                    }));
                }
            }
            Ok(_) => {}
            Err(error) => match error.downcast_ref::<std::io::Error>() {
                Some(e) if e.kind() == ErrorKind::NotFound => {}
                _ => return Err(error),
            },
        }
        if start.elapsed() >= timeout {
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return Some(0);
    }
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
