//! The message `External`. Its number is not the next one of [`wire::V1`], so that messages of other
//! extensions can be appended there.

use bytes::Bytes;
use serde::Serialize;

use super::{Message, V1, allow, read_address, size, wire, write_address};
use crate::types::address::{Host, NodeAddress};
use crate::wire::frame::{FrameFault, build_frame};

/// Number of the message among those of version 1.
const KIND: u32 = 32;
/// Version 1, then the number, as postcard writes them.
const TAGS: [u8; 2] = [0, KIND as u8];

pub(super) fn encode(address: &NodeAddress) -> Result<Bytes, FrameFault> {
    let address = write(address)?;
    build_frame(40, |mut frame| {
        frame.extend(TAGS);
        postcard::to_extend(&address, frame).map_err(|_| FrameFault::Malformed)
    })
}

/// Returns `None` for another message.
pub(super) fn decode(frame: &[u8]) -> Option<Result<Message, FrameFault>> {
    let rest = frame.strip_prefix(&TAGS)?;
    Some(read(rest).map(|address| Message::V1(V1::External { address })))
}

fn read(bytes: &[u8]) -> Result<NodeAddress, FrameFault> {
    let (address, rest) =
        postcard::take_from_bytes::<wire::Address<'_>>(bytes).map_err(|_| FrameFault::Malformed)?;
    // The only valid encoding.
    allow(rest.is_empty() && size(&address) == bytes.len())?;
    let address = read_address(&address)?;
    write(&address)?;
    Ok(address)
}

fn write(address: &NodeAddress) -> Result<impl Serialize + '_, FrameFault> {
    allow(!matches!(address.host, Host::Name(_)))?;
    write_address(address)
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn message(address: &str) -> Message {
        let (host, port) = address.rsplit_once('-').unwrap();
        let address = NodeAddress { host: host.parse().unwrap(), port: port.parse().unwrap() };
        Message::V1(V1::External { address })
    }

    #[test]
    fn golden_bytes() {
        let golden: [(&str, &[u8]); 2] = [
            ("203.0.113.7-1314", &[0, 0, 0, 9, 0, 32, 0, 203, 0, 113, 7, 0xa2, 0x0a]),
            (
                "2001:db8:0:0:0:0:0:1-80",
                &[
                    0, 0, 0, 20, 0, 32, 1, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
                    80,
                ],
            ),
        ];
        for (address, bytes) in golden {
            assert_eq!(super::super::encode(&message(address)).unwrap(), bytes, "{address}");
            assert_eq!(super::super::decode(&bytes[4..]), Ok(message(address)));
        }
    }

    #[test]
    fn other_encodings_are_malformed() {
        let good = super::super::encode(&message("203.0.113.7-1314")).unwrap()[4..].to_vec();
        let changed = |change: fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            super::super::decode(&bytes)
        };
        for change in [
            (|b| b.push(0)) as fn(&mut Vec<u8>),
            |b| b.truncate(7),
            // A longer encoding of the port.
            |b| b.splice(7.., [0xa2, 0x8a, 0]).for_each(drop),
            // No port.
            |b| b.splice(7.., [0]).for_each(drop),
            // A name.
            |b| b.splice(2.., [2, 1, b'a', 1]).for_each(drop),
        ] {
            assert_eq!(changed(change), Err(FrameFault::Malformed));
        }
        assert_eq!(changed(|b| b[1] = 33), Err(FrameFault::Unknown));
    }
}
