//! No table exceeds its limit, and no gauge exceeds what can exist.

use pk_proto::{Config, Metrics};

use super::discipline::Held;
use super::violation::Violation;

/// Compares what exists, and the gauges of the machine, with the limits; returns the number of
/// comparisons. Without `held`, which needs a driver that keeps the contract, only the limits that
/// hold without it.
pub(super) fn check(
    metrics: &Metrics,
    held: Option<&Held>,
    config: &Config,
) -> Result<u64, Violation> {
    let of_itself = [
        ("connections", metrics.connections, config.connection_limit as u64),
        ("requests_open", metrics.requests_open, config.request_limit as u64),
        ("nodes", metrics.nodes, 256 * config.bucket_limit as u64),
    ];
    let checked = compare(&of_itself)?;
    Ok(checked + held.map_or(Ok(0), |held| check_held(metrics, held, config))?)
}

fn check_held(metrics: &Metrics, held: &Held, config: &Config) -> Result<u64, Violation> {
    let connections = metrics.connections + metrics.connections_pending;
    // A connection over a limit is closed at once, and counts until its end is reported.
    let ending = held.ending;
    let (connection_limit, dial_limit) = (config.connection_limit as u64, config.dial_limit as u64);
    let streams =
        held.streams.saturating_mul(config.send_window.saturating_add(config.send_queue_limit));
    let caps = [
        ("live connections", held.live, connection_limit),
        ("dials", held.dialing, dial_limit),
        ("connections + connections_pending", connections, held.live + held.dialing + ending),
        ("streams", metrics.streams, held.streams),
        (
            "receive_bytes",
            metrics.receive_bytes,
            (held.live + ending).saturating_mul(config.receive_window),
        ),
        ("send_bytes", metrics.send_bytes, streams),
    ];
    compare(&caps)
}

fn compare(caps: &[(&str, u64, u64)]) -> Result<u64, Violation> {
    for (name, value, cap) in caps {
        if value > cap {
            return Err(Violation::new("caps", format!("{name}: {value}, over {cap}")));
        }
    }
    Ok(caps.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::default();
        config.request_limit = 3;
        config.connection_limit = 4;
        config.dial_limit = 2;
        config.bucket_limit = 1;
        config.receive_window = 1000;
        config.send_window = 10;
        config.send_queue_limit = 90;
        config
    }

    fn at_the_caps() -> (Metrics, Held) {
        let mut metrics = Metrics::default();
        metrics.requests_open = 3;
        metrics.connections = 4;
        metrics.connections_pending = 3;
        metrics.nodes = 256;
        metrics.receive_bytes = 5000;
        metrics.streams = 2;
        metrics.send_bytes = 200;
        (metrics, Held { dialing: 2, live: 4, ending: 1, streams: 2 })
    }

    #[test]
    fn full_tables_pass_and_one_more_entry_is_caught() {
        let (metrics, held) = at_the_caps();
        assert_eq!(check(&metrics, Some(&held), &config()), Ok(9));
        type Plant = fn(&mut Metrics, &mut Held);
        let planted: [(&str, Plant); 9] = [
            ("live connections", |_, held| held.live += 1),
            ("dials", |_, held| held.dialing += 1),
            ("connections:", |metrics, _| metrics.connections += 1),
            ("connections + connections_pending", |metrics, _| metrics.connections_pending += 1),
            ("streams", |metrics, _| metrics.streams += 1),
            ("requests_open", |metrics, _| metrics.requests_open += 1),
            ("nodes", |metrics, _| metrics.nodes += 1),
            ("receive_bytes", |metrics, _| metrics.receive_bytes += 1),
            ("send_bytes", |metrics, _| metrics.send_bytes += 1),
        ];
        for (name, plant) in planted {
            let (mut metrics, mut held) = at_the_caps();
            assert_eq!(check(&metrics, None, &config()), Ok(3));
            plant(&mut metrics, &mut held);
            assert!(
                check(&metrics, Some(&held), &config()).unwrap_err().what.starts_with(name),
                "{name}"
            );
        }
    }
}
