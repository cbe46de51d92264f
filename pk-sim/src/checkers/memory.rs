//! A node stores no more for its peers than the settings of its transport promise.

use pk_quic::TransportSettings;

use super::violation::Violation;

/// Memory of a node without peers, in bytes: its core, its endpoint and their tables.
const NODE: u64 = 1024 * 1024;

/// Compares the measured memory of a node with the limit for its number of peers.
pub(super) fn check(held: i64, peers: u64, settings: &TransportSettings) -> Result<(), Violation> {
    let limit = NODE + peers * settings.memory_per_peer();
    if u64::try_from(held).is_ok_and(|held| held > limit) {
        let what = format!("{held} bytes with {peers} peers, over {limit}");
        return Err(Violation::new("memory", what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_over_the_limit_is_caught() {
        let settings = TransportSettings::default();
        let limit = (NODE + 2 * settings.memory_per_peer()) as i64;
        assert_eq!(check(limit, 2, &settings), Ok(()));
        assert_eq!(check(-1, 0, &settings), Ok(()));
        assert!(check(limit + 1, 2, &settings).unwrap_err().what.contains("with 2 peers"));
    }
}
