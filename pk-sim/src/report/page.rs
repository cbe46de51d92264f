//! The page around the plots.

use crate::scenario::{Outcome, Scenario};

/// A plot with its title.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) svg: String,
}

const STYLE: &str = "\
:root{--bg:#f6f7f9;--card:#fff;--text:#1b1f27;--dim:#5c6473;--line:#dfe3ea;--a:#1d5fd1;--b:#c2570c;\
--c:#0f766e;--bad:#b42318;--badbg:#fdecea;--good:#11734b}\
@media (prefers-color-scheme: dark){:root{--bg:#12151b;--card:#1b2029;--text:#e7eaf0;--dim:#9aa3b5;\
--line:#303744;--a:#7ab0ff;--b:#ffab66;--c:#5fd3c4;--bad:#ff9186;--badbg:#3b1d1d;--good:#66d9a3}}\
*{box-sizing:border-box}\
body{margin:0;background:var(--bg);color:var(--text);font:16px/1.5 system-ui,sans-serif}\
main{max-width:1180px;margin:0 auto;padding:1.25rem 1rem 3rem}\
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.05rem;margin:0}\
p{margin:.25rem 0}.dim,.note{color:var(--dim)}.note{font-size:.85rem;min-height:1.3rem}\
.facts{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;margin:.5rem 0 1rem;padding:0;list-style:none}\
.facts b{font-variant-numeric:tabular-nums}code{font-family:ui-monospace,monospace;font-size:.92em;\
overflow-wrap:anywhere}\
.ok{color:var(--good);font-weight:600}.fail{color:var(--bad);background:var(--badbg);\
padding:.6rem .9rem;border-radius:.5rem}.fail ul{margin:.25rem 0;padding-left:1.2rem}\
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:1rem;\
margin:1rem 0}\
section{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1rem;\
min-width:0}\
svg{display:block;width:100%;height:auto;margin-top:.4rem}\
svg text{font:11px system-ui,sans-serif;fill:var(--dim)}\
.axis{stroke:var(--line)}.l0{stroke:var(--a)}.l1{stroke:var(--b)}.l2{stroke:var(--c)}\
.line{fill:none;stroke-width:1.6;stroke-linejoin:round}.f0{fill:var(--a)}.f1{fill:var(--b)}\
.f2{fill:var(--c)}.dot{fill:var(--a);fill-opacity:.45}.mark{stroke:var(--b);stroke-dasharray:4 3}\
.range{fill:var(--a);fill-opacity:.25}.there{fill:none;stroke:var(--dim);stroke-dasharray:2 2}\
.link{fill:none;stroke:var(--dim);stroke-opacity:.45}.bar{stroke-width:4;stroke-linecap:round}\
.target{stroke:var(--c)}.answered{stroke:var(--a)}.silent,.unreachable{stroke:var(--bad)}\
.pending{stroke:var(--dim)}\
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:400;padding:.4rem .75rem .4rem 0}\
th small{display:block;color:var(--dim);line-height:1.3}td{text-align:right;white-space:nowrap;\
font-variant-numeric:tabular-nums;vertical-align:top;padding:.4rem 0}td span{color:var(--dim)}\
tr+tr{border-top:1px solid var(--line)}.bad td,.bad code{color:var(--bad);font-weight:600}";

/// Returns the whole page.
pub(super) fn page(
    scenario: &Scenario,
    outcome: &Outcome,
    figures: &str,
    cards: &[Card],
) -> String {
    let name = escape(&outcome.scenario);
    let verdict = if outcome.ok() {
        "<p class=\"ok\">All expected figures hold.</p>".to_owned()
    } else {
        let items = outcome.failed.iter().map(|text| format!("<li>{}</li>", escape(text)));
        let count = outcome.failed.len();
        let what = if count == 1 { "figure does" } else { "figures do" };
        format!(
            "<div class=\"fail\">{count} expected {what} not hold:<ul>{}</ul></div>",
            items.collect::<String>()
        )
    };
    let cards: String = cards
        .iter()
        .map(|Card { title, note, svg }| {
            let (title, note) = (escape(title), escape(note));
            format!("<section><h2>{title}</h2><p class=\"note\">{note}</p>{svg}</section>\n")
        })
        .collect();
    let facts = [
        ("nodes", outcome.nodes.to_string()),
        ("seed", outcome.seed.to_string()),
        ("virtual time", span(outcome.get("virtual_s").unwrap_or(0.0))),
        ("CPU time", span(outcome.get("cpu_s").unwrap_or(0.0))),
    ];
    let facts: String =
        facts.iter().map(|(what, value)| format!("<li>{what} <b>{value}</b></li>")).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>pk sim {name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>Scenario {name}</h1>\n<p class=\"dim\">{about}</p>\n<ul class=\"facts\">{facts}</ul>\n\
         {verdict}\n<div class=\"grid\">\n{cards}</div>\n\
         <section><h2>Figures</h2>\n<table>\n{figures}</table>\n\
         <p class=\"note\">Hash of everything that happened: <code>{hash}</code></p></section>\n\
         </main>\n</body>\n</html>\n",
        about = escape(&scenario.about),
        hash = escape(&outcome.trace_hash),
    )
}

/// Returns a text that is safe in HTML.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::new();
    for char in text.chars() {
        match char {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            other => safe.push(other),
        }
    }
    safe
}

/// Returns a number with at most four significant digits, and groups of three.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 1000.0 {
        let digits = format!("{size:.0}");
        let mut grouped = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place) % 3 == 0 {
                grouped.push('\u{202f}');
            }
            grouped.push(digit);
        }
        return if value < 0.0 { format!("−{grouped}") } else { grouped };
    }
    let decimals = match size {
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 1.0 => 3,
        _ => 4,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Returns a duration in the largest unit that suits.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s >= 172_800.0 => format!("{} days", number(s / 86_400.0)),
        s if s >= 7200.0 => format!("{} h", number(s / 3600.0)),
        s if s >= 120.0 => format!("{} min", number(s / 60.0)),
        s => format!("{} s", number(s)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.99951, "0.9995"),
            (12.345, "12.35"),
            (150.0, "150"),
            (1234.5, "1\u{202f}234"),
            (-1_234_567.0, "−1\u{202f}234\u{202f}567"),
            (20.0, "20"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!((span(59.0).as_str(), span(7200.0).as_str()), ("59 s", "2 h"));
        assert_eq!(escape("a<b & \"c\">"), "a&lt;b &amp; &quot;c&quot;&gt;");
    }
}
