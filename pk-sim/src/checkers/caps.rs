//! No gauge over its cap.

use pk_proto::{Config, Metrics};

use super::Violation;

/// Holds the gauges against the caps; returns how many.
pub(super) fn check(metrics: &Metrics, config: &Config) -> Result<u64, Violation> {
    let connections = metrics.connections + metrics.connections_pending;
    // Dials are begun up to a limit of their own; the one that is over the limit of connections is closed at once.
    let caps = [
        ("requests_open", metrics.requests_open, config.request_limit as u64),
        ("connections + connections_pending", connections, config.connection_limit as u64),
        ("nodes", metrics.nodes, 256 * config.bucket_limit as u64),
        ("receive_bytes", metrics.receive_bytes, connections.saturating_mul(config.receive_window)),
        (
            "send_bytes",
            metrics.send_bytes,
            metrics.streams.saturating_mul(config.send_window.saturating_add(config.send_queue_limit)),
        ),
    ];
    for (name, value, cap) in caps {
        if value > cap {
            return Err(Violation::new("caps", format!("{name} is {value}, over its cap of {cap}")));
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
        config.bucket_limit = 1;
        config.receive_window = 1000;
        config.send_window = 10;
        config.send_queue_limit = 90;
        config
    }

    fn at_the_caps() -> Metrics {
        let mut metrics = Metrics::default();
        metrics.requests_open = 3;
        metrics.connections = 3;
        metrics.connections_pending = 1;
        metrics.nodes = 256;
        metrics.receive_bytes = 4000;
        metrics.streams = 2;
        metrics.send_bytes = 200;
        metrics
    }

    #[test]
    fn full_is_right_and_one_more_is_caught() {
        assert_eq!(check(&at_the_caps(), &config()), Ok(5));
        let planted: [fn(&mut Metrics); 5] = [
            |metrics| metrics.requests_open += 1,
            |metrics| metrics.connections_pending += 1,
            |metrics| metrics.nodes += 1,
            |metrics| metrics.receive_bytes += 1,
            |metrics| metrics.send_bytes += 1,
        ];
        for plant in planted {
            let mut metrics = at_the_caps();
            plant(&mut metrics);
            assert!(check(&metrics, &config()).unwrap_err().what.contains("over its cap"), "{metrics:?}");
        }
    }
}
