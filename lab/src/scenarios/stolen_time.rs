//! Stolen time as three parties see it: the host's scheduler, the structure in guest memory, and the
//! guest's kernel.

use super::four_vcpus::FourVcpus;
use super::three_guests::ThreeGuests;
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "stolen-time",
    about: "host, structure and guest agree on the time that busy guests on one CPU lose",
    must_fail: None,
    play,
};

/// How long the guests are watched; the shares are of this time. Guests that compete change places every few
/// ms, so it makes a share exact to some tenths of a percent, of which 5 are allowed.
const WATCHED: Duration = Duration::from_secs(5);

/// How often at most.
const ATTEMPTS: u32 = 3;

#[derive(Default)]
struct Scene {
    three: Option<ThreeGuests>,
    four: FourVcpus,
}

impl Scene {
    fn three(&mut self) -> Result<&mut ThreeGuests> {
        self.three.as_mut().context("the guests were not started")
    }
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot two busy guests and an idle one on a host",
                act: |scene, stage| {
                    scene.three = Some(ThreeGuests::start(stage)?);
                    Ok(())
                },
                checks: no_checks,
            },
            Step {
                name: "watch them for 5 s, the busy ones on one host CPU",
                act: |scene, stage| scene.three()?.watch(WATCHED, ATTEMPTS, stage, |_| ()),
                checks: |scene| {
                    scene
                        .three
                        .as_ref()
                        .map(ThreeGuests::check_watched)
                        .unwrap_or_default()
                },
            },
            Step {
                name: "let the guests rest and compare their own figures",
                act: |scene, stage| scene.three()?.compare(stage),
                checks: |scene| {
                    scene
                        .three
                        .iter()
                        .map(ThreeGuests::check_compared)
                        .collect()
                },
            },
            Step {
                name: "boot a guest with four vCPUs, load them unevenly, take one off and bring it back",
                act: |scene, stage| {
                    scene.four = FourVcpus::see(&mut scene.three()?.host, stage)?;
                    Ok(())
                },
                checks: |scene| scene.four.checks(),
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.three.take().context("no host")?.host.power_off(),
                checks: no_checks,
            },
        ],
    )
}
