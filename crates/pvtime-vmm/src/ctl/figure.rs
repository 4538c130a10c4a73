//! `pvtime ctl SOCKET figure FILE.svg`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use time_figure::Figure;

use crate::api::answers::{Instance, VcpuHistory};
use crate::api::client::Client;

/// Draws one vCPU's times into a file.
pub fn write(client: &Client, vcpu: usize, file: &Path) -> Result<()> {
    let instance: Instance = client.get("/")?;
    let history: VcpuHistory = client.get(&format!("/time/history?vcpu={vcpu}"))?;
    let document = draw(&instance, &history)?;
    fs::write(file, document)
        .with_context(|| format!("cannot write {}; give another path", file.display()))
}

fn draw(instance: &Instance, history: &VcpuHistory) -> Result<String> {
    let Instance {
        app_name,
        id,
        vmm_version,
        ..
    } = instance;
    let VcpuHistory { vcpu, samples } = history;
    let figure = Figure {
        title: &format!("Where the time of vCPU {vcpu} went"),
        about: &format!(
            "VM {id}: {} samples by {app_name} {vmm_version} from the host's scheduler and clocks",
            samples.len()
        ),
        samples,
    };
    Ok(figure.draw()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Vm;
    use crate::api::answers::VmState;
    use crate::api::fake::FakeVm;

    #[test]
    fn a_history_becomes_a_figure() {
        let instance = Instance {
            app_name: "pvtime".into(),
            id: "web".into(),
            state: VmState::Running,
            vmm_version: "0.1.0".into(),
        };
        let mut history = VcpuHistory {
            vcpu: 0,
            samples: FakeVm::started().history(0).unwrap(),
        };
        let document = draw(&instance, &history).unwrap();
        assert!(document.contains("Where the time of vCPU 0 went"));
        assert!(document.contains("VM web: 3 samples by pvtime 0.1.0"));
        history.samples.truncate(1);
        let error = draw(&instance, &history).unwrap_err().to_string();
        assert!(error.contains("wait for a second one"), "{error}");
    }
}
