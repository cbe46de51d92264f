//! Plots as SVG.

use super::page::{escape, number};
use crate::scenario::Bucket;

/// Size of a plot. Small, so that its texts are readable on a phone.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 34.0;

/// A line of a plot.
#[derive(Debug)]
pub(super) struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(super) fn new(name: &str, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), points }
    }
}

/// A plot with two axes.
#[derive(Debug)]
pub(super) struct Plot {
    unit: String,
    lines: Vec<Line>,
    dots: Vec<(f64, f64)>,
    marks: Vec<(&'static str, f64)>,
    across: Across,
}

/// What the horizontal axis shows.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Across {
    Time,
    Percent,
}

impl Plot {
    /// Lines over the time, in seconds.
    pub(super) fn over_time(unit: &str, lines: Vec<Line>) -> Self {
        Self { unit: unit.into(), lines, dots: Vec::new(), marks: Vec::new(), across: Across::Time }
    }

    /// Points over the time, in seconds, with marked values.
    pub(super) fn points(
        unit: &str,
        dots: Vec<(f64, f64)>,
        marks: Vec<(&'static str, f64)>,
    ) -> Self {
        Self { unit: unit.into(), lines: Vec::new(), dots, marks, across: Across::Time }
    }

    /// Lines over ranks, in percent.
    pub(super) fn ranked(unit: &str, lines: Vec<Line>) -> Self {
        Self {
            unit: unit.into(),
            lines,
            dots: Vec::new(),
            marks: Vec::new(),
            across: Across::Percent,
        }
    }

    pub(super) fn svg(&self, title: &str) -> String {
        let all = || self.lines.iter().flat_map(|line| &line.points).chain(&self.dots);
        let (mut from, mut to) =
            all().fold((f64::MAX, f64::MIN), |(from, to), (x, _)| (from.min(*x), to.max(*x)));
        if self.across == Across::Percent {
            (from, to) = (0.0, 100.0);
        }
        if from >= to {
            (from, to) = (from.min(0.0), from.max(0.0) + 1.0);
        }
        let highest = all().map(|(_, y)| *y).fold(0.0, f64::max);
        let ys = ticks(highest, 4);
        let top = ys.last().copied().unwrap_or(1.0);
        let x = |value: f64| LEFT + (value - from) / (to - from) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP);
        let mut body = String::new();
        for tick in &ys {
            let at = y(*tick);
            body += &grid_line(at);
            body += &label(LEFT - 6.0, at + 4.0, "end", &short(*tick));
        }
        let (scale, unit) = match self.across {
            Across::Percent => (1.0, "% of the nodes"),
            Across::Time => match to - from {
                span if span > 259_200.0 => (86_400.0, "days"),
                span if span > 10_800.0 => (3600.0, "hours"),
                span if span > 300.0 => (60.0, "minutes"),
                _ => (1.0, "seconds"),
            },
        };
        for tick in spaced(from / scale, to / scale, 6) {
            body += &label(x(tick * scale), HEIGHT - BOTTOM + 14.0, "middle", &short(tick));
        }
        body += &label(WIDTH - RIGHT, HEIGHT - 4.0, "end", unit);
        body += &label(4.0, 11.0, "start", &self.unit);
        for dot in thinned(&self.dots, 1500) {
            body += &format!(
                "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"/>",
                x(dot.0),
                y(dot.1)
            );
        }
        for (place, (name, value)) in self.marks.iter().enumerate() {
            let at = y(*value);
            body += &format!(
                "<line class=\"mark\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
                WIDTH - RIGHT
            );
            // The texts side by side above the plot, where nothing covers them.
            let text = format!("{name} {} {}", number(*value), self.unit);
            body += &label(WIDTH - RIGHT - 130.0 * place as f64, 11.0, "end", &text);
        }
        for (index, line) in self.lines.iter().enumerate() {
            let points: String =
                line.points.iter().map(|(a, b)| format!("{:.1},{:.1} ", x(*a), y(*b))).collect();
            body += &format!(
                "<polyline class=\"line l{}\" points=\"{}\"/>",
                index % 3,
                points.trim_end()
            );
        }
        if self.lines.len() > 1 {
            let mut right = WIDTH - RIGHT;
            for (index, line) in self.lines.iter().enumerate() {
                body += &label(right, 11.0, "end", &line.name);
                right -= 6.3 * line.name.len() as f64 + 14.0;
                body += &format!(
                    "<rect class=\"f{}\" x=\"{:.1}\" y=\"4\" width=\"8\" height=\"8\" rx=\"2\"/>",
                    index % 3,
                    right + 2.0
                );
                right -= 8.0;
            }
        }
        frame(title, HEIGHT, &body)
    }
}

/// The occupancy of buckets, as bars.
pub(super) fn buckets(buckets: &[Bucket]) -> String {
    /// More nodes than this are not shown as such.
    const MOST: usize = 25;
    let highest =
        buckets.iter().map(|bucket| bucket.contacts[2].max(bucket.possible.min(MOST))).max();
    let ys = ticks(highest.unwrap_or(1) as f64, 4);
    let top = ys.last().copied().unwrap_or(1.0);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP);
    let mut body = String::new();
    for tick in &ys {
        body += &grid_line(y(*tick));
        body += &label(LEFT - 6.0, y(*tick) + 4.0, "end", &short(*tick));
    }
    let step = (WIDTH - LEFT - RIGHT) / buckets.len().max(1) as f64;
    let width = (step * 0.6).min(24.0);
    let every = (26.0 / step).ceil().max(1.0) as usize;
    for (place, bucket) in buckets.iter().enumerate() {
        let middle = LEFT + (place as f64 + 0.5) * step;
        let left = middle - width / 2.0;
        let [least, median, most] = bucket.contacts.map(|contacts| contacts as f64);
        let bar = |class: &str, from: f64, to: f64| {
            format!(
                "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
                y(to),
                (y(from) - y(to)).max(0.0)
            )
        };
        body += &bar("there", 0.0, bucket.possible.min(MOST) as f64);
        body += &bar("range", least, most);
        body += &bar("f0", (median - 0.15).max(0.0), median + 0.15);
        if place % every == 0 {
            body += &label(middle, HEIGHT - BOTTOM + 14.0, "middle", &bucket.index.to_string());
        }
    }
    body += &label(WIDTH - RIGHT, HEIGHT - 4.0, "end", "bucket");
    body += &label(4.0, 11.0, "start", "contacts");
    frame("Buckets", HEIGHT, &body)
}

/// An SVG of the width of all plots.
pub(super) fn frame(title: &str, height: f64, body: &str) -> String {
    let title = escape(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>{body}</svg>"
    )
}

pub(super) fn label(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text))
}

fn grid_line(y: f64) -> String {
    format!(
        "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
        WIDTH - RIGHT
    )
}

/// Returns round numbers from 0 to at least `highest`.
fn ticks(highest: f64, count: usize) -> Vec<f64> {
    let step = round_step(highest.max(1e-9) / count as f64);
    let last = (highest / step).ceil().max(1.0) as usize;
    (0..=last).map(|place| place as f64 * step).collect()
}

/// Returns round numbers between two numbers.
pub(super) fn spaced(from: f64, to: f64, count: usize) -> Vec<f64> {
    let step = round_step((to - from).max(1e-9) / count as f64);
    let first = (from / step).ceil() as i64;
    let last = (to / step + 1e-9).floor() as i64;
    (first..=last).map(|place| place as f64 * step).collect()
}

/// Returns 1, 2 or 5 times a power of ten, at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| *step >= least * 0.999).unwrap_or(10.0 * power)
}

/// Returns a number for an axis.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{}M", number(value / 1e6)),
        size if size >= 1e4 => format!("{}k", number(value / 1e3)),
        _ => number(value),
    }
}

/// Returns at most `most` points, evenly chosen, and the highest ones in any case.
fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    if points.len() <= most {
        return points.to_vec();
    }
    let mut by_height: Vec<_> = points.to_vec();
    by_height.sort_by(|a, b| b.1.total_cmp(&a.1));
    let step = points.len() / most + 1;
    let highest = by_height.iter().take(most / 5);
    points.iter().step_by(step).chain(highest).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(ticks(17.0, 4), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(ticks(0.0, 4).len(), 2);
        assert_eq!(spaced(0.3, 6.0, 6), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(
            (short(15_000.0).as_str(), short(2e6).as_str(), short(0.5).as_str()),
            ("15k", "2M", "0.5")
        );
    }

    #[test]
    fn thinned_points_keep_the_highest() {
        let points: Vec<_> = (0..10_000).map(|at| (f64::from(at), f64::from(at % 777))).collect();
        let thin = thinned(&points, 1000);
        assert!(thin.len() <= 1300 && thin.iter().any(|(_, y)| *y == 776.0));
    }

    #[test]
    fn empty_plots_have_no_invalid_numbers() {
        for plot in [
            Plot::over_time("x", vec![Line::new("a", vec![])]),
            Plot::points("x", vec![(1.0, 0.0)], vec![]),
        ] {
            let svg = plot.svg("t");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
