//! [`Arbitrary`] for the contract (feature `arbitrary`), where it cannot be derived.
//!
//! Purely random bytes would make inputs without an effect: an unknown id, a duration of 10^11
//! years, an invalid setting. The values here are small and collide often, so that an arbitrary
//! [`Input`] refers to an existing connection, and are often at the ends of the documented ranges.
//! Every type still has all values, with a lower probability.
//!
//! [`Input`]: crate::Input

use alloc::string::String;
use alloc::vec::Vec;

use arbitrary::{Arbitrary, Result, Unstructured};
use serde_json::{Map, Value};

use crate::api::config::{AddressPolicy, Config, ConfigError};
use crate::api::relay_config::RelayPolicy;
use crate::claims::{Claim, ClaimContent, ClaimId, ClaimLinkNode, ClaimPolicy, DigestAlgorithm};
use crate::types::address::{Host, Hostname, NodeAddress};
use crate::types::generators::{duration, ip, link_local, port};
use crate::types::id::NodeId;
use crate::types::signature::Signature;
use crate::types::time::UnixMillis;

/// The first byte value of [`NodeId::numbered`].
const NUMBERED: u8 = 0xa0;
/// Number of ids that [`NodeId::numbered`] can return.
const NUMBERS: u8 = 16;
/// Most arbitrary times are around this time, 1 January 2026.
const EPOCH: u64 = 1_767_225_600_000;
/// Maximum number of settings of one arbitrary [`Config`] that are not the default.
const CHANGES: u8 = 8;

impl NodeId {
    /// Returns the placeholder id with this number, 0 to 15: one byte value repeated, which is the
    /// key of no node. Most arbitrary node ids are placeholders. A fuzz target replaces them by ids
    /// of its scenario.
    ///
    /// ```
    /// # use pk_proto::NodeId;
    /// assert_eq!(NodeId::numbered(1).as_bytes(), &[0xa1; 32]);
    /// ```
    pub const fn numbered(number: u8) -> Self {
        Self::from_bytes([NUMBERED | (number % NUMBERS); 32])
    }
}

impl<'a> Arbitrary<'a> for NodeId {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        match u.arbitrary::<u8>()? {
            255 => Ok(Self::from_bytes(u.arbitrary()?)),
            number => Ok(Self::numbered(number)),
        }
    }

    fn size_hint(_depth: usize) -> (usize, Option<usize>) {
        (1, Some(33))
    }
}

impl<'a> Arbitrary<'a> for UnixMillis {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self(match u.arbitrary::<u8>()? {
            0 => 0,
            1 => u64::MAX,
            2 => u.arbitrary()?,
            // A year and a half to either side.
            3..=63 => EPOCH.saturating_add_signed(i64::from(u.arbitrary::<i16>()?) * 1_440_000),
            // Half a minute.
            _ => EPOCH.saturating_add_signed(u.arbitrary::<i16>()?.into()),
        }))
    }
}

impl<'a> Arbitrary<'a> for ClaimId {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        if u.ratio(1, 8)? {
            return Ok(Self::from_bytes(u.arbitrary()?));
        }
        let id = Self::next(&u.arbitrary()?, u.arbitrary()?, None);
        id.ok_or(::arbitrary::Error::IncorrectFormat)
    }
}

impl<'a> Arbitrary<'a> for Signature {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        u.arbitrary().map(Self)
    }
}

impl<'a> Arbitrary<'a> for Hostname {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let name = u.choose(&["localhost", "seed.example", "a.b", "xn--nxasmq6b", "_x.example"])?;
        name.parse().map_err(|_| ::arbitrary::Error::IncorrectFormat)
    }
}

impl<'a> Arbitrary<'a> for Host {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.arbitrary::<u8>()? {
            0..=31 => Self::Name(u.arbitrary()?),
            32..=47 => Self::Zoned(link_local(u)?, (*u.choose(&["1", "2", "eth0"])?).into()),
            // Not canonical, which no parser returns.
            48 => Self::Ip(ip(u)?),
            _ => Self::from_ip(ip(u)?),
        })
    }
}

impl<'a> Arbitrary<'a> for NodeAddress {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Self { host: u.arbitrary()?, port: port(u)? })
    }
}

impl<'a> Arbitrary<'a> for ClaimContent {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let (issuer, subject) = (u.arbitrary::<NodeId>()?, u.arbitrary::<NodeId>()?);
        let mut content = Self::link(&ClaimLinkNode { issuer, subject });
        if u.ratio(7, 8)? {
            let types =
                ["ClaimNetworkAccess", "ClaimNetworkAuthority", "ClaimLinkIdentity", "x", ""];
            content.typ = (*u.choose(&types)?).into();
            let members = [
                "{}",
                "{\"network\":\"a\"}",
                "{\"a\":1}",
                "{\"seq\":1}",
                "{\"b\":1,\"a\":2}",
                "[]",
            ];
            content.members = (*u.choose(&members)?).into();
        }
        if u.ratio(1, 8)? {
            content.issuer = u.arbitrary()?;
            content.subject = u.arbitrary()?;
        }
        Ok(content)
    }
}

impl<'a> Arbitrary<'a> for Claim {
    /// A claim without signatures.
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let (issuer, subject, id, unix) =
            (u.arbitrary()?, u.arbitrary()?, u.arbitrary()?, u.arbitrary()?);
        let draft =
            Self::draft(&ClaimContent::link(&ClaimLinkNode { issuer, subject }), id, unix, None);
        draft.map(|draft| draft.claim().clone()).map_err(|_| ::arbitrary::Error::IncorrectFormat)
    }
}

impl<'a> Arbitrary<'a> for Config {
    /// Settings that [`validate`](Self::validate) accepts: the defaults, of which up to eight are
    /// changed, most of them to an end of their range. A new field is covered automatically, unless
    /// its type is an enum or a text.
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut config = Self::default();
        for _ in 0..u.arbitrary::<u8>()? % CHANGES {
            match u.arbitrary::<u8>()? {
                0..=31 => config.claim_policy = u.arbitrary::<ClaimPolicy>()?,
                32..=47 => config.address_policy = u.arbitrary::<AddressPolicy>()?,
                48..=63 => config.claim_digest = u.arbitrary::<DigestAlgorithm>()?,
                64..=71 => {
                    let name = u.choose(&["", "a", "b"])?;
                    config.network = name.parse().ok();
                    config.network_required = config.network.is_some() && u.arbitrary()?;
                }
                72..=79 => config.relay.policy = u.arbitrary::<RelayPolicy>()?,
                _ => config = changed(config, u)?,
            }
            if config.validate().is_err() {
                config.claim_digest = DigestAlgorithm::default();
            }
        }
        Ok(config)
    }
}

/// Returns the settings with one number, duration or switch changed; unchanged if no value near the
/// drawn one is valid.
fn changed(config: Config, u: &mut Unstructured<'_>) -> Result<Config> {
    let Ok(Value::Object(fields)) = serde_json::to_value(&config) else { return Ok(config) };
    let names: Vec<_> = fields.keys().cloned().collect();
    let name = u.choose(&names)?;
    // A group of settings: one of them changes.
    let group = fields.get(name).and_then(Value::as_object).filter(|group| !is_duration(group));
    let (inner, before) = match group {
        Some(group) => {
            let names: Vec<_> = group.keys().cloned().collect();
            let inner = u.choose(&names)?.clone();
            let before = group.get(&inner);
            (Some(inner), before)
        }
        None => (None, fields.get(name)),
    };
    let Some(value) = drawn(before, u)? else { return Ok(config) };
    let read = |value| -> Option<Config> {
        let mut fields = fields.clone();
        match (&inner, fields.get_mut(name).and_then(Value::as_object_mut)) {
            (Some(inner), Some(group)) => group.insert(inner.clone(), value),
            _ => fields.insert(name.clone(), value),
        };
        serde_json::from_value(Value::Object(fields)).ok()
    };
    let Some(made) = read(value) else { return Ok(config) };
    let end = match made.validate() {
        Ok(()) => return Ok(made),
        // Outside of the range: use the nearer end.
        Err(ConfigError::Count { value, min, max, .. }) => {
            serde_json::to_value(value.clamp(min, max))
        }
        Err(ConfigError::Time { value, min, max, .. }) => {
            serde_json::to_value(value.clamp(min, max))
        }
        Err(_) => return Ok(config),
    };
    let made = end.ok().and_then(read).filter(|made| made.validate().is_ok());
    Ok(made.unwrap_or(config))
}

fn is_duration(fields: &Map<String, Value>) -> bool {
    fields.contains_key("secs") && fields.contains_key("nanos")
}

/// Returns another value of the same kind. `None` for a kind that only its type knows.
fn drawn(before: Option<&Value>, u: &mut Unstructured<'_>) -> Result<Option<Value>> {
    Ok(match before {
        Some(Value::Bool(before)) => Some(Value::Bool(!before)),
        Some(Value::Number(_)) => {
            let number: u64 = match u.arbitrary::<u8>()? {
                number @ 0..=191 => (number % 16).into(),
                192..=223 => u.arbitrary::<u16>()?.into(),
                224..=239 => u32::MAX.into(),
                _ => u.arbitrary::<u32>()?.into(),
            };
            Some(number.into())
        }
        Some(Value::Object(fields)) if is_duration(fields) => {
            serde_json::to_value(duration(u)?).ok()
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use alloc::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// Pseudorandom bytes.
    fn noise(seed: u64) -> Vec<u8> {
        let mut noise = alloc::vec![0; 1024];
        blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof().fill(&mut noise);
        noise
    }

    fn values<T: for<'a> Arbitrary<'a>>(count: u64) -> impl Iterator<Item = T> {
        (0..count).filter_map(|seed| T::arbitrary(&mut Unstructured::new(&noise(seed))).ok())
    }

    /// Every setting takes several values, so that a field of a type without a generator fails this
    /// test.
    #[test]
    fn arbitrary_settings_are_valid_and_differ() {
        let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for config in values::<Config>(20_000) {
            assert_eq!(config.validate(), Ok(()), "{config:?}");
            let Ok(Value::Object(fields)) = serde_json::to_value(&config) else {
                panic!("settings are an object")
            };
            for (name, value) in fields {
                if let Value::Object(group) = &value
                    && !is_duration(group)
                {
                    for (inner, value) in group {
                        let name = alloc::format!("{name}.{inner}");
                        seen.entry(name).or_default().insert(alloc::format!("{value}"));
                    }
                }
                seen.entry(name).or_default().insert(alloc::format!("{value}"));
            }
        }
        for (name, values) in seen {
            assert!(values.len() > 1, "{name} is always {values:?}");
        }
    }

    #[test]
    fn values_are_generated_without_bytes() {
        assert!(Config::arbitrary(&mut Unstructured::new(&[])).is_ok());
        assert!(crate::Input::arbitrary(&mut Unstructured::new(&[])).is_ok());
    }

    #[test]
    fn generated_numbers_and_ids_are_often_equal() {
        let few: BTreeSet<_> = values::<NodeId>(1000).collect();
        assert!((16..32).contains(&few.len()), "{}", few.len());
        let few: BTreeSet<_> = values::<crate::ConnectionId>(1000).collect();
        assert!((64..80).contains(&few.len()), "{}", few.len());
    }
}
