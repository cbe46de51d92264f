//! Network isolation: nodes of different networks refuse each other, before they answer anything
//! else, in both dialects.

use std::time::Duration;

use bytes::Bytes;
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::polykey::{Response, parse_response, write_further, write_request};
use pk_proto::{
    Config, ConnectionId, DialFailure, Dialect, Event, Failure, Input, NodeAddress, Output,
    PeerFault, Request, RequestId, RpcRequest, Side, StreamId, code,
};
use pk_sim::{Cluster, Key};

use crate::common::*;

const METHOD: &str = "nodesAuthenticateConnection";
const SUCCESS: &str = r#"{"type":"success","success":true}"#;
const NONE: &str = r#"{"type":"NodesAuthenticateConnectionMessageNone"}"#;

/// The message of a member of a network.
fn member(network: &str) -> String {
    format!(r#"{{"type":"NodesAuthenticateConnectionMessageBasicPublic","networkId":"{network}"}}"#)
}

/// A network, and whether it is required.
type Membership = Option<(&'static str, bool)>;

const MEMBERSHIPS: [Membership; 5] =
    [None, Some(("a", false)), Some(("a", true)), Some(("b", false)), Some(("b", true))];

fn join(config: &mut Config, membership: Membership) {
    if let Some((network, required)) = membership {
        config.network = Some(network.parse().unwrap());
        config.network_required = required;
    }
}

/// Whether a node with the first membership accepts one with the second.
fn accepts(own: Membership, peer: Membership) -> bool {
    match (own, peer) {
        (None, _) => true,
        (Some((own, _)), Some((peer, _))) => own == peer,
        (Some((_, required)), None) => !required,
    }
}

#[test]
fn nodes_connect_if_and_only_if_each_accepts_the_network_of_the_other() {
    for dialect in [Dialect::Native, Dialect::Polykey] {
        for dialer in MEMBERSHIPS {
            for acceptor in MEMBERSHIPS {
                let what = format!("{dialect:?}: {dialer:?} dials {acceptor:?}");
                let expected = accepts(dialer, acceptor) && accepts(acceptor, dialer);
                let mut cluster = Cluster::quiet()
                    .nodes(2)
                    .seed(7)
                    .config_of(0, |config| join(config, dialer))
                    .config_of(1, |config| join(config, acceptor))
                    .build();
                for node in 0..2 {
                    cluster.host_mut(node).dialects = vec![dialect];
                    cluster.start_node(node);
                }
                cluster.drive(Duration::ZERO);
                add_contact(&mut cluster, 0, 1);
                let reply = cluster.connect(0, 1);
                // Longer than an acceptor waits for the network.
                cluster.drive(15 * SECOND);
                let ids = [cluster.id(0), cluster.id(1)];
                for node in 0..2 {
                    let metrics = cluster.node(node).metrics();
                    let contact = cluster.node(node).contact(ids[1 - node]).is_some();
                    let found = (metrics.connections == 1, contact);
                    assert_eq!(found, (expected, expected), "{what}: node {node}");
                    assert_eq!(metrics.stream_faults, 0, "{what}: node {node}");
                }
                match reply {
                    Ok(_) if expected => {}
                    // On `quic` a dialer without a network learns it when the acceptor closes.
                    Ok(_) => assert_eq!((dialect, dialer), (Dialect::Polykey, None), "{what}"),
                    Err(Failure::Dial(failures)) => {
                        let other = |(_, why): &(NodeAddress, DialFailure)| {
                            matches!(why, DialFailure::OtherNetwork(_))
                        };
                        assert!(!expected && failures.iter().all(other), "{what}: {failures:?}");
                    }
                    Err(other) => panic!("{what}: {other:?}"),
                }
            }
        }
    }
}

/// Six nodes with each other as contacts, half of them in another network, search for each other.
#[test]
fn nodes_of_another_network_are_not_found_and_leave_every_graph() {
    let network = |node: usize| if node.is_multiple_of(2) { "a" } else { "b" };
    let mut builder = Cluster::quiet().nodes(6).seed(3);
    for node in 0..6 {
        builder = builder.config_of(node, |config| join(config, Some((network(node), false))));
    }
    let mut cluster = builder.start();
    for node in 0..6 {
        (0..6).filter(|of| *of != node).for_each(|of| add_contact(&mut cluster, node, of));
    }
    for from in 0..6 {
        for to in (0..6).filter(|to| *to != from) {
            let target = cluster.id(to);
            let found = find(&mut cluster, from, target).found.is_some();
            assert_eq!(found, network(from) == network(to), "{from} searches for {to}");
        }
    }
    cluster.drive(15 * SECOND);
    for node in 0..6 {
        let contacts = (0..6).filter(|of| {
            let id = cluster.id(*of);
            cluster.node(node).contact(id).is_some()
        });
        let same: Vec<_> =
            (0..6).filter(|of| *of != node && network(*of) == network(node)).collect();
        assert_eq!(contacts.collect::<Vec<_>>(), same, "node {node}");
    }
}

// -- `pk/1`, message by message

fn frame(message: V1) -> Bytes {
    native::encode(&Message::V1(message)).unwrap()
}

fn hello_of_a_member() -> Bytes {
    let features = Hello::EXCHANGE | Hello::NETWORK;
    frame(V1::Hello(Hello { version_min: 1, version_max: 1, features, agent: "test".into() }))
}

fn network(name: &str) -> Bytes {
    frame(V1::Network { network: name.parse().unwrap() })
}

/// The code with which a connection was closed.
fn closed(outputs: &[Output], of: ConnectionId) -> Option<u64> {
    outputs.iter().find_map(|output| match output {
        Output::CloseConnection { conn, code, .. } if *conn == of => Some(*code),
        _ => None,
    })
}

fn is_accepted(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Event(Event::ConnectionOpened { .. })))
}

fn bare(membership: Membership) -> Bare {
    Bare::new(|config| join(config, membership))
}

/// A peer has dialed. Returns its connection.
fn dialed_by_peer(bare: &mut Bare, dialect: Dialect) -> ConnectionId {
    let conn = ConnectionId(bare.next_id());
    let remote = "198.51.100.1:1314".parse().unwrap();
    bare.connected_over(dialect, conn, Side::Acceptor, Bare::peer(1), remote, 9);
    conn
}

#[test]
fn acceptor_answers_nothing_before_the_network() {
    for (name, opens) in [("a", true), ("b", false)] {
        let mut bare = bare(Some(("a", true)));
        let conn = dialed_by_peer(&mut bare, Dialect::Native);
        let early = bare.opened(conn);
        let ping = RpcRequest::Ping { nonce: 7 };
        bare.feed(early, &frame(V1::Call { deadline_ms: 1000, request: ping }), true);
        let control = bare.opened(conn);
        bare.feed(control, &hello_of_a_member(), false);
        let outputs = bare.take();
        let said = messages(&outputs, control);
        assert!(
            matches!(&said[..], [V1::Hello(hello), V1::Network { network }]
                if hello.features & Hello::NETWORK != 0 && network.as_str() == "a"),
            "{said:?}"
        );
        assert!(messages(&outputs, early).is_empty() && !is_accepted(&outputs));
        bare.feed(control, &network(name), false);
        let outputs = bare.take();
        assert_eq!(messages(&outputs, early).len(), usize::from(opens), "{name}");
        let refusal = (!opens).then_some(code::CONNECTION_NETWORK);
        assert_eq!((is_accepted(&outputs), closed(&outputs, conn)), (opens, refusal), "{name}");
        let metrics = bare.node.metrics();
        assert_eq!(metrics.connections_of_other_networks, u64::from(!opens), "{name}");
    }
}

#[test]
fn peer_without_a_network_is_refused_only_if_it_is_required() {
    for required in [false, true] {
        let mut bare = bare(Some(("a", required)));
        let conn = dialed_by_peer(&mut bare, Dialect::Native);
        let control = bare.opened(conn);
        bare.feed(control, &hello(), false);
        let outputs = bare.take();
        let refusal = required.then_some(code::CONNECTION_NETWORK);
        assert_eq!((is_accepted(&outputs), closed(&outputs, conn)), (!required, refusal));
    }
}

#[test]
fn network_without_a_reason_or_twice_is_a_fault() {
    for (membership, hello, networks) in
        [(None, hello_of_a_member(), 1), (Some(("a", false)), hello_of_a_member(), 2)]
    {
        let mut bare = bare(membership);
        let conn = dialed_by_peer(&mut bare, Dialect::Native);
        let control = bare.opened(conn);
        bare.feed(control, &hello, false);
        for _ in 0..networks {
            bare.feed(control, &network("a"), false);
        }
        assert_eq!(faults(&bare.take()), [PeerFault::Unexpected], "{membership:?}");
    }
}

// -- `quic`, message by message

/// The responses on a stream: the text of each result, or the class of an error.
fn responses(outputs: &[Output], stream: StreamId) -> Vec<String> {
    let bytes = sent(outputs, stream).0;
    let objects = serde_json::Deserializer::from_slice(&bytes).into_iter::<serde_json::Value>();
    objects
        .map(|object| {
            let text = object.unwrap().to_string();
            match parse_response(text.as_bytes()).unwrap() {
                Response::Result(result) => result.to_owned(),
                Response::Error(error) => error.class,
            }
        })
        .collect()
}

/// The value of a JSON text, for comparisons that ignore the order of its members.
fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn assert_said(outputs: &[Output], stream: StreamId, expected: &[&str], what: &str) {
    let said: Vec<_> = responses(outputs, stream).iter().map(|text| json(text)).collect();
    let expected: Vec<_> = expected.iter().map(|text| json(text)).collect();
    assert_eq!(said, expected, "{what}");
}

/// What the second message of a caller is answered with, and whether it ends the connection.
#[test]
fn responder_follows_the_protocol() {
    let own = member("a");
    for (first, second, answers, accepted, close) in [
        (member("a"), Some(SUCCESS), vec![SUCCESS, &own, SUCCESS], true, None),
        (
            member("b"),
            None,
            vec!["ErrorNodeManagerAuthenticationFailed"],
            false,
            Some(code::CONNECTION_NETWORK),
        ),
        (
            NONE.into(),
            None,
            vec!["ErrorNodeManagerAuthenticationFailed"],
            false,
            Some(code::CONNECTION_NETWORK),
        ),
        (
            r#"{"type":"x"}"#.into(),
            None,
            vec!["ErrorNodeAuthenticationInvalidProtocol"],
            false,
            Some(code::CONNECTION_FAULT),
        ),
        (
            SUCCESS.into(),
            None,
            vec!["ErrorNodeAuthenticationInvalidProtocol"],
            false,
            Some(code::CONNECTION_FAULT),
        ),
        (
            member("a"),
            Some(NONE),
            vec![SUCCESS, &own, "ErrorNodeAuthenticationInvalidProtocol"],
            false,
            Some(code::CONNECTION_FAULT),
        ),
    ] {
        let what = format!("{first} {second:?}");
        let mut bare = bare(Some(("a", true)));
        let conn = dialed_by_peer(&mut bare, Dialect::Polykey);
        let stream = bare.opened(conn);
        bare.feed(stream, &write_request(METHOD, &first, None), false);
        if let Some(second) = second {
            bare.feed(stream, &write_further(METHOD, second), false);
        }
        let outputs = bare.take();
        assert_said(&outputs, stream, &answers, &what);
        assert_eq!((is_accepted(&outputs), closed(&outputs, conn)), (accepted, close), "{what}");
    }
}

#[test]
fn responder_that_requires_its_network_denies_every_other_request() {
    let mut bare = bare(Some(("a", true)));
    let conn = dialed_by_peer(&mut bare, Dialect::Polykey);
    let id = Key::numbered(1, 1).id();
    let params = format!(r#"{{"nodeIdEncoded":"{id}"}}"#);
    let other = write_request("nodesClosestLocalNodesGet", &params, None);
    let unknown = write_request("vaultsScan", "{}", None);
    for request in [&other, &unknown] {
        let stream = bare.opened(conn);
        bare.feed(stream, request, true);
        assert_said(&bare.take(), stream, &["ErrorNodeConnectionManagerRPCDenied"], "denied");
    }
    assert_eq!(bare.node.metrics().requests_denied, 2);
    // The connection can still be authenticated, also twice; then requests are served.
    for turn in 0..2 {
        let stream = bare.opened(conn);
        bare.feed(stream, &write_request(METHOD, &member("a"), None), false);
        bare.feed(stream, &write_further(METHOD, SUCCESS), false);
        let outputs = bare.take();
        assert_said(&outputs, stream, &[SUCCESS, &member("a"), SUCCESS], "authentication");
        assert_eq!((is_accepted(&outputs), closed(&outputs, conn)), (turn == 0, None));
    }
    let stream = bare.opened(conn);
    bare.feed(stream, &other, true);
    assert!(sent(&bare.take(), stream).1, "served");
}

#[test]
fn silent_caller_is_closed_only_if_the_network_is_required() {
    for required in [false, true] {
        let mut bare = bare(Some(("a", required)));
        let conn = dialed_by_peer(&mut bare, Dialect::Polykey);
        assert_eq!(is_accepted(&bare.take()), !required);
        bare.pass(11 * SECOND);
        let refusal = required.then_some(code::CONNECTION_NETWORK);
        assert_eq!(closed(&bare.take(), conn), refusal);
    }
}

#[test]
fn node_without_a_network_does_not_know_the_method() {
    let mut bare = bare(None);
    let conn = bare.accept_polykey(Bare::peer(1));
    let stream = bare.opened(conn);
    bare.feed(stream, &write_request(METHOD, &member("a"), None), false);
    let unknown = |output: &Output| match output {
        Output::ResetStream { stream: of, code } | Output::StopStream { stream: of, code } => {
            *of == stream && *code == code::UNSUPPORTED
        }
        _ => false,
    };
    let outputs = bare.take();
    assert_eq!(outputs.iter().filter(|output| unknown(output)).count(), 2, "{outputs:?}");
}

/// A bare node that has dialed a peer over `quic`, with its connection and the stream of its
/// authentication.
fn dialing(required: bool) -> (Bare, RequestId, ConnectionId, StreamId) {
    let mut bare = bare(Some(("a", required)));
    let (peer, remote) = (Bare::peer(1), "198.51.100.1:1314");
    let target = Request::Connect { target: peer, address: address(remote), options: NO };
    let request = bare.request(target);
    let dial = |output: &Output| match output {
        Output::Dial { conn, .. } => Some(*conn),
        _ => None,
    };
    let conn = bare.take().iter().find_map(dial).unwrap();
    let remote = remote.parse().unwrap();
    bare.connected_over(Dialect::Polykey, conn, Side::Dialer, peer, remote, 9);
    let outputs = bare.take();
    let stream = |output: &Output| match output {
        Output::OpenStream { conn: of, stream } if *of == conn => Some(*stream),
        _ => None,
    };
    let stream = outputs.iter().find_map(stream).unwrap();
    let first = json(core::str::from_utf8(&sent(&outputs, stream).0).unwrap());
    assert_eq!(first["method"], METHOD);
    assert_eq!((&first["params"]["networkId"], is_accepted(&outputs)), (&"a".into(), false));
    (bare, request, conn, stream)
}

fn result(text: &str) -> Bytes {
    pk_proto::polykey::write_result(text)
}

#[test]
fn caller_follows_the_protocol() {
    let own = member("a");
    let other = member("b");
    for (answers, accepted, close) in [
        (vec![SUCCESS, &own, SUCCESS], true, None),
        (vec![SUCCESS, &other], false, Some(code::CONNECTION_NETWORK)),
        (vec![SUCCESS, NONE], false, Some(code::CONNECTION_NETWORK)),
        (vec![&own], false, Some(code::CONNECTION_FAULT)),
        (vec![SUCCESS, SUCCESS], false, Some(code::CONNECTION_FAULT)),
        (vec![SUCCESS, &own, &own], false, Some(code::CONNECTION_FAULT)),
    ] {
        let (mut bare, request, conn, stream) = dialing(true);
        for answer in &answers {
            bare.feed(stream, &result(answer), false);
        }
        let done = bare.done(request);
        let outputs = bare.take();
        assert_eq!(
            (is_accepted(&outputs), closed(&outputs, conn)),
            (accepted, close),
            "{answers:?}"
        );
        assert_eq!(matches!(done, Some(Ok(_))), accepted, "{answers:?}: {done:?}");
    }
}

/// As a 1.15.1 node does, and one whose network refuses the caller.
#[test]
fn caller_accepts_a_node_without_the_method_only_if_the_network_is_not_required() {
    for (required, unknown, accepted) in
        [(false, true, true), (true, true, false), (false, false, false)]
    {
        let (mut bare, _, conn, stream) = dialing(required);
        if unknown {
            bare.input(Input::StreamStopped { stream, code: code::UNSUPPORTED });
            bare.input(Input::StreamReset { stream, code: code::UNSUPPORTED });
        } else {
            let error = pk_proto::polykey::RemoteError {
                class: "ErrorNodeManagerAuthenticationFailed".into(),
                message: String::new(),
            };
            let error = pk_proto::polykey::write_error(&error, "", 77, pk_proto::UnixMillis(0));
            bare.feed(stream, &error, true);
        }
        let outputs = bare.take();
        let refusal = (!accepted).then_some(code::CONNECTION_NETWORK);
        let found = (is_accepted(&outputs), closed(&outputs, conn));
        assert_eq!(found, (accepted, refusal), "{required} {unknown}");
    }
}

#[test]
fn silent_responder_is_closed() {
    let (mut bare, request, conn, _) = dialing(false);
    bare.pass(11 * SECOND);
    let done = bare.done(request);
    let Some(Err(Failure::Dial(failures))) = done else { panic!("{done:?}") };
    assert!(matches!(failures[..], [(_, DialFailure::OtherNetwork(_))]), "{failures:?}");
    assert_eq!(closed(&bare.take(), conn), Some(code::CONNECTION_NETWORK));
}
