//! A run as one HTML page that needs nothing else: figures and plots, light and dark, also on a
//! phone.

mod page;
mod plot;
mod search_path;

use crate::scenario::{FIGURES, Run, Scenario};
use crate::stats::Sample;
use page::{Card, escape, number};
use plot::{Line, Plot};

/// Returns the page about a run.
pub fn html(scenario: &Scenario, run: &Run) -> String {
    let outcome = &run.outcome;
    let mut cards = Vec::new();
    let series = |value: fn(&crate::scenario::Sampled) -> f64| -> Vec<(f64, f64)> {
        // The first measurement has no rates, and the second may be of a moment.
        run.series.iter().skip(2).map(|sampled| (sampled.at_s, value(sampled))).collect()
    };
    let over_time = |title: &str, note: &str, unit: &str, lines: Vec<Line>| Card {
        title: title.to_owned(),
        note: note.to_owned(),
        svg: Plot::over_time(unit, lines).svg(title),
    };
    if run.series.len() > 3 {
        cards.push(over_time(
            "Dials and accepted connections",
            "per node and hour",
            "1/h",
            vec![
                Line::new("accepted", series(|s| s.accepted)),
                Line::new("dials", series(|s| s.dials)),
            ],
        ));
        cards.push(over_time(
            "Stream bytes",
            "sent per node and hour",
            "bytes/h",
            vec![Line::new("bytes", series(|s| s.bytes))],
        ));
        cards.push(over_time(
            "Datagrams",
            "sent per node and hour, with acknowledgements and keep-alives",
            "1/h",
            vec![Line::new("datagrams", series(|s| s.datagrams))],
        ));
        cards.push(over_time(
            "Nodes and connections",
            "honest nodes that run, and live connections per node",
            "",
            vec![
                Line::new("nodes", series(|s| s.nodes as f64)),
                Line::new("connections per node", series(|s| s.connections)),
            ],
        ));
    }
    for (title, note, points) in [
        ("Searches", "duration of each search whose target was not connected", &run.searches),
        ("Joins", "duration of each join, from the request to its end", &run.joins),
    ] {
        if !points.is_empty() {
            let took = Sample::new(points.iter().map(|(_, took)| *took));
            let marks = [("median", 50.0), ("95 %", 95.0)]
                .into_iter()
                .filter_map(|(name, percent)| Some((name, took.percentile(percent)?)))
                .collect();
            cards.push(Card {
                title: title.to_owned(),
                note: note.to_owned(),
                svg: Plot::points("ms", points.clone(), marks).svg(title),
            });
        }
    }
    if !run.buckets.is_empty() {
        cards.push(Card {
            title: "Buckets".to_owned(),
            note: "contacts of a node in each bucket, from the farthest (255): smallest number, \
                   median and largest; the outline is the number of nodes that exist, up to 25"
                .to_owned(),
            svg: plot::buckets(&run.buckets),
        });
    }
    if !run.load.is_empty() {
        let count = run.load.len() as f64;
        let points = run
            .load
            .iter()
            .enumerate()
            .map(|(place, load)| ((place as f64 + 0.5) / count * 100.0, *load))
            .collect();
        cards.push(Card {
            title: "Load per node".to_owned(),
            note: "accepted connections per hour of each node, from the least to the most loaded"
                .to_owned(),
            svg: Plot::ranked("1/h", vec![Line::new("accepted", points)]).svg("Load per node"),
        });
    }
    if let Some(path) = &run.path {
        cards.push(Card {
            title: "One search".to_owned(),
            note: format!(
                "the search with the most contacts, {} ms: each bar is a contact from its start to \
                 its end, at the number of bits that its id shares with the target; lines lead from \
                 the contact that reported it",
                number(path.took_ms)
            ),
            svg: search_path::svg(path),
        });
    }
    page::page(scenario, outcome, &figures(run), &cards)
}

/// Returns the rows of the table of figures.
fn figures(run: &Run) -> String {
    let outcome = &run.outcome;
    let measured = FIGURES.iter().filter_map(|figure| Some((figure, outcome.get(figure.name)?)));
    measured
        .map(|(figure, value)| {
            let failed = outcome.failed.iter().any(|text| {
                text.split(' ').next() == Some(figure.name)
            });
            format!(
                "<tr{}><th scope=\"row\"><code>{}</code><small>{}</small></th><td>{} <span>{}</span></td></tr>\n",
                if failed { " class=\"bad\"" } else { "" },
                figure.name,
                escape(figure.about),
                number(value),
                escape(figure.unit),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Options, run};

    #[test]
    fn page_has_every_plot_and_needs_no_network() {
        let text = "about = \"a <small> network\"\nnodes = 6\nhours = 0.2\nstart = \"join\"\n\
                    [[event]]\nat_s = 60\ndo = \"search\"\ncount = 10\nfor_s = 100\n\
                    [[expect]]\nfigure = \"found_rate\"\nmin = 2.0\n";
        let scenario = Scenario::parse("small.toml", text).unwrap();
        let run = run(&scenario, &Options::default()).unwrap();
        let page = html(&scenario, &run);
        for title in [
            "Dials and accepted connections",
            "Stream bytes",
            "Datagrams",
            "Joins",
            "Buckets",
            "Load per node",
        ] {
            assert!(page.contains(&format!("<h2>{title}</h2>")), "{title}");
        }
        assert!(page.matches("<svg").count() >= 7, "{}", page.matches("<svg").count());
        assert!(page.contains("a &lt;small&gt; network") && !page.contains("<small> network"));
        assert!(page.contains("class=\"bad\"") && page.contains("does not hold"));
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        for not_a_number in ["NaN", "inf"] {
            assert!(!page.contains(not_a_number), "{not_a_number}");
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("width=device-width"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}
