//! Seed nodes and their text form: `pk://<NodeId>@<host>:<port>`.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use super::address::{NodeAddress, ParseAddressError, excerpt};
use super::id::{NodeId, ParseNodeIdError};

/// A node through which a node joins the network (specification: SeedNodes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct SeedNode {
    /// Node; a connection to any other node is not accepted.
    pub node: NodeId,
    /// Address; the driver resolves a host name.
    pub address: NodeAddress,
}

impl fmt::Display for SeedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pk://{}@{}", self.node, self.address)
    }
}

impl FromStr for SeedNode {
    type Err = ParseSeedNodeError;

    /// The scheme is optional.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = match text.split_once("://") {
            Some(("pk", rest)) => rest,
            Some((scheme, _)) => return Err(ParseSeedNodeError::Scheme(excerpt(scheme))),
            None => text,
        };
        let (node, address) = rest.split_once('@').ok_or(ParseSeedNodeError::NoAddress)?;
        Ok(Self { node: node.parse()?, address: address.parse()? })
    }
}

/// Why a text is not a seed node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseSeedNodeError {
    /// The scheme is not `pk`.
    #[error("the scheme of a seed node must be `pk://`, not `{0}://`")]
    Scheme(alloc::string::String),
    /// There is no `@` between id and address.
    #[error("a seed node has the form `pk://<node id>@<host>:<port>`; the `@` is missing")]
    NoAddress,
    /// The part before `@` is invalid.
    #[error("seed node: {0}")]
    Node(#[from] ParseNodeIdError),
    /// The part after `@` is invalid.
    #[error("seed node: {0}")]
    Address(#[from] ParseAddressError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const ID: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";

    #[test]
    fn every_well_formed_seed_reads_and_writes_back() {
        for (host, canonical) in [
            ("127.0.0.1:1314", "127.0.0.1:1314"),
            ("[::1]:1", "[::1]:1"),
            ("[::ffff:10.0.0.1]:9", "10.0.0.1:9"),
            ("Seed.Example.COM.:65535", "seed.example.com:65535"),
        ] {
            for scheme in ["pk://", ""] {
                let seed: SeedNode = alloc::format!("{scheme}{ID}@{host}").parse().unwrap();
                assert_eq!(seed.to_string(), alloc::format!("pk://{ID}@{canonical}"));
                assert_eq!(seed.to_string().parse::<SeedNode>().unwrap(), seed);
            }
        }
    }

    #[test]
    fn every_malformed_seed_names_its_fault() {
        use ParseSeedNodeError as E;
        let parse = |text: &str| text.parse::<SeedNode>().unwrap_err();
        assert!(matches!(parse(""), E::NoAddress));
        assert!(matches!(parse(ID), E::NoAddress));
        assert!(matches!(parse(&alloc::format!("http://{ID}@a.b:1")), E::Scheme(s) if s == "http"));
        assert!(matches!(parse("@a.b:1"), E::Node(ParseNodeIdError::Empty)));
        assert!(matches!(parse("xyz@a.b:1"), E::Node(ParseNodeIdError::Prefix('x'))));
        for bad_port in
            ["a.b", "a.b:", "a.b:0", "a.b:65536", "a.b:-1", "a.b:+1", "a.b:x", "1.2.3.4"]
        {
            let error = parse(&alloc::format!("{ID}@{bad_port}"));
            assert!(matches!(error, E::Address(ParseAddressError::Port(_))), "{bad_port}: {error}");
        }
        for bad_host in [
            ":1",
            "a..b:1",
            "-a:1",
            "a b:1",
            "1.2.3:1",
            "256.1.1.1:1",
            "[::1:1",
            "[a.b]:1",
            "[1.2.3.4]:1",
            "[]:1",
        ] {
            let error = parse(&alloc::format!("{ID}@{bad_host}"));
            assert!(matches!(error, E::Address(ParseAddressError::Host(_))), "{bad_host}: {error}");
        }
        assert!(matches!(
            parse(&alloc::format!("{ID}@::1:1")),
            E::Address(ParseAddressError::Brackets)
        ));
    }
}
