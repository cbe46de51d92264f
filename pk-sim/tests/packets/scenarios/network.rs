//! Requests over networks that lose, reorder and duplicate.

use std::time::Duration;

use pk_sim::{Link, PacketWorld};

use super::{Row, percentiles};

const HOSTS: usize = 4;
const QUESTIONS: usize = 60;

struct Network {
    what: &'static str,
    link: Link,
    /// Maximum of the median of requests.
    p50: u64,
}

pub fn rows() -> Vec<Row> {
    let link = Link::ms(50);
    let jitter = |link: Link| link.jitter(Duration::from_millis(80));
    [
        Network { what: "no loss", link, p50: 110 },
        Network { what: "loss 1 %", link: link.loss(10), p50: 110 },
        Network { what: "loss 5 %", link: link.loss(50), p50: 110 },
        Network { what: "loss 10 %", link: link.loss(100), p50: 150 },
        Network { what: "loss 20 %", link: link.loss(200), p50: 400 },
        Network { what: "jitter 0–80 ms, which reorders", link: jitter(link), p50: 250 },
        Network { what: "20 % duplicated, 20 % overtaken", link: link.disorder(200), p50: 250 },
        Network {
            what: "loss 20 %, jitter 0–80 ms, 20 % duplicated, 20 % overtaken",
            link: jitter(link).loss(200).disorder(200),
            p50: 500,
        },
    ]
    .iter()
    .map(row)
    .collect()
}

fn row(network: &Network) -> Row {
    let mut world = PacketWorld::with_hosts(60 + u64::from(network.link.loss_per_mille), HOSTS);
    world.network_mut().set_default_link(network.link);
    let joined = (1..HOSTS).map(|n| world.join(n, 0)).max().unwrap_or_default();
    let pairs: Vec<_> =
        (0..HOSTS).flat_map(|a| (0..HOSTS).filter(move |b| *b != a).map(move |b| (a, b))).collect();
    let found = pairs.iter().filter(|(a, b)| world.find(*a, *b).is_some()).count();
    let mut times = Vec::new();
    for (from, to) in pairs.iter().cycle().take(QUESTIONS) {
        times.extend(world.ask(*from, *to));
        world.pass(Duration::from_millis(30));
    }
    let answered = times.len();
    let figure = format!(
        "{found} of {} found, {answered} of {QUESTIONS} answered: {}; slowest join {} ms",
        pairs.len(),
        percentiles(&mut times),
        joined.as_millis()
    );
    let p50 = Duration::from_millis(network.p50);
    let holds = found == pairs.len()
        && answered == QUESTIONS
        && times.get(QUESTIONS / 2).is_some_and(|median| *median <= p50);
    world.network_mut().set_default_link(Link::ms(50));
    world.stop_all();
    Row::new(
        format!("{}: {HOSTS} nodes join, search and ask", network.what),
        figure,
        format!("all, p50 ≤ {} ms", network.p50),
        holds,
    )
}
