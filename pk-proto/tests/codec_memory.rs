//! Allocations of the native codec for hostile bytes: few, for any announced length.

use bytes::Bytes;
use pk_proto::native::{self, Message, V1, decode};
use pk_proto::{
    ClosestNodes, ContactMode, FrameDecoder, FrameFault, MAX_FRAME, NodeAddress, NodeContact,
    NodeContactAddressData, NodeId, RpcResponse, Scopes, UnixMillis,
};

/// Peak of allocated memory during `work`, in bytes.
fn peak(work: impl FnOnce()) -> usize {
    allocation_counter::measure(work).bytes_max as usize
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// The start of a message up to a count or a length, and an element that may follow it.
fn places() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let node = [7; 32];
    let address = [0, 1, 2, 3, 4, 1];
    let connection = [&[0][..], &address, &[0, 0]].concat();
    let closest = [0, 2, 1];
    vec![
        ("agent", vec![0, 0, 1, 1, 0], b"a".to_vec()),
        ("protocol", vec![0, 3], b"p".to_vec()),
        ("local nodes", closest.to_vec(), [&node[..], &[0]].concat()),
        ("addresses", [&closest[..], &[1], &node].concat(), [&address[..], &[0, 0]].concat()),
        ("hostname", [&closest[..], &[1], &node, &[1, 2]].concat(), b"h".to_vec()),
        ("active nodes", [&closest[..], &[0]].concat(), [&node[..], &[0]].concat()),
        ("connections", [&closest[..], &[0, 1], &node].concat(), connection),
        ("shared id", [&closest[..], &[0, 1], &node, &[1]].concat(), vec![1]),
        (
            "hostname of a connection",
            [&closest[..], &[0, 1], &node, &[1, 0, 2]].concat(),
            b"h".to_vec(),
        ),
    ]
}

#[test]
fn count_allocates_nothing_and_a_list_is_dropped_at_its_cap() {
    for (place, start, element) in places() {
        for count in [21, 255, 65_535, 1 << 20, u64::from(u32::MAX), u64::MAX >> 1, u64::MAX] {
            let head = [start.clone(), varint(count)].concat();
            // Only the count, some elements after it, and a frame full of them.
            for size in [head.len(), head.len() + 64, 1024, MAX_FRAME] {
                let mut frame = head.clone();
                frame.extend(element.iter().cycle().take(size.saturating_sub(head.len())));
                let mut decoded = None;
                let peak = peak(|| decoded = Some(decode(&frame)));
                assert_eq!(
                    decoded,
                    Some(Err(FrameFault::Malformed)),
                    "{place}: {count} in {size} bytes"
                );
                // A list up to its limit, or a text that is too long.
                assert!(peak <= 4096, "{place}: {count} in {size} bytes: {peak} bytes of memory");
            }
        }
    }
}

#[test]
fn densest_answers_use_a_small_multiple_of_their_frame() {
    let node = [7; 32];
    let address = |port: u8| [&[0, 1, 2, 3, 4, port][..], &[0, 0]].concat();
    let known = [&node[..], &[8], &(1..=8).flat_map(address).collect::<Vec<u8>>()].concat();
    let active = [&node[..], &[8], &[0, 0, 1, 2, 3, 4, 1, 0, 0].repeat(8)].concat();
    for (lists, tail) in [
        ([&[20][..], &known.repeat(20), &[0]].concat(), &[][..]),
        ([&[0, 20], &active.repeat(20)[..]].concat(), &[]),
        ([&[20], &known.repeat(20)[..], &[20], &active.repeat(20)].concat(), &[]),
        // Refused at its last byte, after everything was read.
        ([&[20], &known.repeat(20)[..], &[20], &active.repeat(20)].concat(), &[0]),
    ] {
        let frame = [&[0, 2, 1], &lists[..], tail].concat();
        let mut decoded = None;
        let peak = peak(|| decoded = Some(decode(&frame)));
        assert_eq!(decoded.is_some_and(|decoded| decoded.is_ok()), tail.is_empty());
        assert!(peak <= 20 * frame.len(), "{peak} bytes of memory for {}", frame.len());
    }
}

#[test]
fn frame_uses_memory_as_its_bytes_arrive() {
    for announced in [[0, 1, 0, 0], [0, 1, 0, 1], [255; 4]] {
        let mut fault = None;
        let peak = peak(|| {
            let mut decoder = FrameDecoder::new();
            decoder.push(Bytes::copy_from_slice(&announced));
            fault = decoder.next().err();
        });
        assert_eq!(fault.is_some(), announced != [0, 1, 0, 0]);
        assert!(peak <= 64, "{peak} bytes of memory for a header");
    }
    // The largest frame, a byte at a time, and unread until a chunk is half there.
    for drained in [true, false] {
        let mut decoder = FrameDecoder::new();
        let mut held = 0;
        for i in 0..MAX_FRAME / 2 {
            held += allocation_counter::measure(|| {
                decoder.push(Bytes::copy_from_slice(&[if i == 1 { 1 } else { 0 }]));
                if drained {
                    assert_eq!(decoder.next(), Ok(None));
                }
            })
            .bytes_current;
            assert_eq!(decoder.buffered(), i + 1);
            assert!(held <= 2 * (i as i64) + 128, "{held} bytes of memory for {i}");
        }
    }
}

#[test]
fn usual_answer_takes_few_allocations() {
    let known = |i: u8| {
        let data = NodeContactAddressData {
            mode: ContactMode::Direct,
            connected_time: UnixMillis(1_700_000_000_000),
            scopes: Scopes::GLOBAL,
        };
        let address = NodeAddress { host: "192.0.2.1".parse().unwrap(), port: u16::from(i) + 1 };
        (NodeId::from_bytes([i; 32]), NodeContact::new(address, data))
    };
    let closest = ClosestNodes { known: (0..20).map(known).collect(), connected: vec![] };
    let mut fitted = None;
    let fit = allocation_counter::measure(|| fitted = Some(native::fit(closest)));
    let message =
        Message::V1(V1::Answer(RpcResponse::Closest(fitted.expect("the lists are reported"))));
    let mut frame = None;
    let encode = allocation_counter::measure(|| frame = native::encode(&message).ok());
    let frame = frame.expect("the message is valid");
    let mut decoded = None;
    let decode = allocation_counter::measure(|| decoded = decode(&frame[4..]).ok());
    assert_eq!(decoded, Some(message));
    let counts = [&fit, &encode, &decode].map(|info| info.count_total);
    assert!(counts.iter().zip([2, 3, 6]).all(|(count, limit)| *count <= limit), "{counts:?}");
}
