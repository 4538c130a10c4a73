//! The control socket's other end, for `pvtime ctl`.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::http::{Request, Response};

/// How long a VMM may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads a resource.
///
/// # Errors
///
/// Where nobody listens, or what the VMM says is wrong.
pub fn get(socket: &Path, path: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!(
            "cannot reach a VM at {}; give the path that its `pvtime run --api-socket` was given",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Request {
        method: "GET".into(),
        path: path.into(),
    }
    .write(&mut stream)?;
    let response = Response::read(&mut stream)?;
    let body: Value = serde_json::from_slice(&response.body).context("the answer is no JSON")?;
    if response.status != 200 {
        bail!(
            "the VM refuses: {}",
            body["fault_message"].as_str().unwrap_or("for no reason")
        );
    }
    Ok(body)
}
