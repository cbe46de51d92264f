//! The interval of the checks of contacts, which follows the deaths that they find.
//!
//! A fixed interval is too long where nodes die and too short where none does. Each dead contact
//! makes the interval a quarter, each live one a fifth longer: it settles where one check in eight
//! finds a dead contact.

use core::time::Duration;

use crate::api::upkeep_config::UpkeepConfig;

/// The interval of checks.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    interval: Option<Duration>,
}

impl Pace {
    /// Returns the interval.
    pub(crate) fn interval(&self, config: &UpkeepConfig) -> Duration {
        let most = config.check_most.max(config.check_least);
        self.interval.unwrap_or(config.check_first).clamp(config.check_least, most)
    }

    /// Returns the time in which each of so many contacts is checked.
    pub(crate) fn cycle(&self, config: &UpkeepConfig, contacts: usize) -> Duration {
        self.interval(config).saturating_mul(u32::try_from(contacts).unwrap_or(u32::MAX))
    }

    /// A contact has failed that was not failing.
    pub(crate) fn found_dead(&mut self, config: &UpkeepConfig) {
        self.interval = Some(self.interval(config) / 4);
    }

    /// A checked contact is alive, or none needs a check.
    pub(crate) fn found_alive(&mut self, config: &UpkeepConfig) {
        self.interval = Some(self.interval(config) * 6 / 5);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_follows_the_deaths_between_its_limits() {
        let config = UpkeepConfig::default();
        let mut pace = Pace::default();
        assert_eq!(pace.interval(&config), config.check_first);
        (0..100).for_each(|_| pace.found_alive(&config));
        assert_eq!(pace.interval(&config), config.check_most);
        pace.found_dead(&config);
        assert_eq!(pace.interval(&config), config.check_most / 4);
        (0..10).for_each(|_| pace.found_dead(&config));
        assert_eq!(pace.interval(&config), config.check_least);
        pace.found_alive(&config);
        assert_eq!(pace.interval(&config), config.check_least * 6 / 5);
    }

    #[test]
    fn limits_that_contradict_each_other_are_one_interval() {
        let config = UpkeepConfig {
            check_least: Duration::from_secs(100),
            check_most: Duration::from_secs(10),
            ..UpkeepConfig::default()
        };
        assert_eq!(Pace::default().interval(&config), config.check_least);
    }
}
