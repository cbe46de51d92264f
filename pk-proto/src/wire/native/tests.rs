use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::vec::Vec;
use alloc::{format, vec};

use data_encoding::HEXLOWER;

use super::*;
use crate::claims::ClaimId;
use crate::types::address::{ContactMode, NodeContactAddressData, Scopes};
use crate::types::contact::NodeContact;
use crate::types::id::NodeId;
use crate::types::refusal::Refusal;
use crate::types::signature::Signature;
use crate::types::time::UnixMillis;
use crate::wire::closest::{ActiveConnection, ActiveNode, ClosestNodesQuery};
use crate::wire::message::{ClaimsPage, PunchRequest, SignalRequest};

fn id(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

fn address(text: &str) -> NodeAddress {
    text.parse().unwrap()
}

fn data(mode: ContactMode, time: u64) -> NodeContactAddressData {
    NodeContactAddressData { mode, connected_time: UnixMillis(time), scopes: Scopes::GLOBAL }
}

fn contact(addresses: &[(&str, ContactMode, u64)]) -> NodeContact {
    addresses.iter().map(|(text, mode, time)| (address(text), data(*mode, *time))).collect()
}

fn connection(
    shared_id: &[u8],
    text: &str,
    primary: bool,
    idle_in_ms: Option<u64>,
) -> ActiveConnection {
    let shared_id = Bytes::copy_from_slice(shared_id);
    ActiveConnection { shared_id, address: address(text), primary, idle_in_ms }
}

fn closest(local: Vec<(NodeId, NodeContact)>, active: Vec<ActiveNode>) -> Message {
    Message::V1(V1::Answer(RpcResponse::Closest(ClosestNodes { known: local, connected: active })))
}

/// Every kind of message and its frame. This table may only grow: a changed line breaks
/// compatibility with every released node.
fn golden() -> Vec<(Message, &'static str)> {
    use ContactMode::{Direct, Relay, Signal};
    let v1 = Message::V1;
    let ask = |target, local, active| RpcRequest::Closest {
        target,
        query: ClosestNodesQuery { known: local, connected: active },
    };
    let call = |question| v1(V1::Call { deadline_ms: 15_000, request: question });
    let answer = |answer| v1(V1::Answer(answer));
    let signal = || SignalRequest {
        target: id(0x11),
        terms: SignalTerms::Once { expires: UnixMillis(1_700_000_000_123), nonce: [0x22; 16] },
        signature: Signature([0x33; 64]),
    };
    let plain = || SignalRequest { terms: SignalTerms::Plain, ..signal() };
    vec![
        (
            v1(V1::Hello(Hello {
                version_min: 1,
                version_max: 1,
                features: 0,
                agent: "pk".to_owned(),
            })),
            "00000008000001010002706b",
        ),
        (
            v1(V1::Hello(Hello {
                version_min: 1,
                version_max: 300,
                features: u64::MAX,
                agent: "pk/0.1.0 (ünïcode)".to_owned(),
            })),
            "00000024000001ac02ffffffffffffffffff0114706b2f302e312e302028c3bc6ec3af636f646529",
        ),
        (
            v1(V1::Call {
                deadline_ms: 15_000,
                request: RpcRequest::Ping { nonce: 0x0102_0304_0506_0708 },
            }),
            "0000000e0001987500888e98a8c0e0808101",
        ),
        (
            v1(V1::Call { deadline_ms: u32::MAX, request: ask(id(0xab), true, false) }),
            "0000002a0001ffffffff0f01abababababababababababababababababababababababababababababababab0100",
        ),
        (
            v1(V1::Call { deadline_ms: 0, request: ask(id(0), false, true) }),
            "000000260001000100000000000000000000000000000000000000000000000000000000000000000001",
        ),
        (
            v1(V1::Answer(RpcResponse::Pong { nonce: 0x0102_0304_0506_0708 })),
            "0000000c000200888e98a8c0e0808101",
        ),
        (closest(vec![], vec![]), "000000050002010000"),
        (
            closest(
                vec![
                    (
                        id(1),
                        contact(&[
                            ("198.51.100.7:1314", Direct, 1_700_000_000_123),
                            ("[2001:db8::1]:65535", Signal, 1_700_000_000_000),
                            ("seed.example.org:1", Relay, 0),
                        ]),
                    ),
                    (id(2), contact(&[("127.0.0.1:9", Direct, 5), ("127.0.0.1:8", Direct, 5)])),
                    (id(3), contact(&[])),
                ],
                vec![
                    ActiveNode {
                        node: id(4),
                        connections: vec![
                            connection(&[0xee; 32], "203.0.113.1:443", true, None),
                            connection(&[], "[2001:db8::2]:443", false, Some(60_000)),
                        ],
                    },
                    ActiveNode { node: id(5), connections: vec![] },
                ],
            ),
            concat!(
                "0000013b0002010301010101010101010101010101010101010101010101010101010101010101010300c6336407a20a00fb",
                "d095ffbc310120010db8000000000000000000000001ffff030180d095ffbc310210736565642e6578616d706c652e6f7267",
                "010200020202020202020202020202020202020202020202020202020202020202020202007f000001090005007f00000108",
                "0005030303030303030303030303030303030303030303030303030303030303030300020404040404040404040404040404",
                "0404040404040404040404040404040404040220eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
                "eeee00cb007101bb030100000120010db8000000000000000000000002bb030001e0d4030505050505050505050505050505",
                "05050505050505050505050505050505050500"
            ),
        ),
        (v1(V1::Open { protocol: "x".to_owned() }), "0000000400030178"),
        (
            v1(V1::Open { protocol: "org.example/chat 1~".to_owned() }),
            "000000160003136f72672e6578616d706c652f6368617420317e",
        ),
        (v1(V1::Accepted), "000000020004"),
        (
            call(RpcRequest::Signal(signal())),
            concat!(
                "0000007c00019875021111111111111111111111111111111111111111111111111111111111111111fbd095ffbc3122",
                "222222222222222222222222222222403333333333333333333333333333333333333333333333333333333333333333",
                "3333333333333333333333333333333333333333333333333333333333333333",
            ),
        ),
        (
            call(RpcRequest::Punch(Box::new(PunchRequest {
                source: id(0x44),
                address: address("198.51.100.7:1314"),
                address_text: "198.51.100.7-1314".to_owned(),
                request: signal(),
                relay_signature: Signature([0x55; 64]),
            }))),
            concat!(
                "000000e40001987503444444444444444444444444444444444444444444444444444444444444444400c6336407a20a",
                "1111111111111111111111111111111111111111111111111111111111111111fbd095ffbc3122222222222222222222",
                "222222222222403333333333333333333333333333333333333333333333333333333333333333333333333333333333",
                "333333333333333333333333333333333333333333333340555555555555555555555555555555555555555555555555",
                "55555555555555555555555555555555555555555555555555555555555555555555555555555555",
            ),
        ),
        (
            answer(RpcResponse::Signalled { address: address("198.51.100.7:1314") }),
            "0000000a00020200c6336407a20a",
        ),
        (answer(RpcResponse::Punching), "00000003000203"),
        (answer(RpcResponse::Refused(Refusal::NotConnected)), "0000000400020400"),
        (answer(RpcResponse::Refused(Refusal::Busy)), "0000000400020407"),
        (answer(RpcResponse::Refused(Refusal::Denied)), "0000000400020408"),
        (answer(RpcResponse::Refused(Refusal::Stale)), "0000000400020409"),
        (answer(RpcResponse::Refused(Refusal::Claim)), "000000040002040a"),
        (call(RpcRequest::SignClaim(Bytes::from_static(b"{}"))), "000000080001987505027b7d"),
        (answer(RpcResponse::SignedClaim(Bytes::from_static(b"{}"))), "00000006000206027b7d"),
        (answer(RpcResponse::Refused(Refusal::RelaySignature)), "000000040002040c"),
        (
            call(RpcRequest::Signal(plain())),
            concat!(
                "0000006600019875061111111111111111111111111111111111111111111111111111111111111111",
                "403333333333333333333333333333333333333333333333333333333333333333",
                "3333333333333333333333333333333333333333333333333333333333333333",
            ),
        ),
        (
            call(RpcRequest::Punch(Box::new(PunchRequest {
                source: id(0x44),
                address: address("10.0.0.1:9"),
                address_text: r#"{"host":"::ffff:10.0.0.1","port":9}"#.to_owned(),
                request: plain(),
                relay_signature: Signature([0x55; 64]),
            }))),
            concat!(
                "000000eb0001987507444444444444444444444444444444444444444444444444444444444444444411111111111111",
                "11111111111111111111111111111111111111111111111111237b22686f7374223a223a3a666666663a31302e302e30",
                "2e31222c22706f7274223a397d4033333333333333333333333333333333333333333333333333333333333333333333",
                "333333333333333333333333333333333333333333333333333333333333405555555555555555555555555555555555",
                "5555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555555",
            ),
        ),
        (
            v1(V1::Exchange {
                deadline_ms: 15_000,
                token: Bytes::from_static(b"{\"payload\":\"e30\"}"),
            }),
            "0000001600059875117b227061796c6f6164223a22653330227d",
        ),
        (v1(V1::Token { token: Bytes::from_static(b"{}") }), "000000050006027b7d"),
        (v1(V1::Network { network: "net".parse().unwrap() }), "000000060007036e6574"),
        (
            v1(V1::External { address: Some(address("198.51.100.7:1314")) }),
            "0000000a00080100c6336407a20a",
        ),
        (
            v1(V1::External { address: Some(address("[2001:db8::1]:80")) }),
            "000000150008010120010db800000000000000000000000150",
        ),
        (v1(V1::External { address: None }), "00000003000800"),
        (
            call(RpcRequest::Relay { target: NodeId::from_bytes([1; 32]) }),
            "0000002500019875080101010101010101010101010101010101010101010101010101010101010101",
        ),
        (
            call(RpcRequest::Circuit {
                source: NodeId::from_bytes([1; 32]),
                address: Some(address("198.51.100.7:1314")),
                same_network: true,
            }),
            concat!(
                "0000002e0001987509",
                "0101010101010101010101010101010101010101010101010101010101010101",
                "0100c6336407a20a01",
            ),
        ),
        (
            call(RpcRequest::Candidates(vec![address("10.0.0.7:1314")])),
            "0000000d000198750a01000a000007a20a",
        ),
        (answer(RpcResponse::Circuit { address: None, same_network: false }), "000000050002070000"),
        (answer(RpcResponse::Candidates(Vec::new())), "0000000400020800"),
        (answer(RpcResponse::Refused(Refusal::Volume)), "000000040002040d"),
        (call(RpcRequest::Claims { after: None, max_bytes: 49_152 }), "00000009000198750400808003"),
        (
            call(RpcRequest::Claims { after: Some(ClaimId::from_bytes([0x66; 16])), max_bytes: 0 }),
            "000000170001987504016666666666666666666666666666666600",
        ),
        (answer(RpcResponse::Claims(ClaimsPage::default())), "000000050002050000"),
        (
            answer(RpcResponse::Claims(ClaimsPage {
                claims: vec![
                    (ClaimId::from_bytes([0x66; 16]), Bytes::from_static(b"{}")),
                    (ClaimId::from_bytes([0x67; 16]), Bytes::new()),
                ],
                more: true,
            })),
            "000000290002050266666666666666666666666666666666027b7d676767676767676767676767676767670001",
        ),
    ]
}

#[test]
fn every_message_has_its_golden_bytes() {
    for (message, hex) in golden() {
        let frame = encode(&message).unwrap();
        assert_eq!(HEXLOWER.encode(&frame), hex, "{message:?}");
        assert_eq!(decode(&frame[4..]), Ok(message));
    }
}

/// Invariants of any bytes.
fn check(bytes: &[u8]) -> Result<Message, FrameFault> {
    let decoded = decode(bytes);
    if let Ok(message) = &decoded {
        assert_eq!(&encode(message).unwrap()[4..], bytes, "{message:?}");
    }
    decoded
}

#[test]
fn damaged_message_is_refused_or_decodes_to_another_message() {
    for (message, hex) in golden() {
        let bytes = HEXLOWER.decode(hex.as_bytes()).unwrap().split_off(4);
        for end in 0..bytes.len() {
            assert_eq!(
                check(&bytes[..end]),
                Err(FrameFault::Malformed),
                "{message:?} cut to {end}"
            );
        }
        for tail in [0, 1, 0x80, 0xff] {
            assert_eq!(
                check(&[&bytes[..], &[tail]].concat()),
                Err(FrameFault::Malformed),
                "{message:?} and {tail}"
            );
        }
        for at in 0..bytes.len() {
            for flip in 1..=255 {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                assert_ne!(check(&damaged), Ok(message.clone()), "{at} ^ {flip}");
            }
        }
    }
}

#[test]
fn new_kind_is_unknown_and_not_malformed() {
    use FrameFault::{Malformed, Unknown};
    for (bytes, fault) in [
        // the version, the message, the question, the answer: the next one, the last one, and what
        // may follow
        (&[1][..], Unknown),
        (&[0xff, 0xff, 0xff, 0xff, 0x0f], Unknown),
        (&[1, 2, 3], Unknown),
        (&[0, 9], Unknown),
        (&[0, 0x7f, 9, 9], Unknown),
        (&[0, 1, 0, 11], Unknown),
        (&[0, 1, 0x98, 0x75, 0x80, 0x01, 1], Unknown),
        (&[0, 2, 9], Unknown),
        (&[0, 2, 0xff, 0xff, 0xff, 0xff, 0x0f], Unknown),
        // not the only encoding of the tag, or over 32 bits
        (&[0x81, 0x00], Malformed),
        (&[0x80, 0x00, 4], Malformed),
        (&[0, 0x85, 0x00], Malformed),
        (&[0, 0x84, 0x00], Malformed),
        (&[0, 1, 0x80, 0x00, 9], Malformed),
        (&[0, 1, 0, 0x82, 0x80, 0x00], Malformed),
        (&[0, 2, 0xff, 0xff, 0xff, 0xff, 0x1f], Malformed),
        (&[0x80, 0x80, 0x80, 0x80, 0x80, 0x01], Malformed),
        // a tag that is incomplete or missing
        (&[], Malformed),
        (&[0x80], Malformed),
        (&[0], Malformed),
        (&[0, 1], Malformed),
        (&[0, 1, 0], Malformed),
        (&[0, 2], Malformed),
    ] {
        assert_eq!(check(bytes), Err(fault), "{bytes:?}");
    }
}

/// A node list of a response with one node, which has one address: mode direct, time 0.
fn closest_response(address: &[u8]) -> Vec<u8> {
    [&[0, 2, 1, 1][..], &[7; 32], &[1], address, &[0, 0], &[0]].concat()
}

#[test]
fn only_proper_addresses_are_read() {
    let name =
        |name: &str| [&[2, u8::try_from(name.len()).unwrap()], name.as_bytes(), &[1]].concat();
    let v6 =
        |ip: &str| [&[1][..], &ip.parse::<core::net::Ipv6Addr>().unwrap().octets(), &[1]].concat();
    for good in
        [vec![0, 1, 2, 3, 4, 1], v6("2001:db8::1"), v6("::1"), name("a.b"), name(&"a".repeat(63))]
    {
        assert!(check(&closest_response(&good)).is_ok(), "{good:?}");
    }
    for bad in [
        vec![0, 1, 2, 3, 4, 0],             // port 0
        vec![0, 1, 2, 3, 4, 0x81, 0],       // port 1 in two bytes
        vec![0, 1, 2, 3, 4, 0x80, 0x80, 4], // port 65536
        v6("::ffff:10.0.0.1"),
        name(""),
        name("A.b"),
        name("a.b."),
        name("a..b"),
        name("-a"),
        name("1.2.3.4"),
        name("a b"),
        name(&"a".repeat(64)),
        vec![2, 1, 0xff, 1],    // not UTF-8
        vec![3, 1, 2, 3, 4, 1], // a kind of host that there is not
    ] {
        assert_eq!(check(&closest_response(&bad)), Err(FrameFault::Malformed), "{bad:?}");
    }
}

#[test]
fn contact_is_read_only_in_its_defined_order() {
    let with_addresses = |addresses: &[[u8; 3]]| {
        let count = u8::try_from(addresses.len()).unwrap();
        let addresses =
            addresses.iter().flat_map(|[port, mode, time]| [0, 1, 2, 3, 4, *port, *mode, *time]);
        [&[0, 2, 1, 1][..], &[7; 32], &[count], &addresses.collect::<Vec<u8>>(), &[0]].concat()
    };
    assert!(check(&with_addresses(&[[1, 0, 9], [2, 1, 9], [3, 2, 8]])).is_ok());
    assert!(check(&with_addresses(&[[2, 0, 9], [1, 1, 9], [3, 2, 8]])).is_ok());
    for bad in [
        &[[1, 0, 8], [2, 0, 9]][..],
        &[[1, 0, 9], [1, 0, 9]],
        &[[1, 0, 9], [1, 1, 8]],
        &[[1, 3, 0]],
    ] {
        assert_eq!(check(&with_addresses(bad)), Err(FrameFault::Malformed), "{bad:?}");
    }
}

#[test]
fn texts_and_lists_have_caps_in_both_directions() {
    let hello = |agent: usize| {
        V1::Hello(Hello { version_min: 0, version_max: 0, features: 0, agent: "a".repeat(agent) })
    };
    let open = |protocol: &str| V1::Open { protocol: protocol.to_owned() };
    let ports = |count: usize| {
        let text = |port| format!("1.2.3.4:{port}");
        (1..=count)
            .map(|port| (address(&text(port)), data(ContactMode::Direct, 0)))
            .collect::<NodeContact>()
    };
    let answer = |local, active| {
        V1::Answer(RpcResponse::Closest(ClosestNodes { known: local, connected: active }))
    };
    let local =
        |nodes: usize, addresses: usize| answer(vec![(id(0), ports(addresses)); nodes], vec![]);
    let active = |nodes: usize, connections: usize, shared_id: usize| {
        let connections =
            vec![connection(&vec![1; shared_id], "1.2.3.4:5", false, None); connections];
        answer(vec![], vec![ActiveNode { node: id(0), connections }; nodes])
    };
    for good in [
        hello(0),
        hello(MAX_AGENT),
        open(" "),
        open(&"~".repeat(64)),
        local(MAX_NODES, MAX_PER_NODE),
        active(MAX_NODES, MAX_PER_NODE, MAX_SHARED_ID),
    ] {
        let good = Message::V1(good);
        assert_eq!(decode(&encode(&good).unwrap()[4..]), Ok(good));
    }
    for bad in [
        hello(MAX_AGENT + 1),
        open(""),
        open(&"~".repeat(65)),
        open("tab\t"),
        open("del\x7f"),
        open("é"),
        local(MAX_NODES + 1, 0),
        local(1, MAX_PER_NODE + 1),
        active(MAX_NODES + 1, 0, 0),
        active(1, MAX_PER_NODE + 1, 0),
        active(1, 1, MAX_SHARED_ID + 1),
    ] {
        let bad = Message::V1(bad);
        assert_eq!(encode(&bad), Err(FrameFault::Malformed), "{bad:?}");
        assert_eq!(check(&beyond(&bad)), Err(FrameFault::Malformed), "{bad:?}");
    }
    assert_eq!(decode(&vec![0; MAX_FRAME + 1]), Err(FrameFault::TooLong(65_537)));
}

/// The encoding of a peer without limits.
fn beyond(message: &Message) -> Vec<u8> {
    let Message::V1(message) = message;
    let count = |count: usize| vec![u8::try_from(count).unwrap()];
    let text = |text: &str| [&count(text.len())[..], text.as_bytes()].concat();
    match message {
        V1::Hello(hello) => [&[0, 0, 0, 0, 0], &text(&hello.agent)[..]].concat(),
        V1::Open { protocol } => [&[0, 3], &text(protocol)[..]].concat(),
        V1::Answer(RpcResponse::Closest(ClosestNodes { known: local, connected: active })) => {
            let mut bytes = [vec![0, 2, 1], count(local.len())].concat();
            for (node, contact) in local {
                bytes.extend([&node.as_bytes()[..], &count(contact.len())].concat());
                for (address, _) in contact.iter() {
                    bytes.extend([0, 1, 2, 3, 4, u8::try_from(address.port).unwrap(), 0, 0]);
                }
            }
            bytes.extend(count(active.len()));
            for ActiveNode { node, connections } in active {
                bytes.extend([&node.as_bytes()[..], &count(connections.len())].concat());
                for connection in connections {
                    bytes.extend(
                        [&count(connection.shared_id.len())[..], &connection.shared_id].concat(),
                    );
                    bytes.extend([0, 1, 2, 3, 4, 5, 0, 0]);
                }
            }
            bytes
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn data_for_the_local_node_only_is_never_sent() {
    let with = |address, data| closest(vec![(id(1), NodeContact::new(address, data))], vec![]);
    let zoned =
        NodeAddress { host: Host::Zoned("fe80::1".parse().unwrap(), "1".to_owned()), port: 1 };
    let mapped = NodeAddress { host: Host::Ip("::ffff:1.2.3.4".parse().unwrap()), port: 1 };
    let no_port = NodeAddress { port: 0, ..address("1.2.3.4:1") };
    let global = data(ContactMode::Direct, 0);
    let both = NodeContactAddressData { scopes: Scopes { local: true, global: true }, ..global };
    for bad in [
        with(zoned, global),
        with(mapped, global),
        with(no_port, global),
        with(address("1.2.3.4:1"), NodeContactAddressData { scopes: Scopes::LOCAL, ..global }),
    ] {
        assert_eq!(encode(&bad), Err(FrameFault::Malformed), "{bad:?}");
    }
    let frame = encode(&with(address("1.2.3.4:1"), both)).unwrap();
    assert_eq!(decode(&frame[4..]), Ok(with(address("1.2.3.4:1"), global)));
}

#[test]
fn every_answer_can_be_reduced_to_fit() {
    let name = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    let names = |count: usize| {
        let address = |port| address(&format!("{name}:{port}"));
        (1..=count)
            .map(|port| (address(port), data(ContactMode::Direct, 1)))
            .rev()
            .collect::<NodeContact>()
    };
    let mut mixed =
        contact(&[("1.2.3.4:1", ContactMode::Direct, 9), ("1.2.3.4:2", ContactMode::Direct, 8)]);
    mixed.set(
        NodeAddress { host: Host::Zoned("fe80::1".parse().unwrap(), "1".to_owned()), port: 1 },
        data(ContactMode::Direct, 10),
        9,
    );
    let secret = NodeContactAddressData { scopes: Scopes::LOCAL, ..data(ContactMode::Direct, 11) };
    mixed.set(address("10.0.0.1:1"), secret, 9);
    let only_local = NodeContact::new(address("10.0.0.1:1"), secret);
    let connections = [
        vec![connection(&[1; 65], "1.2.3.4:1", false, None)],
        vec![connection(&[1; 64], &format!("{name}:65535"), true, Some(u64::MAX)); 9],
    ];

    let small = ClosestNodes {
        known: vec![(id(1), mixed), (id(2), only_local)],
        connected: vec![ActiveNode { node: id(3), connections: connections[0].clone() }],
    };
    let expected =
        contact(&[("1.2.3.4:1", ContactMode::Direct, 9), ("1.2.3.4:2", ContactMode::Direct, 8)]);
    assert_eq!(fit(small), ClosestNodes { known: vec![(id(1), expected)], connected: vec![] });

    let active = |node| ActiveNode { node: id(node), connections: connections.concat() };
    let big = ClosestNodes {
        known: (0..30).map(|node| (id(node), names(9))).collect(),
        connected: (0..30).map(active).collect(),
    };
    let fitted = fit(big);
    assert_eq!(fitted.known.len(), MAX_NODES);
    assert!(fitted.known.iter().all(|(_, contact)| contact.len() == MAX_PER_NODE));
    assert!((1..MAX_NODES).contains(&fitted.connected.len()));
    assert!(fitted.connected.iter().all(|active| active.connections.len() == MAX_PER_NODE));
    let message = Message::V1(V1::Answer(RpcResponse::Closest(fitted.clone())));
    let frame = encode(&message).unwrap();
    assert!(frame.len() > MAX_FRAME - 4096, "the room is used");
    assert_eq!(decode(&frame[4..]), Ok(message));
    assert_eq!(fit(fitted.clone()), fitted);
}
