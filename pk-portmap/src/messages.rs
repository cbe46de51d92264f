//! The bytes of NAT-PMP (RFC 6886) and of the opcode MAP of PCP (RFC 6887), for UDP over IPv4.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use super::fault::Fault;

/// UDP port of a gateway (RFC 6886 section 3, RFC 6887 section 19).
pub const PORT: u16 = 5351;
/// Length of the nonce of a PCP mapping (RFC 6887 section 11.1).
pub const NONCE: usize = 12;

const NAT_PMP: u8 = 0;
const PCP: u8 = 2;
const RESPONSE: u8 = 0x80;
const OP_ADDRESS: u8 = 0;
const OP_MAP: u8 = 1;
/// IANA number of UDP.
const UDP: u8 = 17;
/// Length of a PCP header, with which an error may end.
const PCP_HEADER: usize = 24;
const PCP_MAP: usize = 60;
const NAT_PMP_ADDRESS: usize = 12;
const NAT_PMP_MAP: usize = 16;
/// Number of the error about another version, in both protocols.
const UNSUPPORTED_VERSION: u16 = 1;

/// A request. A lifetime of zero seconds withdraws the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// NAT-PMP: the external address of the gateway.
    Address,
    /// NAT-PMP: a mapping.
    Map {
        /// Port of the node.
        internal: u16,
        /// External port that is preferred.
        suggested: u16,
        /// Requested lifetime.
        seconds: u32,
    },
    /// PCP: a mapping.
    PcpMap {
        /// Random number that identifies the mapping to the gateway.
        nonce: [u8; NONCE],
        /// Address and port of the node; the request must be sent from this address.
        client: SocketAddrV4,
        /// External address that is preferred. `None`: any with the port of the node.
        suggested: Option<SocketAddrV4>,
        /// Requested lifetime.
        seconds: u32,
    },
}

/// A response that grants its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Seconds since the gateway has lost its mappings, by its own clock.
    pub epoch: u32,
    /// External address; of NAT-PMP only in the response to `Address`.
    pub ip: Option<Ipv4Addr>,
    /// External port of a mapping, not 0.
    pub port: u16,
    /// Lifetime of a mapping, not zero.
    pub lifetime: Duration,
}

impl Request {
    /// Returns the datagram.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Address => vec![NAT_PMP, OP_ADDRESS],
            Self::Map { internal, suggested, seconds } => {
                // A withdrawal suggests nothing (RFC 6886 section 3.4).
                let suggested = if *seconds == 0 { 0 } else { *suggested };
                let mut bytes = vec![NAT_PMP, OP_MAP, 0, 0];
                bytes.extend(internal.to_be_bytes());
                bytes.extend(suggested.to_be_bytes());
                bytes.extend(seconds.to_be_bytes());
                bytes
            }
            Self::PcpMap { nonce, client, suggested, seconds } => {
                let suggested =
                    suggested.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, client.port()));
                let mut bytes = vec![PCP, OP_MAP, 0, 0];
                bytes.extend(seconds.to_be_bytes());
                bytes.extend(client.ip().to_ipv6_mapped().octets());
                bytes.extend(nonce);
                bytes.extend([UDP, 0, 0, 0]);
                bytes.extend(client.port().to_be_bytes());
                bytes.extend(suggested.port().to_be_bytes());
                bytes.extend(suggested.ip().to_ipv6_mapped().octets());
                bytes
            }
        }
    }

    /// Reads a response. Returns `Ok(None)` if it belongs to another request.
    ///
    /// # Errors
    ///
    /// Every [`Fault`] except `Silent`.
    pub fn read(&self, bytes: &[u8]) -> Result<Option<Granted>, Fault> {
        match self {
            Self::Address | Self::Map { .. } => self.read_nat_pmp(bytes),
            Self::PcpMap { nonce, client, seconds, .. } => {
                read_pcp(bytes, nonce, client.port(), *seconds == 0)
            }
        }
    }

    /// Returns whether this withdraws a mapping.
    pub fn withdraws(&self) -> bool {
        matches!(self, Self::Map { seconds: 0, .. } | Self::PcpMap { seconds: 0, .. })
    }

    fn read_nat_pmp(&self, bytes: &[u8]) -> Result<Option<Granted>, Fault> {
        let op = match self {
            Self::Address => OP_ADDRESS,
            _ => OP_MAP,
        };
        let (version, got, result, epoch) = (
            number::<1>(bytes, 0)?[0],
            number::<1>(bytes, 1)?[0],
            u16::from_be_bytes(number(bytes, 2)?),
            u32::from_be_bytes(number(bytes, 4)?),
        );
        if version != NAT_PMP {
            return Err(Fault::Version { version });
        }
        if got & RESPONSE == 0 {
            return Err(Fault::Malformed("not a response"));
        }
        // An answer of the gateway to the other request, which was repeated.
        if got != op | RESPONSE {
            return match got & !RESPONSE {
                OP_ADDRESS | OP_MAP => Ok(None),
                _ => Err(Fault::Malformed("unknown opcode")),
            };
        }
        match result {
            0 => {}
            UNSUPPORTED_VERSION => return Err(Fault::Version { version }),
            code => return Err(refused(code, NAT_PMP_REASONS)),
        }
        let Self::Map { internal, seconds, .. } = self else {
            exact(bytes, NAT_PMP_ADDRESS)?;
            let ip = Ipv4Addr::from(number::<4>(bytes, 8)?);
            return Ok(Some(Granted { epoch, ip: Some(ip), port: 0, lifetime: Duration::ZERO }));
        };
        exact(bytes, NAT_PMP_MAP)?;
        if u16::from_be_bytes(number(bytes, 8)?) != *internal {
            return Ok(None);
        }
        let port = u16::from_be_bytes(number(bytes, 10)?);
        let lifetime = u32::from_be_bytes(number(bytes, 12)?);
        granted(epoch, None, port, lifetime, *seconds == 0)
    }
}

fn read_pcp(
    bytes: &[u8],
    nonce: &[u8; NONCE],
    internal: u16,
    withdraws: bool,
) -> Result<Option<Granted>, Fault> {
    let [version, op, _, result] = number::<4>(bytes, 0)?;
    // A gateway with NAT-PMP only answers in its own version (RFC 6887 appendix A).
    if version != PCP {
        return Err(Fault::Version { version });
    }
    if op & RESPONSE == 0 {
        return Err(Fault::Malformed("not a response"));
    }
    if op != OP_MAP | RESPONSE {
        return Err(Fault::Malformed("unknown opcode"));
    }
    if bytes.len() < PCP_HEADER || !bytes.len().is_multiple_of(4) {
        return Err(Fault::Malformed("wrong length"));
    }
    if u16::from(result) == UNSUPPORTED_VERSION {
        return Err(Fault::Version { version });
    }
    if bytes.len() < PCP_MAP {
        return Err(match result {
            0 => Fault::Malformed("wrong length"),
            code => refused(code.into(), PCP_REASONS),
        });
    }
    let is_ours = number::<NONCE>(bytes, 24)? == *nonce
        && number::<1>(bytes, 36)? == [UDP]
        && u16::from_be_bytes(number(bytes, 40)?) == internal;
    if !is_ours {
        return Ok(None);
    }
    if result != 0 {
        return Err(refused(result.into(), PCP_REASONS));
    }
    let lifetime = u32::from_be_bytes(number(bytes, 4)?);
    let epoch = u32::from_be_bytes(number(bytes, 8)?);
    let port = u16::from_be_bytes(number(bytes, 42)?);
    let ip = Ipv6Addr::from(number::<16>(bytes, 44)?).to_ipv4_mapped();
    match ip {
        None if !withdraws => Err(Fault::Malformed("the external address is not IPv4")),
        ip => granted(epoch, ip, port, lifetime, withdraws),
    }
}

fn granted(
    epoch: u32,
    ip: Option<Ipv4Addr>,
    port: u16,
    seconds: u32,
    withdraws: bool,
) -> Result<Option<Granted>, Fault> {
    if !withdraws && (port == 0 || seconds == 0) {
        return Err(Fault::Malformed("a mapping without port or lifetime"));
    }
    let lifetime = Duration::from_secs(seconds.into());
    Ok(Some(Granted { epoch, ip, port, lifetime }))
}

/// Errors by their number (RFC 6886 section 3.5).
const NAT_PMP_REASONS: &[&str] =
    &["", "", "not authorized", "network failure", "out of resources", "unsupported opcode"];

/// Errors by their number (RFC 6887 section 7.4).
const PCP_REASONS: &[&str] = &[
    "",
    "",
    "not authorized",
    "malformed request",
    "unsupported opcode",
    "unsupported option",
    "malformed option",
    "network failure",
    "no resources",
    "unsupported protocol",
    "user exceeded quota",
    "cannot provide external address",
    "address mismatch",
    "excessive remote peers",
];

fn refused(code: u16, reasons: &[&'static str]) -> Fault {
    let reason = reasons.get(usize::from(code)).copied().unwrap_or("unknown error");
    Fault::Refused { code, reason }
}

fn exact(bytes: &[u8], length: usize) -> Result<(), Fault> {
    match bytes.len() == length {
        true => Ok(()),
        false => Err(Fault::Malformed("wrong length")),
    }
}

/// Returns the `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Fault> {
    bytes
        .get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(Fault::Malformed("truncated"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 2), 0x1234);
    const EXTERNAL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 7), 0x5678);
    const MAP: Request = Request::Map { internal: 0x1234, suggested: 0x1234, seconds: 7200 };
    const PCP_REQUEST: Request = Request::PcpMap {
        nonce: *b"abcdefghijkl",
        client: CLIENT,
        suggested: Some(EXTERNAL),
        seconds: 7200,
    };

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect()
    }

    fn pcp_response() -> Vec<u8> {
        hex("02 81 00 00 00000e10 0000002a 000000000000000000000000
             6162636465666768696a6b6c 11 000000 1234 5678 00000000000000000000ffffcb007107")
    }

    fn of(
        request: Request,
        change: impl FnOnce(&mut Vec<u8>),
        good: &[u8],
    ) -> Result<Option<Granted>, Fault> {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        request.read(&bytes)
    }

    #[test]
    fn requests_have_the_bytes_of_the_rfcs() {
        assert_eq!(Request::Address.encode(), hex("00 00"));
        assert_eq!(MAP.encode(), hex("00 01 0000 1234 1234 00001c20"));
        let withdrawal = Request::Map { internal: 0x1234, suggested: 0x1234, seconds: 0 };
        assert_eq!(withdrawal.encode(), hex("00 01 0000 1234 0000 00000000"));
        assert_eq!(
            PCP_REQUEST.encode(),
            hex("02 01 0000 00001c20 00000000000000000000ffffc0a80102
                 6162636465666768696a6b6c 11 000000 1234 5678 00000000000000000000ffffcb007107")
        );
        let first = Request::PcpMap { nonce: [0; 12], client: CLIENT, suggested: None, seconds: 0 };
        assert_eq!(
            first.encode(),
            hex("02 01 0000 00000000 00000000000000000000ffffc0a80102
                 000000000000000000000000 11 000000 1234 1234 00000000000000000000ffff00000000")
        );
    }

    #[test]
    fn every_field_of_a_nat_pmp_response_is_read() {
        let address = hex("00 80 0000 0000002a cb007107");
        let granted =
            Granted { epoch: 42, ip: Some(*EXTERNAL.ip()), port: 0, lifetime: Duration::ZERO };
        assert_eq!(Request::Address.read(&address), Ok(Some(granted)));
        let map = hex("00 81 0000 0000002a 1234 5678 00000e10");
        let granted =
            Granted { epoch: 42, ip: None, port: 0x5678, lifetime: Duration::from_secs(3600) };
        assert_eq!(MAP.read(&map), Ok(Some(granted)));
        assert_eq!(MAP.read(&address), Ok(None), "the answer to the other request");
        assert_eq!(of(MAP, |b| b[8] = 9, &map), Ok(None), "another internal port");
        let malformed = |why| Err(Fault::Malformed(why));
        assert_eq!(of(MAP, |b| b.truncate(15), &map), malformed("wrong length"));
        assert_eq!(of(MAP, |b| b.push(0), &map), malformed("wrong length"));
        assert_eq!(of(MAP, |b| b.truncate(7), &map), malformed("truncated"));
        assert_eq!(of(MAP, |b| b[1] = 0x01, &map), malformed("not a response"));
        assert_eq!(of(MAP, |b| b[1] = 0xff, &map), malformed("unknown opcode"));
        let without = malformed("a mapping without port or lifetime");
        assert_eq!(of(MAP, |b| b[10..12].fill(0), &map), without);
        assert_eq!(of(MAP, |b| b[12..].fill(0), &map), without);
        assert_eq!(of(MAP, |b| b[0] = 2, &map), Err(Fault::Version { version: 2 }));
        assert_eq!(of(MAP, |b| b[3] = 1, &map), Err(Fault::Version { version: 0 }));
        let refused = |code, reason| Err(Fault::Refused { code, reason });
        assert_eq!(of(MAP, |b| b[3] = 2, &map), refused(2, "not authorized"));
        assert_eq!(of(MAP, |b| b[2] = 9, &map), refused(0x900, "unknown error"));
        let end = Request::Map { internal: 0x1234, suggested: 0, seconds: 0 };
        assert!(matches!(of(end, |b| b[10..].fill(0), &map), Ok(Some(_))), "withdrawn");
    }

    #[test]
    fn every_field_of_a_pcp_response_is_read() {
        let good = pcp_response();
        let granted = Granted {
            epoch: 42,
            ip: Some(*EXTERNAL.ip()),
            port: 0x5678,
            lifetime: Duration::from_secs(3600),
        };
        assert_eq!(PCP_REQUEST.read(&good), Ok(Some(granted)));
        // Options may follow.
        assert_eq!(of(PCP_REQUEST, |b| b.extend([0; 8]), &good), Ok(Some(granted)));
        for at in [24, 35, 36, 40, 41] {
            assert_eq!(of(PCP_REQUEST, |b| b[at] ^= 1, &good), Ok(None), "not ours: byte {at}");
        }
        let malformed = |why| Err(Fault::Malformed(why));
        assert_eq!(of(PCP_REQUEST, |b| b.truncate(3), &good), malformed("truncated"));
        assert_eq!(of(PCP_REQUEST, |b| b.truncate(20), &good), malformed("wrong length"));
        assert_eq!(of(PCP_REQUEST, |b| b.truncate(56), &good), malformed("wrong length"));
        assert_eq!(of(PCP_REQUEST, |b| b.push(0), &good), malformed("wrong length"));
        assert_eq!(of(PCP_REQUEST, |b| b[1] = 1, &good), malformed("not a response"));
        assert_eq!(of(PCP_REQUEST, |b| b[1] = 0x82, &good), malformed("unknown opcode"));
        let without = malformed("a mapping without port or lifetime");
        assert_eq!(of(PCP_REQUEST, |b| b[4..8].fill(0), &good), without);
        assert_eq!(of(PCP_REQUEST, |b| b[42..44].fill(0), &good), without);
        let foreign = malformed("the external address is not IPv4");
        assert_eq!(of(PCP_REQUEST, |b| b[54] = 0, &good), foreign);
        let version = |version| Err(Fault::Version { version });
        assert_eq!(PCP_REQUEST.read(&hex("00 81 0001 0000002a")), version(0));
        assert_eq!(of(PCP_REQUEST, |b| b[3] = 1, &good), version(2));
        let refused = Err(Fault::Refused { code: 8, reason: "no resources" });
        assert_eq!(of(PCP_REQUEST, |b| b[3] = 8, &good), refused);
        let short = |b: &mut Vec<u8>| {
            b[3] = 8;
            b.truncate(24);
        };
        assert_eq!(of(PCP_REQUEST, short, &good), refused);
    }

    #[test]
    fn no_bytes_panic() {
        let good = pcp_response();
        for end in 0..=good.len() {
            for request in [PCP_REQUEST, MAP, Request::Address] {
                for first in [0, 1, 2, 255] {
                    let mut bytes = good[..end].to_vec();
                    if let Some(byte) = bytes.first_mut() {
                        *byte = first;
                    }
                    let _ = request.read(&bytes);
                }
            }
        }
    }
}
