//! Body of the fuzz target `gateway`: exchanges of PCP and NAT-PMP with a gateway that answers
//! anything. In a file of its own, so that `pk-portmap` needs nothing else; see
//! `pk-portmap/tests/fuzz.rs`, which replays the corpus.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use pk_portmap::{Exchange, Fault, NONCE, PATIENT, Request, Step};

const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 2), 0x1234);

const REQUESTS: [Request; 5] = [
    Request::Address,
    Request::Map { internal: 0x1234, suggested: 0x1234, seconds: 7200 },
    Request::Map { internal: 0x1234, suggested: 0, seconds: 0 },
    Request::PcpMap { nonce: [7; NONCE], client: CLIENT, suggested: None, seconds: 7200 },
    Request::PcpMap { nonce: [7; NONCE], client: CLIENT, suggested: None, seconds: 0 },
];

/// An exchange ends, within its time and a bounded number of datagrams, and what it grants can be
/// used.
///
/// Byte 0: the request. Then each datagram after its length; the last one may be truncated. Returns
/// whether the request was granted.
pub(crate) fn gateway(data: &[u8]) -> bool {
    let Some((&request, mut rest)) = data.split_first() else { return false };
    let request = REQUESTS[usize::from(request) % REQUESTS.len()];
    let mut exchange = Exchange::new(request, PATIENT);
    let (mut elapsed, mut sent) = (Duration::ZERO, 0);
    let result = loop {
        match exchange.poll(elapsed) {
            Step::Send => sent += 1,
            Step::Over(fault) => break Err(fault),
            Step::Wait(wait) => match rest.split_first() {
                Some((&length, after)) => {
                    let (datagram, after) = after.split_at(after.len().min(length.into()));
                    rest = after;
                    if let Some(result) = exchange.receive(datagram) {
                        break result;
                    }
                    elapsed += wait.min(Duration::from_millis(1));
                }
                None => elapsed += wait,
            },
        }
    };
    assert!((1..=PATIENT.len()).contains(&sent));
    assert!(elapsed <= Duration::from_millis(PATIENT.iter().sum()));
    match result {
        Ok(granted) => match request {
            Request::Address => assert!(granted.ip.is_some()),
            _ if request.withdraws() => {}
            Request::Map { .. } | Request::PcpMap { .. } => {
                assert!(granted.port != 0 && !granted.lifetime.is_zero());
                assert_eq!(granted.ip.is_some(), matches!(request, Request::PcpMap { .. }));
            }
        },
        Err(Fault::Refused { code, reason }) => assert!(code > 1 && !reason.is_empty()),
        Err(_) => {}
    }
    result.is_ok()
}
