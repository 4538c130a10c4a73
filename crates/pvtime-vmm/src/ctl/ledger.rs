//! `pvtime ctl SOCKET ledger`.

use anyhow::Result;

use crate::api::answers::{Accounts, Ledger};
use crate::api::client::Client;
use crate::table::{self, milliseconds, seconds};

/// Shows where each vCPU's time went.
pub fn show(client: &Client, json: bool) -> Result<()> {
    let ledger: Ledger = client.get("/time/ledger")?;
    super::print(&if json {
        serde_json::to_string(&ledger)?
    } else {
        for_people(&ledger)
    })?;
    Ok(())
}

fn for_people(ledger: &Ledger) -> String {
    let mut table = table::of_numbers(&[
        "vCPU",
        "physical s",
        "run s",
        "idle s",
        "stolen s",
        "operator s",
        "snapshot s",
        "migration s",
        "host suspend s",
        "residual ms",
    ]);
    for vcpu in &ledger.vcpus {
        table.add_row(row(vcpu));
    }
    format!(
        "{table}\nphysical = run + idle + stolen + paused + residual; paused is shown by its cause"
    )
}

fn row(vcpu: &Accounts) -> Vec<String> {
    let paused = &vcpu.paused_ns;
    vec![
        vcpu.index.to_string(),
        seconds(vcpu.physical_ns),
        seconds(vcpu.run_ns),
        seconds(vcpu.idle_ns),
        seconds(vcpu.stolen_ns),
        seconds(paused.operator_ns),
        seconds(paused.snapshot_ns),
        seconds(paused.migration_ns),
        seconds(paused.host_suspend_ns),
        milliseconds(vcpu.residual_ns),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Vm;
    use crate::api::fake::FakeVm;

    #[test]
    fn every_account_has_its_column_and_the_residual_is_shown() {
        let text = for_people(&FakeVm::started().ledger().unwrap());
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            [
                "0", "4.000", "2.000", "1.000", "0.400", "0.500", "0.100", "0.000", "0.000",
                "-0.007"
            ]
        );
    }
}
