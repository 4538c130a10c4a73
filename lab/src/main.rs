//! The lab's command line.

mod cli;

use anyhow::{Context, Result, bail};
use clap::Parser;
use cli::{Cli, Command, Machines, Output};
use lab::interrupt;
use lab::report::Verdict;
use lab::scenario::Scenario;
use lab::scenarios::{self, bench, demo};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(Verdict::Pass | Verdict::Skip) => ExitCode::SUCCESS,
        Ok(Verdict::Fail) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<Verdict> {
    interrupt::watch()?;
    match cli.command {
        Command::List(output) => list(&output),
        Command::Bench {
            machines,
            page,
            output,
        } => benchmark(&machines, &page, &output),
        Command::Demo { machines, output } => demonstrate(&machines, &output),
        Command::Run {
            names,
            machines,
            output,
        } => run_scenarios(&names, &machines, &output),
    }
}

fn list(output: &Output) -> Result<Verdict> {
    if output.json {
        let all = scenarios::ALL.iter();
        let facts = all.map(|it| {
            json!({
                "name": it.name,
                "about": it.about,
                "must_fail": it.must_fail,
                "by_name_only": scenarios::by_name_only(it.name),
            })
        });
        println!(
            "{}",
            serde_json::to_string_pretty(&facts.collect::<Vec<_>>())?
        );
    } else {
        for scenario in scenarios::ALL {
            let mark = match scenarios::by_name_only(scenario.name) {
                Some(reason) => format!(" (by name only: {reason})"),
                None => String::new(),
            };
            println!("{:18} {}{mark}", scenario.name, scenario.about);
        }
    }
    Ok(Verdict::Pass)
}

fn run_scenarios(names: &[String], machines: &Machines, output: &Output) -> Result<Verdict> {
    let chosen = names
        .iter()
        .map(|name| find(name))
        .collect::<Result<Vec<_>>>()?;
    let assets = machines.assets()?;
    let mut reports = Vec::new();
    for scenario in chosen {
        let report = scenario.run(&assets, &machines.logs)?;
        if !output.json {
            print_report(&report, machines);
        }
        reports.push(report);
        interrupt::check()?;
    }
    if output.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    }
    let failed = reports.iter().any(|report| report.verdict == Verdict::Fail);
    Ok(if failed { Verdict::Fail } else { Verdict::Pass })
}

fn demonstrate(machines: &Machines, output: &Output) -> Result<Verdict> {
    let assets = machines.assets()?;
    if !output.json {
        println!("{}", demo::EXPLANATION);
    }
    let report = demo::SCENARIO.run(&assets, &machines.logs)?;
    if output.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("\n{}", demo::sentence(&report));
        let folder = machines.logs.join(demo::SCENARIO.name);
        if let Some(text) = demo::on_the_figure(&report, &folder) {
            println!("\n{text}");
        }
    }
    Ok(report.verdict)
}

/// Fails only where there are no figures: those that miss their aims are reported as they are.
fn benchmark(machines: &Machines, page: &Path, output: &Output) -> Result<Verdict> {
    let assets = machines.assets()?;
    let report = bench::SCENARIO.run(&assets, &machines.logs)?;
    if output.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    if let Some(error) = &report.error {
        bail!("no figures: {error}");
    }
    let written = machines.logs.join(bench::SCENARIO.name).join(bench::PAGE);
    fs::copy(&written, page).with_context(|| format!("cannot write {}", page.display()))?;
    if !output.json {
        for check in &report.checks {
            let verdict = if check.pass { "met" } else { "missed" };
            println!(
                "{}: {:.2} of QEMU's, aim {verdict}: {}",
                check.name, check.measured, check.limit
            );
        }
        println!("written to {}", page.display());
    }
    Ok(Verdict::Pass)
}

fn find(name: &str) -> Result<&'static Scenario> {
    let found = scenarios::ALL.iter().find(|scenario| scenario.name == name);
    let names: Vec<_> = scenarios::ALL
        .iter()
        .map(|scenario| scenario.name)
        .collect();
    found.with_context(|| {
        format!(
            "no scenario is called {name:?}; there are {}",
            names.join(", ")
        )
    })
}

fn print_report(report: &lab::report::Report, machines: &Machines) {
    for check in &report.checks {
        println!("{check}");
    }
    for skipped in &report.skipped {
        println!("skip  {}: {}", skipped.part, skipped.reason);
    }
    let verdict = match report.verdict {
        Verdict::Pass => "passed",
        Verdict::Fail => "FAILED",
        Verdict::Skip => "left out",
    };
    let passed = report.checks.iter().filter(|check| check.pass).count();
    let folder = machines.logs.join(&report.scenario);
    println!(
        "{} {verdict}: {passed} of {} checks, see {}",
        report.scenario,
        report.checks.len(),
        folder.display()
    );
    if let Some(said) = &report.hung_host {
        println!(
            "{}: the run before ended with an emulated host that hung ({said}), see {}-hung",
            report.scenario,
            folder.display()
        );
    }
    if let Some(error) = &report.error {
        println!("{} did not run to its end: {error}", report.scenario);
    }
}
