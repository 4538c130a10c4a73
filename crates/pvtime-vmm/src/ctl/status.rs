//! `pvtime ctl SOCKET status`.

use anyhow::Result;
use serde::Serialize;

use crate::api::answers::{Instance, Time, VcpuTime};
use crate::api::client::Client;
use crate::table::{self, seconds};

/// Both resources in one.
#[derive(Debug, Serialize)]
struct Status {
    #[serde(flatten)]
    instance: Instance,
    #[serde(flatten)]
    time: Time,
}

/// Shows what a VM is and does.
pub fn show(client: &Client, json: bool) -> Result<()> {
    let status = Status {
        instance: client.get("/")?,
        time: client.get("/time")?,
    };
    super::print(&if json {
        serde_json::to_string(&status)?
    } else {
        for_people(&status)
    })?;
    Ok(())
}

fn for_people(Status { instance, time }: &Status) -> String {
    let mut vcpus = table::new(&[
        "vCPU",
        "thread",
        "run s",
        "run delay s",
        "stolen s",
        "structure",
    ]);
    for vcpu in &time.vcpus {
        vcpus.add_row(row(vcpu));
    }
    let live = time.live_physical_time.map(|live| {
        let asked = if live.claimed { "" } else { ", not asked for" };
        format!("live physical time: {} Hz{asked}; ", live.frequency_hz)
    });
    let told = time.paused_time.map(|paused| {
        let told_s = seconds(paused.paused_ns);
        format!("paused time: {} pauses, {told_s} s; ", paused.events)
    });
    let frequency = time
        .counter_frequency_hz
        .map_or_else(|| "not known".into(), |hz| format!("{hz} Hz"));
    let limits = time.counter_limits.as_ref();
    let limits = limits.map(|limits| format!("{limits}\n"));
    let held_up = time.held_up_by.as_ref();
    let held_up = held_up.map(|reason| format!("waits since the host slept: {reason}\n"));
    let failure = time.stolen_time_failure.as_ref();
    let failure = failure.map(|reason| format!("stolen time is not up to date: {reason}\n"));
    format!(
        "{}: {}, {} s old, paused for {} s of them; stolen time: {}; {}{}counter: {frequency}; \
         generation {}, {}; {} {}\n\
         {}{}{}{vcpus}",
        instance.id,
        instance.state,
        seconds(time.elapsed_ns),
        seconds(time.paused_ns),
        time.stolen_time,
        live.unwrap_or_default(),
        told.unwrap_or_default(),
        time.generation.count,
        time.generation.id,
        instance.app_name,
        instance.vmm_version,
        limits.unwrap_or_default(),
        held_up.unwrap_or_default(),
        failure.unwrap_or_default(),
    )
}

fn row(vcpu: &VcpuTime) -> Vec<String> {
    let (stolen, address) = match &vcpu.stolen_time {
        None => ("off".into(), String::new()),
        Some(structure) => {
            let stolen = if structure.claimed {
                seconds(structure.stolen_ns)
            } else {
                "not asked for".into()
            };
            (stolen, format!("{:#x}", structure.address))
        }
    };
    vec![
        vcpu.index.to_string(),
        vcpu.thread_id
            .map_or_else(|| "none".into(), |thread| thread.to_string()),
        seconds(vcpu.run_ns),
        seconds(vcpu.run_delay_ns),
        stolen,
        address,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Vm;
    use crate::api::answers::VmState;
    use crate::api::fake::FakeVm;

    fn status() -> Status {
        Status {
            instance: Instance {
                app_name: "pvtime".into(),
                id: "web".into(),
                state: VmState::Running,
                vmm_version: "0.1.0".into(),
            },
            time: FakeVm::started().time().unwrap(),
        }
    }

    #[test]
    fn the_table_tells_claimed_structures_from_others() {
        let mut status = status();
        let claimed = status.time.vcpus[0].clone();
        let mut unclaimed = claimed.clone();
        unclaimed.stolen_time.as_mut().unwrap().claimed = false;
        let mut off = claimed.clone();
        off.stolen_time = None;
        off.thread_id = None;
        status.time.vcpus = vec![claimed, unclaimed, off];
        let text = for_people(&status);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            text.lines().next().unwrap(),
            "web: running, 2.000 s old, paused for 0.500 s of them; stolen time: kernel; \
              live physical time: 1000000000 Hz; paused time: 3 pauses, 0.500 s; counter: 25000000 \
              Hz; generation 2, abababababababababababababababab; pvtime 0.1.0"
        );
        assert_eq!(lines[2], ["0", "7", "1.500", "0.002", "0.003", "0xa000000"]);
        assert_eq!(lines[3][4..], ["not", "asked", "for", "0xa000000"]);
        assert_eq!(lines[4], ["0", "none", "1.500", "0.002", "off"]);
    }

    #[test]
    fn what_the_counters_cannot_do_is_told() {
        let mut status = status();
        status.time.counter_limits = Some("too old: no physical counter".into());
        let text = for_people(&status);
        assert_eq!(text.lines().nth(1), Some("too old: no physical counter"));
    }

    #[test]
    fn why_a_vm_waits_is_told() {
        let mut status = status();
        status.time.held_up_by = Some("vCPU 1 did not come out".into());
        let text = for_people(&status);
        let expected = "waits since the host slept: vCPU 1 did not come out";
        assert_eq!(text.lines().nth(1), Some(expected));
    }

    #[test]
    fn why_stolen_time_stands_still_is_told() {
        let mut status = status();
        status.time.stolen_time_failure = Some("vCPU 1: no accounts".into());
        let text = for_people(&status);
        let expected = "stolen time is not up to date: vCPU 1: no accounts";
        assert_eq!(text.lines().nth(1), Some(expected));
    }

    #[test]
    fn what_is_off_is_left_out_and_what_is_not_used_is_told() {
        let mut status = status();
        let live = status.time.live_physical_time.as_mut().unwrap();
        live.claimed = false;
        let text = for_people(&status);
        assert!(
            text.contains("live physical time: 1000000000 Hz, not asked for;"),
            "l15: {text}"
        );
        status.time.live_physical_time = None;
        status.time.paused_time = None;
        let text = for_people(&status);
        assert!(
            text.contains("stolen time: kernel; counter: 25000000 Hz;"),
            "{text}"
        );
    }

    #[test]
    fn the_json_is_one_object() {
        let json = serde_json::to_value(status()).unwrap();
        assert_eq!(json["id"], "web");
        assert_eq!(json["state"], "Running");
        assert_eq!(json["elapsed_ns"], 2_000_000_000);
        assert_eq!(json["vcpus"][0]["stolen_time"]["stolen_ns"], 3_000_000);
    }
}
