//! The document.

use svg::Document;
use svg::node::element::{
    Circle, Definitions, Description, Group, Line, Path, Pattern, Polyline, Rectangle, Text, Title,
};

use crate::axis::Axis;
use crate::labels::{Curve, Room};
use crate::stretches::{self, Kind, Stretch};
use crate::{Figure, Point};

/// Of the whole, in SVG's units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 600.0;

/// Edges of the plot.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 804.0;
const TOP: f64 = 104.0;
const BOTTOM: f64 = 540.0;

/// Room that a line of text takes.
const LINE_HEIGHT: f64 = 18.0;

/// One of the three lines.
struct Style {
    name: &'static str,
    value: fn(&Point) -> f64,
    colour: &'static str,
    width: f64,
    dashes: &'static str,
}

/// Colours that nobody confuses (Okabe and Ito), and dashes for those who see none.
const STYLES: [Style; 3] = [
    Style {
        name: "physical",
        value: |point| point.physical,
        colour: "#000000",
        width: 1.2,
        dashes: "none",
    },
    Style {
        name: "live physical",
        value: |point| point.live,
        colour: "#0072b2",
        width: 2.2,
        dashes: "9 5",
    },
    Style {
        name: "virtual",
        value: |point| point.virtual_,
        colour: "#d55e00",
        width: 2.8,
        dashes: "2 3",
    },
];

const PAUSED_PATTERN: &str = "paused";
const STOLEN_PATTERN: &str = "stolen";

/// Draws a figure from its points, of which there are two or more.
pub fn document(figure: &Figure<'_>, points: &[Point]) -> String {
    let plot = Plot::of(points);
    let stretches = stretches::find(points);
    let curves = STYLES.map(|style| plot.curve(points, style.value));
    let document = Document::new()
        .set("viewBox", (0.0, 0.0, WIDTH, HEIGHT))
        .set("width", WIDTH)
        .set("height", HEIGHT)
        .set("role", "img")
        .set("font-family", "sans-serif")
        .set("font-size", 13)
        .add(Title::new(figure.title))
        .add(Description::new().add(svg::node::Text::new(in_words(figure, points, &stretches))))
        .add(patterns())
        .add(rectangle(0.0, 0.0, WIDTH, HEIGHT).set("fill", "#ffffff"))
        .add(text(figure.title, LEFT, 30.0).set("font-size", 19))
        .add(text(figure.about, LEFT, 52.0).set("fill", "#444444"))
        .add(legend())
        .add(shades(&plot, &stretches, &curves))
        .add(grid(&plot))
        .add(lines(&curves))
        .add(ends(&plot, points));
    format!("{document}\n")
}

/// For those who do not see the figure.
fn in_words(figure: &Figure<'_>, points: &[Point], stretches: &[Stretch]) -> String {
    let last = points.last().expect("two points or more");
    let count = |kind| stretches.iter().filter(|it| it.kind == kind).count();
    format!(
        "{}. After {:.2} s of physical time there were {:.2} s of live physical and {:.2} s of \
         virtual time. Stretches shown as paused: {}; as stolen: {}.",
        figure.about,
        last.physical,
        last.live,
        last.virtual_,
        count(Kind::Paused),
        count(Kind::Stolen),
    )
}

/// Where values lie on the page.
struct Plot {
    x: Axis,
    y: Axis,
}

impl Plot {
    fn of(points: &[Point]) -> Self {
        let values = || {
            points
                .iter()
                .flat_map(|it| [it.physical, it.live, it.virtual_])
        };
        let physical = points.last().map_or(0.0, |it| it.physical);
        Self {
            x: Axis::covering(0.0, physical),
            y: Axis::covering(values().fold(0.0, f64::min), values().fold(0.0, f64::max)),
        }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.position(value) * (RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        BOTTOM - self.y.position(value) * (BOTTOM - TOP)
    }

    fn curve(&self, points: &[Point], value: fn(&Point) -> f64) -> Curve {
        let place = |it: &Point| (self.x(it.physical), self.y(value(it)));
        points.iter().map(place).collect()
    }
}

fn patterns() -> Definitions {
    let pattern = |id: &str, size: f64| {
        Pattern::new()
            .set("id", id)
            .set("width", size)
            .set("height", size)
            .set("patternUnits", "userSpaceOnUse")
            .add(rectangle(0.0, 0.0, size, size).set("fill", "#f2f2f2"))
    };
    let diagonal = Path::new()
        .set("d", "M-2,2 L2,-2 M0,8 L8,0 M6,10 L10,6")
        .set("stroke", "#8a8a8a")
        .set("stroke-width", 1.1);
    let dot = Circle::new()
        .set("cx", 3)
        .set("cy", 3)
        .set("r", 1.1)
        .set("fill", "#8a8a8a");
    Definitions::new()
        .add(pattern(PAUSED_PATTERN, 8.0).add(diagonal))
        .add(pattern(STOLEN_PATTERN, 6.0).add(dot))
}

fn legend() -> Group {
    const Y: f64 = 80.0;
    const SAMPLE: f64 = 34.0;
    let mut group = Group::new();
    let mut x = LEFT;
    for style in &STYLES {
        let label = format!("{} time", style.name);
        group = group
            .add(stroked(
                Line::new()
                    .set("x1", x)
                    .set("x2", x + SAMPLE)
                    .set("y1", Y - 4.0)
                    .set("y2", Y - 4.0),
                style,
            ))
            .add(text(&label, x + SAMPLE + 6.0, Y));
        x += SAMPLE + 26.0 + width_of(&label);
    }
    let stolen = format!("stolen, over {:.0} %", 100.0 * stretches::STOLEN_SHARE);
    for (pattern, label) in [
        (PAUSED_PATTERN, "paused"),
        (STOLEN_PATTERN, stolen.as_str()),
    ] {
        group = group
            .add(
                rectangle(x, Y - 13.0, SAMPLE, 16.0)
                    .set("fill", format!("url(#{pattern})"))
                    .set("stroke", "#8a8a8a"),
            )
            .add(text(label, x + SAMPLE + 6.0, Y));
        x += SAMPLE + 26.0 + width_of(label);
    }
    group
}

/// Narrower than this, a stretch has its label on its side, or none.
const LABEL_WIDTH: f64 = 92.0;
const LABEL_HEIGHT: f64 = LINE_HEIGHT + 6.0;

fn shades(plot: &Plot, stretches: &[Stretch], curves: &[Curve]) -> Group {
    let mut group = Group::new();
    for stretch in stretches {
        let (from, to) = (plot.x(stretch.from), plot.x(stretch.to));
        let (pattern, verb) = match stretch.kind {
            Kind::Paused => (PAUSED_PATTERN, "paused"),
            Kind::Stolen => (STOLEN_PATTERN, "stolen"),
        };
        let label = format!("{verb} {:.2} s", stretch.lost);
        // As wide as a hair at least, so that it is seen.
        group = group.add(
            rectangle(from, TOP, (to - from).max(0.8), BOTTOM - TOP)
                .set("fill", format!("url(#{pattern})"))
                .add(Title::new(label.as_str())),
        );
        let degrees = match to - from {
            wide if wide >= LABEL_WIDTH => 0,
            high if high >= LABEL_HEIGHT => -90,
            _ => continue,
        };
        let place = place_label(f64::midpoint(from, to), &label, degrees, curves);
        group = group.add(plate(&label).set("transform", place));
    }
    group
}

/// At the top of the plot, or where the lines leave room.
fn place_label(x: f64, label: &str, degrees: i16, curves: &[Curve]) -> String {
    let (mut half_width, mut half_height) = (plate_width(label) / 2.0, LINE_HEIGHT / 2.0);
    if degrees != 0 {
        (half_width, half_height) = (half_height, half_width);
    }
    let room = Room {
        from: x - half_width,
        to: x + half_width,
        half_height,
    };
    let (top, bottom) = (TOP + half_height + 10.0, BOTTOM - half_height - 10.0);
    let between = |part: f64| top + part * (bottom - top);
    let heights = [top, bottom, between(0.5), between(0.25), between(0.75)];
    place(x, room.place(&heights, curves), degrees)
}

/// A label on white, around the origin.
fn plate(label: &str) -> Group {
    let width = plate_width(label);
    Group::new()
        .add(rectangle(-width / 2.0, -LINE_HEIGHT / 2.0, width, LINE_HEIGHT).set("fill", "#ffffff"))
        .add(text(label, 0.0, 4.5).set("text-anchor", "middle"))
}

fn plate_width(label: &str) -> f64 {
    width_of(label) + 10.0
}

fn place(x: f64, y: f64, degrees: i16) -> String {
    format!("translate({x:.2} {y:.2}) rotate({degrees})")
}

fn grid(plot: &Plot) -> Group {
    let mut group = Group::new().set("stroke-width", 0.6);
    let line = |x1: f64, y1: f64, x2: f64, y2: f64| {
        Line::new()
            .set("x1", x1)
            .set("y1", y1)
            .set("x2", x2)
            .set("y2", y2)
            .set("stroke", "#c8c8c8")
    };
    for (value, label) in plot.x.ticks() {
        let x = plot.x(value);
        group = group
            .add(line(x, TOP, x, BOTTOM + 5.0))
            .add(text(&label, x, BOTTOM + 20.0).set("text-anchor", "middle"));
    }
    for (value, label) in plot.y.ticks() {
        let y = plot.y(value);
        group = group
            .add(line(LEFT - 5.0, y, RIGHT, y))
            .add(text(&label, LEFT - 9.0, y + 4.5).set("text-anchor", "end"));
    }
    let (middle_x, middle_y) = (f64::midpoint(LEFT, RIGHT), f64::midpoint(TOP, BOTTOM));
    let frame = rectangle(LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP)
        .set("fill", "none")
        .set("stroke", "#444444")
        .set("stroke-width", 1);
    group
        .add(frame)
        .add(text("physical time, s", middle_x, BOTTOM + 44.0).set("text-anchor", "middle"))
        .add(
            text("time, s", 0.0, 0.0)
                .set("text-anchor", "middle")
                .set("transform", place(24.0, middle_y, -90)),
        )
}

fn lines(curves: &[Curve]) -> Group {
    let mut group = Group::new().set("stroke-linejoin", "round");
    for (style, curve) in STYLES.iter().zip(curves) {
        let vertices: Vec<_> = curve
            .iter()
            .map(|(x, y)| format!("{x:.2},{y:.2}"))
            .collect();
        let line = Polyline::new()
            .set("points", vertices.join(" "))
            .set("fill", "none");
        group = group.add(stroked(line, style));
    }
    group
}

/// Names and last values at the lines' right ends, apart enough to be read.
fn ends(plot: &Plot, points: &[Point]) -> Group {
    let last = points.last().expect("two points or more");
    let mut labels: Vec<(f64, &Style)> = STYLES
        .iter()
        .map(|style| (plot.y((style.value)(last)), style))
        .collect();
    // The lines end in this order, from the top; equal ones keep it.
    labels.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut free = f64::MIN;
    let mut group = Group::new();
    for (end, style) in labels {
        let y = end.max(free);
        free = y + LINE_HEIGHT;
        let label = format!("{} {:.2} s", style.name, (style.value)(last));
        group = group
            .add(
                Line::new()
                    .set("x1", plot.x(last.physical))
                    .set("y1", end)
                    .set("x2", RIGHT + 10.0)
                    .set("y2", y)
                    .set("stroke", style.colour)
                    .set("stroke-width", 0.7),
            )
            .add(text(&label, RIGHT + 13.0, y + 4.5).set("fill", style.colour));
    }
    group
}

/// About as wide as it will be in a usual font.
fn width_of(text: &str) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a label is short")]
    let characters = text.chars().count() as f64;
    6.9 * characters
}

fn rectangle(x: f64, y: f64, width: f64, height: f64) -> Rectangle {
    Rectangle::new()
        .set("x", x)
        .set("y", y)
        .set("width", width)
        .set("height", height)
}

fn text(content: &str, x: f64, y: f64) -> Text {
    Text::new(content).set("x", x).set("y", y)
}

fn stroked<T: svg::Node>(mut node: T, style: &Style) -> T {
    node.assign("stroke", style.colour);
    node.assign("stroke-width", style.width);
    node.assign("stroke-dasharray", style.dashes);
    node
}
