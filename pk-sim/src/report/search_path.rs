//! A search as a path: contacts over time, nearer to the target the higher.

use super::plot::{frame, label, spaced};
use crate::scenario::Path;

const LEFT: f64 = 34.0;
const RIGHT: f64 = 12.0;
const WIDTH: f64 = 420.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 34.0;

/// Returns the SVG of a search.
pub(super) fn svg(path: &Path) -> String {
    // The target shares all bits; it is drawn one step above the nearest other contact.
    let deepest =
        path.steps.iter().map(|step| step.depth).filter(|depth| *depth < 256).max().unwrap_or(0);
    let target = f64::from(deepest) + 2.0;
    let height = (150.0 + 9.0 * path.steps.len() as f64).clamp(200.0, 420.0);
    let last = path.steps.iter().map(|step| step.begun_ms + step.took_ms).fold(1.0, f64::max);
    let x = |ms: f64| LEFT + ms / last * (WIDTH - LEFT - RIGHT);
    let level = |depth: u32| if depth >= 256 { target } else { f64::from(depth) };
    let y = |level: f64| height - BOTTOM - level / target * (height - BOTTOM - TOP);
    // Contacts of one depth beside each other, not upon each other.
    let mut beside = std::collections::BTreeMap::<u32, u32>::new();
    let places: Vec<f64> = path
        .steps
        .iter()
        .map(|step| {
            let place = beside.entry(step.depth).or_default();
            *place += 1;
            let shift = f64::from((*place - 1) % 5) * 0.17;
            y(level(step.depth) + if step.depth >= 256 { 0.0 } else { shift })
        })
        .collect();
    let mut body = String::new();
    for tick in spaced(0.0, f64::from(deepest), 6).into_iter().filter(|tick| tick.fract() == 0.0) {
        let at = y(tick);
        body += &format!(
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            WIDTH - RIGHT
        );
        body += &label(LEFT - 6.0, at + 4.0, "end", &format!("{tick:.0}"));
    }
    for tick in spaced(0.0, last, 6) {
        body += &label(x(tick), height - BOTTOM + 14.0, "middle", &format!("{tick:.0}"));
    }
    body += &label(WIDTH - RIGHT, height - 4.0, "end", "ms after the start");
    body += &label(4.0, 26.0, "start", "shared bits");
    let mut at = 4.0;
    for (name, class) in [
        ("target", "target"),
        ("answered", "answered"),
        ("no answer", "silent"),
        ("not waited for", "pending"),
    ] {
        body += &format!(
            "<line class=\"bar {class}\" x1=\"{at:.1}\" x2=\"{:.1}\" y1=\"8\" y2=\"8\"/>",
            at + 12.0
        );
        body += &label(at + 18.0, 12.0, "start", name);
        at += 30.0 + 6.2 * name.len() as f64;
    }
    for (step, to) in path.steps.iter().zip(&places) {
        if let Some((from, place)) =
            step.from.and_then(|from| path.steps.get(from).zip(places.get(from)))
        {
            let (a, b) = (x((from.begun_ms + from.took_ms).min(step.begun_ms)), x(step.begun_ms));
            body += &format!("<path class=\"link\" d=\"M{a:.1} {place:.1}L{b:.1} {to:.1}\"/>");
        }
    }
    for (step, at) in path.steps.iter().zip(&places) {
        let (from, to) = (x(step.begun_ms), x(step.begun_ms + step.took_ms));
        body += &format!(
            "<line class=\"bar {}\" x1=\"{from:.1}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"><title>{} shared bits, {:.0} ms from {:.0} ms: {}</title></line>",
            step.end,
            to.max(from + 1.0),
            step.depth,
            step.took_ms,
            step.begun_ms,
            step.end
        );
    }
    frame("One search", height, &body)
}
