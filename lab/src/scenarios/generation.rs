//! A guest that comes out of a snapshot can tell: it reads another identifier of its VM's generation
//! than the guest that went in, and than any other that comes out.

use super::id_reader::Reader;
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::status::Generation;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "generation",
    about: "guests out of one snapshot read different generation ids, and are told to",
    must_fail: None,
    play,
};

/// What Linux says when it was told to look, and found another identifier than it had read before.
const FORKED: &str = "crng reseeded due to virtual machine fork";

/// For its kernel, so that this goes to its console: it is a notice.
const NOTICES: &str = "loglevel=6";

/// Longest time from the restoration to that line.
const LIMIT: Duration = Duration::from_secs(30);

/// Restorations of the one snapshot.
const RESTORED: [&str; 2] = ["second", "third"];

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    snapshot: String,
    seen: Vec<Seen>,
    readers: Vec<Reader>,
}

/// What was seen of one guest.
struct Seen {
    name: &'static str,
    generation: Generation,
    /// Lines of its log.
    forked: usize,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: |scene, stage| {
                    scene.host =
                        Some(stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?);
                    Ok(())
                },
                checks: no_checks,
            },
            Step {
                name: "save a guest that goes on",
                act: save,
                checks: no_checks,
            },
            Step {
                name: "let two guests go on from that",
                act: restore,
                checks,
            },
            Step {
                name: "the same with a guest that has no driver",
                act: |scene, _| {
                    let host = scene.host.as_mut().context("no host")?;
                    scene.readers = Reader::see_all(host)?;
                    Ok(())
                },
                checks: |scene| Reader::check_all(&scene.readers),
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn save(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    scene.snapshot = host.file("snapshot");
    let spec = GuestSpec {
        kernel_options: NOTICES,
        ..GuestSpec::new("first")
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    guest.ctl(host, &["snapshot", &scene.snapshot])?;
    // It runs, and would have looked.
    guest.sample(host)?;
    scene.seen.push(look(&guest, host)?);
    stage.keep_time(&mut guest, host)?;
    guest.power_off(host)
}

fn restore(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    for name in RESTORED {
        let mut guest = Guest::restore(name, false, &scene.snapshot, host)?;
        guest.sample(host)?;
        let console = host.file(&format!("{name}-console.log"));
        // What it lacks is for the check to say.
        let _ = host.wait_for_text(&console, FORKED, LIMIT);
        scene.seen.push(look(&guest, host)?);
        stage.keep_time(&mut guest, host)?;
        guest.power_off(host)?;
    }
    Ok(())
}

fn look(guest: &Guest, host: &mut Host) -> Result<Seen> {
    Ok(Seen {
        name: guest.name(),
        generation: guest.status(host)?.generation,
        forked: guest.console(host)?.matches(FORKED).count(),
    })
}

fn checks(scene: &Scene) -> Vec<Check> {
    let number = |number: usize| u32::try_from(number).map_or(f64::INFINITY, f64::from);
    let all = scene.seen.len();
    let ids: BTreeSet<_> = scene.seen.iter().map(|seen| &seen.generation.id).collect();
    let each = f64::from(u8::try_from(1 + RESTORED.len()).unwrap_or(u8::MAX));
    let mut checks = vec![
        Check::new("guests", number(all), Limit::Equals(each), "guests"),
        Check::new(
            "different_ids",
            number(ids.len()),
            Limit::Equals(each),
            "ids",
        ),
    ];
    for seen in &scene.seen {
        let (count, forked) = if RESTORED.contains(&seen.name) {
            (2.0, 1.0)
        } else {
            (1.0, 0.0)
        };
        #[expect(clippy::cast_precision_loss, reason = "1 or 2, or it fails")]
        let generation = seen.generation.count as f64;
        checks.extend([
            Check::new(
                "generation",
                generation,
                Limit::Equals(count),
                "generations",
            )
            .with_detail(format!("{}, {}", seen.name, seen.generation.id)),
            Check::new(
                "new_ids_read",
                number(seen.forked),
                Limit::Equals(forked),
                "ids",
            )
            .with_detail(seen.name),
        ]);
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(all: &[(&'static str, u64, &str, usize)]) -> bool {
        let mut scene = Scene::default();
        for &(name, count, id, forked) in all {
            let id = id.to_owned();
            scene.seen.push(Seen {
                name,
                generation: Generation { count, id },
                forked,
            });
        }
        checks(&scene).iter().all(|check| check.pass)
    }

    #[test]
    fn each_restoration_is_told_once_and_has_an_id_of_its_own() {
        let first = ("first", 1, "a", 0);
        assert!(passes(&[
            first,
            ("second", 2, "b", 1),
            ("third", 2, "c", 1)
        ]));
        assert!(!passes(&[
            first,
            ("second", 2, "b", 1),
            ("third", 2, "b", 1)
        ]));
        assert!(!passes(&[
            first,
            ("second", 2, "a", 1),
            ("third", 2, "c", 1)
        ]));
        assert!(!passes(&[
            first,
            ("second", 2, "b", 0),
            ("third", 2, "c", 1)
        ]));
        assert!(!passes(&[
            first,
            ("second", 3, "b", 1),
            ("third", 2, "c", 1)
        ]));
        let told = ("first", 1, "a", 1);
        assert!(!passes(&[
            told,
            ("second", 2, "b", 1),
            ("third", 2, "c", 1)
        ]));
        assert!(!passes(&[first, ("second", 2, "b", 1)]));
    }
}
