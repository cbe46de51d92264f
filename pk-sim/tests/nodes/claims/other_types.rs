//! Claims of other types: in the local chain, and those about networks, which another node signs as
//! well.

use pk_proto::claims::{
    Claim, ClaimContent, ClaimPolicy, ExchangeFault, SignedFault, TokenSignature,
};
use pk_proto::native::{self, Hello, Message, V1};
use pk_proto::{
    Event, Failure, PeerFault, Refusal, Reply, Request, RequestError, RequestOptions, RpcRequest,
    RpcResponse,
};
use pk_sim::{Cluster, HostId};

use super::kit::*;
use crate::common::{Peer, Reaction, SECOND};

fn network(cluster: &Cluster, from: HostId, to: HostId) -> Request {
    let target = cluster.id(to);
    Request::ClaimNetwork {
        target,
        content: access(cluster, from, to),
        options: RequestOptions::default(),
    }
}

fn access(cluster: &Cluster, from: HostId, to: HostId) -> ClaimContent {
    ClaimContent {
        typ: "ClaimNetworkAccess".into(),
        issuer: Some(cluster.id(to).to_string()),
        subject: Some(cluster.id(from).to_string()),
        members: "{\"network\":\"example.org\"}".into(),
    }
}

// -- singly signed

#[test]
fn claim_of_an_embedder_type_is_in_the_chain_unchanged() {
    let mut cluster = started(2, 1, |_| {});
    let request = own_claim(&cluster, 0);
    let Ok(Reply::AddClaim(first)) = cluster.ask(0, request.clone()) else { panic!() };
    connect(&mut cluster, 0, 1);
    let link = claim(&cluster, 1);
    claimed(cluster.ask(0, link));
    let Ok(Reply::AddClaim(third)) = cluster.ask(0, request) else { panic!() };
    let claims = chain(&mut cluster, 0);
    assert_eq!((claims.len(), claims[0].id(), claims[2].id()), (3, first, third));
    assert_eq!((claims[0].typ(), claims[0].member("colour")), ("ClaimColour", Some("\"green\"")));
    let added = |event: &Event| match event {
        Event::ClaimAdded { claim, node: None } => Some(*claim),
        _ => None,
    };
    assert_eq!(events(&cluster, 0, added), [first, third]);
    cluster.stop_all();
}

#[test]
fn foreign_claim_content_is_refused_at_once() {
    let mut cluster = started(2, 2, |_| {});
    let Request::AddClaim { content, options } = own_claim(&cluster, 0) else { panic!() };
    let mut with = |change: &dyn Fn(&mut ClaimContent)| {
        let mut content = content.clone();
        change(&mut content);
        cluster.try_request(0, Request::AddClaim { content, options }).unwrap_err()
    };
    let stranger = crate::common::absent(1).to_string();
    assert_eq!(
        with(&|content| content.issuer = Some(stranger.clone())),
        RequestError::ForeignClaim
    );
    assert_eq!(with(&|content| content.issuer = None), RequestError::ForeignClaim);
    let link = with(&|content| {
        content.typ = "ClaimLinkNode".into();
        content.subject = Some(stranger.clone());
    });
    assert_eq!(link, RequestError::ForeignClaim, "both nodes sign those");
    assert!(matches!(with(&|content| content.typ = String::new()), RequestError::Claim(_)));
    assert!(matches!(
        with(&|content| content.members = "{\"seq\":7}".into()),
        RequestError::Claim(_)
    ));
    assert!(matches!(with(&|content| content.members = "[]".into()), RequestError::Claim(_)));
    let request = network(&cluster, 0, 0);
    assert_eq!(cluster.try_request(0, request), Err(RequestError::OwnNode));
    cluster.stop_all();
}

/// They are queued behind each other and behind links; none is lost.
#[test]
fn many_claims_at_once_are_all_in_the_chain() {
    let mut cluster = started(2, 3, |_| {});
    connect(&mut cluster, 0, 1);
    let own = own_claim(&cluster, 0);
    let mut ids: Vec<_> = (0..5).map(|_| cluster.request(0, own.clone())).collect();
    ids.extend(begin(&mut cluster, &[(0, 1), (0, 1)]).into_iter().map(|(_, id)| id));
    let request = network(&cluster, 0, 1);
    ids.push(cluster.request(0, request));
    for id in ids {
        let result = cluster.await_done(0, id);
        assert!(result.is_ok(), "{result:?}");
    }
    assert_eq!(chain(&mut cluster, 0).len(), 8);
    assert_linked(&mut cluster, 0, 1, 2);
    cluster.stop_all();
}

// -- doubly signed

#[test]
fn policy_decides_whether_a_network_claim_is_signed() {
    use ClaimPolicy::{All, AllowList, Ask, Refuse};
    for (policy, allowed, signs) in [
        (Refuse, true, false),
        (AllowList, false, false),
        (AllowList, true, true),
        (All, false, true),
        (Ask, false, true),
    ] {
        let mut cluster = connected_with_policy(policy, allowed);
        let request = network(&cluster, 0, 1);
        let id = cluster.request(0, request);
        if policy == Ask {
            cluster.drive(20 * SECOND);
            let asked = |event: &Event| match event {
                Event::ClaimApprovalRequested { approval, claim, .. } => {
                    Some((*approval, claim.typ().to_owned()))
                }
                _ => None,
            };
            let [(approval, typ)] = &events(&cluster, 1, asked)[..] else { panic!() };
            assert_eq!(typ, "ClaimNetworkAccess");
            let approval = *approval;
            cluster.call(1, |node, now| node.resolve_claim_approval(approval, true, now));
        }
        let result = cluster.await_done(0, id);
        if signs {
            let Ok(Reply::ClaimNetwork(claim)) = result else { panic!("{policy:?}: {result:?}") };
            let signers: Vec<_> =
                claim.token().signatures().iter().map(TokenSignature::signer).collect();
            assert_eq!(signers, [cluster.id(0), cluster.id(1)]);
            assert_eq!(chain(&mut cluster, 0), [claim]);
            assert_eq!(cluster.node(1).metrics().claims_signed, 1);
        } else {
            assert_eq!(result, Err(Failure::Refused(Refusal::Denied)), "{policy:?}");
            assert_eq!(chain(&mut cluster, 0), []);
        }
        assert_eq!(chain(&mut cluster, 1), [], "it is in one chain only");
        [0, 1].iter().for_each(|node| assert_settled(&cluster, *node));
        cluster.stop_all();
    }
}

/// Claims that are never signed for a peer: each has its fault.
#[test]
fn only_claims_about_networks_that_name_the_peer_are_signed() {
    let mut cluster = nodes(2, |_| {}).scripted_peers(1).seed(5).start();
    let peer_key = cluster.host(2).keys.values().next().unwrap().clone();
    let other_key = cluster.host(1).keys.values().next().unwrap().clone();
    let good = access(&cluster, 2, 0);
    let with = |change: &dyn Fn(&mut ClaimContent)| {
        let mut content = good.clone();
        change(&mut content);
        crate::common::chains::Draft::new(&peer_key.id(), content, None)
    };
    let third = cluster.id(1).to_string();
    let not_signed = ExchangeFault::Signed(SignedFault::Count(2));
    let cases = [
        (
            "a link",
            with(&|content| content.typ = "ClaimLinkNode".into()).signed(&[&peer_key]),
            Err(Some(ExchangeFault::Typ)),
        ),
        (
            "another type",
            with(&|content| content.typ = "ClaimColour".into()).signed(&[&peer_key]),
            Err(Some(ExchangeFault::Typ)),
        ),
        (
            "about a third",
            with(&|content| content.subject = Some(third.clone())).signed(&[&peer_key]),
            Err(Some(ExchangeFault::Subject)),
        ),
        ("by a third", with(&|_| {}).signed(&[&other_key]), Err(None)),
        ("signed by two", with(&|_| {}).signed(&[&peer_key, &other_key]), Err(Some(not_signed))),
        ("access", with(&|_| {}).signed(&[&peer_key]), Ok(())),
        (
            "authority",
            with(&|content| content.typ = "ClaimNetworkAuthority".into()).signed(&[&peer_key]),
            Ok(()),
        ),
    ];
    let mut peer = Peer::honest(2);
    peer.hello = greeting();
    let conn = peer.connect(&mut cluster, 0);
    for (name, claim, expected) in cases {
        let before = (cluster.node(0).metrics().claims_signed, cluster.events(0).len());
        let question = RpcRequest::SignClaim(claim.token().to_json().into());
        let call = native::encode(&Message::V1(V1::Call { deadline_ms: 5000, request: question }))
            .unwrap();
        let stream = peer.send(&mut cluster, conn, call, true);
        cluster.pull(2, |scripted_peer| scripted_peer.grant(stream, 1 << 20));
        peer.drive(&mut cluster, SECOND);
        let (bytes, fin) = cluster.scripted_peer(2).read(stream);
        let Ok(Message::V1(V1::Answer(answer))) = native::decode(&bytes[4..]) else {
            panic!("{name}")
        };
        assert!(fin, "{name}");
        let faults = cluster.events_since(0, before.1).filter_map(|event| match event {
            Event::PeerMisbehaved { fault: PeerFault::Claims(fault), .. } => Some(*fault),
            _ => None,
        });
        let fault = expected.err().flatten();
        assert_eq!(faults.collect::<Vec<_>>(), fault.into_iter().collect::<Vec<_>>(), "{name}");
        let signed = cluster.node(0).metrics().claims_signed - before.0;
        match expected {
            Err(_) => {
                assert!(
                    matches!(answer, RpcResponse::Refused(_)) && signed == 0,
                    "{name}: {answer:?}"
                );
            }
            Ok(()) => {
                let RpcResponse::SignedClaim(token) = answer else { panic!("{name}: {answer:?}") };
                let returned = Claim::parse(&token).unwrap();
                assert_eq!(
                    (returned.token().payload(), signed),
                    (claim.token().payload(), 1),
                    "{name}"
                );
                assert_eq!(returned.token().verify(&cluster.id(0)), Ok(()));
            }
        }
    }
    assert_eq!(chain(&mut cluster, 0), []);
}

/// The returned claim is verified.
#[test]
fn changed_network_claim_is_not_accepted() {
    let mut clusters = [6, 7].map(|seed| nodes(2, |_| {}).scripted_peers(1).seed(seed).start());
    let [_, cluster] = &clusters;
    let key = cluster.host(2).keys.values().next().unwrap().clone();
    let changed = crate::common::chains::Draft::new(&cluster.id(0), access(cluster, 0, 2), None);
    let other = changed.signed(&[&cluster.host(0).keys.values().next().unwrap().clone(), &key]);
    let cases = [
        (b"{}".to_vec(), None),
        (other.token().to_json().into_bytes(), Some(ExchangeFault::Signed(SignedFault::Changed))),
    ];
    for (cluster, (token, fault)) in clusters.iter_mut().zip(cases) {
        let mut peer = Peer::new(2, move |question| match question {
            RpcRequest::SignClaim(_) => {
                Reaction::answer(RpcResponse::SignedClaim(token.clone().into()))
            }
            _ => Reaction::Silence,
        });
        peer.hello = greeting();
        peer.connect(cluster, 0);
        let request = network(cluster, 0, 2);
        let id = cluster.request(0, request);
        peer.drive(cluster, 5 * SECOND);
        let result = cluster.done(0, id).cloned();
        match (result, fault) {
            (Some(Err(Failure::Peer(PeerFault::Claims(is)))), Some(fault)) => assert_eq!(is, fault),
            (Some(Err(Failure::Peer(PeerFault::Claims(ExchangeFault::Claim(_))))), None) => {}
            (result, _) => panic!("{result:?}"),
        }
        assert_eq!(chain(cluster, 0), []);
    }
}

/// A node that is busy is asked again after a pause, whatever else is appended meanwhile.
#[test]
fn busy_signer_receives_no_request_before_the_pause_is_over() {
    let cluster = nodes(1, |config| config.claim_retry_delay = 10 * SECOND);
    let mut cluster = cluster.scripted_peers(1).seed(8).start();
    let mut peer = Peer::new(1, |question| match question {
        RpcRequest::SignClaim(_) => Reaction::answer(RpcResponse::Refused(Refusal::Busy)),
        _ => Reaction::Silence,
    });
    peer.hello = greeting();
    peer.connect(&mut cluster, 0);
    let request = network(&cluster, 0, 1);
    cluster.request(0, request);
    peer.drive(&mut cluster, SECOND);
    assert_eq!(peer.asked.len(), 1);
    for _ in 0..3 {
        let other = own_claim(&cluster, 0);
        let id = cluster.request(0, other);
        peer.drive(&mut cluster, SECOND);
        assert!(matches!(cluster.done(0, id), Some(Ok(Reply::AddClaim(_)))));
        assert_eq!(peer.asked.len(), 1, "the pause is 5 s at least");
    }
    peer.drive(&mut cluster, 15 * SECOND);
    assert_eq!(peer.asked.len(), 2);
    cluster.stop_all();
}

/// A peer of an older version never receives messages that it does not know.
#[test]
fn peer_without_the_claim_features_receives_no_claim_request() {
    let mut cluster = nodes(1, |_| {}).scripted_peers(1).seed(7).start();
    let mut peer = Peer::honest(1);
    let hello = Hello { version_min: 1, version_max: 1, features: 0, agent: "old".into() };
    peer.hello = native::encode(&Message::V1(V1::Hello(hello))).unwrap();
    peer.connect(&mut cluster, 0);
    for request in [claim(&cluster, 1), network(&cluster, 0, 1)] {
        let id = cluster.request(0, request);
        peer.drive(&mut cluster, SECOND);
        assert_eq!(cluster.done(0, id), Some(&Err(Failure::Unsupported)));
    }
    assert_eq!(peer.asked.len(), 0);
}

fn greeting() -> bytes::Bytes {
    let hello =
        Hello { version_min: 1, version_max: 1, features: Hello::EXCHANGE, agent: "test".into() };
    native::encode(&Message::V1(V1::Hello(hello))).unwrap()
}
