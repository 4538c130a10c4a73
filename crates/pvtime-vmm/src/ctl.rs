//! `pvtime ctl`: asks a running VM.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use crate::api::client;
use crate::cli::{CtlArgs, CtlCommand};
use crate::table;

/// Carries out the command.
///
/// # Errors
///
/// Where the VM cannot be reached or refuses.
pub fn ctl(args: &CtlArgs) -> Result<ExitCode> {
    match args.command {
        CtlCommand::Status { json } => {
            let status = status(
                client::get(&args.socket, "/")?,
                client::get(&args.socket, "/time")?,
            );
            println!(
                "{}",
                if json {
                    status.to_string()
                } else {
                    for_people(&status)
                }
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Both resources in one object.
fn status(mut vm: Value, time: Value) -> Value {
    if let (Value::Object(vm), Value::Object(time)) = (&mut vm, time) {
        vm.extend(time);
    }
    vm
}

fn for_people(status: &Value) -> String {
    let mut vcpus = table::new(&[
        "vCPU",
        "thread",
        "run s",
        "run delay s",
        "stolen s",
        "structure",
    ]);
    for vcpu in status["vcpus"].as_array().into_iter().flatten() {
        let structure = &vcpu["stolen_time"];
        let (stolen, address) = match structure["address"].as_u64() {
            None => ("off".into(), String::new()),
            Some(address) if structure["claimed"] == true => {
                (seconds(&structure["stolen_ns"]), format!("{address:#x}"))
            }
            Some(address) => ("not asked for".into(), format!("{address:#x}")),
        };
        vcpus.add_row(vec![
            vcpu["index"].to_string(),
            vcpu["thread_id"].to_string(),
            seconds(&vcpu["run_ns"]),
            seconds(&vcpu["run_delay_ns"]),
            stolen,
            address,
        ]);
    }
    format!(
        "{}, for {} s; stolen time: {}; counter at {} Hz\n{vcpus}",
        status["state"]
            .as_str()
            .unwrap_or("in a state that is not known"),
        seconds(&status["elapsed_ns"]),
        status["stolen_time"].as_str().unwrap_or("not known"),
        status["counter_frequency_hz"],
    )
}

fn seconds(ns: &Value) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three decimals are shown")]
    ns.as_u64()
        .map_or_else(|| "-".into(), |ns| format!("{:.3}", ns as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_tells_claimed_structures_from_others() {
        let vcpu = |claimed| {
            json!({
                "index": 0, "thread_id": 7, "run_ns": 1_500_000_000, "run_delay_ns": 2_000_000,
                "stolen_time": { "address": 0xa00_0000, "claimed": claimed, "stolen_ns": 3_000_000 },
            })
        };
        let mut off = vcpu(true);
        off["stolen_time"] = Value::Null;
        let status = status(
            json!({ "state": "Running" }),
            json!({
                "elapsed_ns": 2_000_000_000, "stolen_time": "kernel",
                "counter_frequency_hz": 25_000_000, "vcpus": [vcpu(true), vcpu(false), off],
            }),
        );
        let text = for_people(&status);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "Running, for 2.000 s; stolen time: kernel; counter at 25000000 Hz"
        );
        let row = |text: &str| {
            lines
                .iter()
                .find(|line| line.contains(text))
                .unwrap()
                .to_string()
        };
        assert!(row("0xa000000").contains("1.500"), "{text}");
        assert!(row("0.003").contains("0.002"), "{text}");
        assert!(row("not asked for").contains("0xa000000"), "{text}");
        assert!(row(" off ").contains('7'), "{text}");
    }
}
