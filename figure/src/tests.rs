use proptest::prelude::*;

use super::*;

const S: u64 = 1_000_000_000;

fn sample(physical_ns: u64, live_ns: u64, virtual_ns: u64) -> Sample {
    Sample {
        physical_ns,
        live_ns,
        virtual_ns,
    }
}

fn draw(samples: &[Sample]) -> Result<String, Error> {
    let figure = Figure {
        title: "T < 1 & \"2\"",
        about: "vCPU 0",
        samples,
    };
    figure.draw()
}

/// The points of the line that is drawn with these dashes.
fn vertices(document: &str, dashes: &str) -> Vec<(f64, f64)> {
    let line = document
        .lines()
        .find(|line| line.contains("<polyline") && line.contains(&format!("\"{dashes}\"")))
        .expect("a line with these dashes");
    let (_, rest) = line.split_once(" points=\"").unwrap();
    let (points, _) = rest.split_once('"').unwrap();
    points
        .split(' ')
        .map(|point| {
            let (x, y) = point.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        })
        .collect()
}

/// Runs for 2 s, is paused for 3 s, and then waits for half of 4 s.
fn history() -> [Sample; 4] {
    [
        sample(100 * S, 50 * S, 7 * S),
        sample(102 * S, 52 * S, 9 * S),
        sample(105 * S, 52 * S, 9 * S),
        sample(109 * S, 56 * S, 11 * S),
    ]
}

#[test]
fn three_lines_start_together_and_part_where_time_was_lost() {
    let document = draw(&history()).unwrap();
    let [physical, live, virtual_] = ["none", "9 5", "2 3"].map(|it| vertices(&document, it));
    assert_eq!(physical[0], live[0]);
    assert_eq!(physical[1], virtual_[1]);
    assert!((live[1].1 - live[2].1).abs() < 0.01, "flat while paused");
    assert!(physical[2].1 < physical[1].1, "larger is higher");
    let rise = |line: &[(f64, f64)]| line[2].1 - line[3].1;
    assert!((rise(&live) - 2.0 * rise(&virtual_)).abs() < 0.02);
    assert!((rise(&physical) - rise(&live)).abs() < 0.02);
    for label in ["physical 9.00 s", "live physical 6.00 s", "virtual 4.00 s"] {
        assert!(document.contains(label), "no {label}");
    }
}

#[test]
fn what_was_lost_is_shaded_and_said() {
    let document = draw(&history()).unwrap();
    for (pattern, label) in [
        ("url(#paused)", "paused 3.00 s"),
        ("url(#stolen)", "stolen 2.00 s"),
    ] {
        // In the legend and once in the plot.
        assert_eq!(document.matches(pattern).count(), 2, "{pattern}");
        assert!(document.contains(label), "no {label}");
    }
    assert!(document.contains("Stretches shown as paused: 1; as stolen: 1."));
    let quiet = draw(&[sample(0, 0, 0), sample(S, S, S)]).unwrap();
    assert_eq!(
        quiet.matches("url(#paused)").count(),
        1,
        "in the legend alone"
    );
}

#[test]
fn titles_are_text_and_not_markup() {
    let document = draw(&history()).unwrap();
    assert!(document.contains("T &lt; 1 &amp; \"2\""), "{document}");
    assert!(!document.contains("T < 1"));
}

#[test]
fn the_same_samples_give_the_same_document() {
    assert_eq!(draw(&history()).unwrap(), draw(&history()).unwrap());
}

#[test]
fn a_step_back_is_drawn_and_not_hidden() {
    let document = draw(&[sample(0, S, 0), sample(S, 0, 0), sample(2 * S, 2 * S, 0)]);
    let live = vertices(&document.unwrap(), "9 5");
    assert!(live[1].1 > live[0].1, "it goes below where it began");
}

#[test]
fn samples_that_make_no_line_are_refused() {
    assert_eq!(draw(&[]), Err(Error::TooFew { count: 0 }));
    assert_eq!(draw(&[sample(1, 1, 1)]), Err(Error::TooFew { count: 1 }));
    assert_eq!(
        draw(&[sample(1, 1, 1), sample(1, 2, 2)]),
        Err(Error::NoTime)
    );
    let error = Error::Unordered {
        index: 2,
        before_ns: 5,
        after_ns: 4,
    };
    assert_eq!(
        draw(&[sample(1, 0, 0), sample(5, 0, 0), sample(4, 0, 0)]),
        Err(error)
    );
}

#[test]
fn samples_have_a_json_form() {
    let text = serde_json::to_string(&sample(3, 2, 1)).unwrap();
    assert_eq!(text, r#"{"physical_ns":3,"live_ns":2,"virtual_ns":1}"#);
    assert_eq!(
        serde_json::from_str::<Sample>(&text).unwrap(),
        sample(3, 2, 1)
    );
}

proptest! {
    #[test]
    fn every_history_is_drawn_within_the_page(
        steps in proptest::collection::vec((any::<u32>(), 0.0..=1.0, 0.0..=1.0), 1..50),
        begin in any::<u32>(),
    ) {
        let mut now = sample(begin.into(), 0, 0);
        let mut samples = vec![now];
        for (physical, live, virtual_) in steps {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares")]
            let share = |ns: u64, share: f64| (f64::from(ns as u32) * share) as u64;
            let live_ns = share(physical.into(), live);
            now.physical_ns += u64::from(physical) + 1;
            now.live_ns += live_ns;
            now.virtual_ns += share(live_ns, virtual_);
            samples.push(now);
        }
        let document = draw(&samples).unwrap();
        for dashes in ["none", "9 5", "2 3"] {
            let line = vertices(&document, dashes);
            prop_assert_eq!(line.len(), samples.len());
            for (x, y) in line {
                prop_assert!((75.9..=804.1).contains(&x), "x {}", x);
                prop_assert!((103.9..=540.1).contains(&y), "y {}", y);
            }
        }
    }
}
