//! A Unix socket behind standard input and output.

use anyhow::{Context, Result};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// Whoever listens may have been started just now.
const LIMIT: Duration = Duration::from_secs(20);
const TRY_EVERY: Duration = Duration::from_millis(20);

/// Carries standard input to whoever listens there, and what that says to standard output, until it
/// says no more.
pub fn with(path: &str) -> Result<()> {
    let mut stream = connect(path).with_context(|| format!("cannot reach {path}"))?;
    let mut input = stream.try_clone().context("cannot share the connection")?;
    // It ends with the process.
    thread::spawn(move || {
        let _nobody_listens = io::copy(&mut io::stdin(), &mut input);
        let _ended_already = input.shutdown(Shutdown::Write);
    });
    io::copy(&mut stream, &mut io::stdout()).context("the connection broke")?;
    Ok(())
}

fn connect(path: &str) -> io::Result<UnixStream> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Err(_) if start.elapsed() < LIMIT => sleep(TRY_EVERY),
            connected => return connected,
        }
    }
}
