//! One address with thousands of throw-away keys over real QUIC: it uses the share of its network,
//! and other nodes are not affected. The figures are printed.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use pk_driver::{KeyPair, Node};
use pk_proto::{ConnectionInfo, RequestOptions, SeedNode};
use pk_tests::case::{Rt, run_alone};
use pk_tests::certs::Presented;
use pk_tests::child::{Child, number, seed_node_of};
use pk_tests::node::{connections_with, options, seed, shutdown, start_with};
use pk_tests::raw;
use pk_tests::wait::{all, sleep, soon, within};
use pk_tests::{Smol, Tokio};
use quinn::{Connection, RecvStream, SendStream, TransportConfig};
use smol::future::zip;

use crate::NODE;

/// Handshakes that the attacker has in progress at a time.
const AT_ONCE: usize = 16;

/// Maximum time in which a node of another network connects during the attack.
const PROMISED: Duration = Duration::from_secs(2);

/// Memory of a connection, and of a closed one that QUIC keeps for a short time.
const CONNECTION: u64 = 64 * 1024;

#[test]
fn connections_of_4200_keys_from_one_address_are_limited() {
    run_alone(Duration::from_secs(300), "one address with 4,200 keys", |runtime: Tokio| {
        crowded(runtime, 4200, 4096)
    });
}

/// A smaller attack on the other runtime.
#[test]
fn connections_of_420_keys_from_one_address_are_limited() {
    run_alone(Duration::from_secs(120), "one address with 420 keys", |runtime: Smol| {
        crowded(runtime, 420, 400)
    });
}

/// Observations of honest nodes during the attack.
#[derive(Debug, Default)]
struct Seen {
    connects: u32,
    slowest_connect: Duration,
    dials: u32,
    slowest_dial: Duration,
}

async fn crowded<R: Rt>(runtime: R, keys: usize, limit: u64) {
    let mut victim = Child::start::<R>(NODE, &["node", &format!("connection_limit={limit}")]);
    let at = seed_node_of(&victim.line(&runtime, "start of the victim").await);
    let addr = at.address.socket().unwrap();
    // A node that is connected before, and a node to dial.
    let (old, far) = (node_in(&runtime, 2, 2).await, node_in(&runtime, 3, 3).await);
    connect(&runtime, &old, &at).await;
    let before = only_connection(&old, &at).await;
    dial(&runtime, &mut victim, &far, &at).await;
    let base = victim.ask(&runtime, "metrics").await;
    victim.ask(&runtime, "reset").await;

    let begun = Instant::now();
    let (held, over) = (RefCell::new(Vec::new()), Cell::new(false));
    let attacking = async {
        attack(&runtime, addr, keys, &held).await;
        over.set(true);
        begun.elapsed()
    };
    let (took, seen) = zip(attacking, others(&runtime, &mut victim, &at, &far, &over)).await;

    // The close of the connection that made room last is in progress.
    sleep(&runtime, Duration::from_millis(500)).await;
    let after = victim.ask(&runtime, "metrics").await;
    let live =
        held.borrow().iter().filter(|(connection, _)| connection.close_reason().is_none()).count()
            as u64;
    let (evicted, refused) =
        (number(&after, "/core/connections_evicted"), number(&after, "/core/connections_refused"));
    let grown = number(&after, "/peak").saturating_sub(number(&base, "/bytes"));
    println!(
        "{}: {keys} keys of one address in {took:?}: it holds {live} of {limit} connections, {evicted} made room, \
         {refused} were refused; {seen:?}; {} KiB for each connection that it holds, at the peak",
        R::NAME,
        grown / 1024 / live.max(1),
    );
    let share = limit.div_ceil(4);
    assert!(live <= share && live > share / 2, "{live} of {share}");
    assert!(
        live + evicted + refused > limit,
        "only {} of {keys} got through",
        live + evicted + refused
    );
    assert!(seen.connects > 1 && seen.dials > 1, "{seen:?}");
    assert!(seen.slowest_connect < PROMISED && seen.slowest_dial < PROMISED, "{seen:?}");
    assert!(grown <= 2 * share * CONNECTION, "{grown} bytes");

    // The node that was connected before still is, on the same connection, and is answered.
    assert_eq!(only_connection(&old, &at).await.shared_id, before.shared_id);
    soon(&runtime, "ping", old.ping_node(at.node, RequestOptions::default())).await.unwrap();
    // An honest node behind the same address connects as well.
    let beside = node_in(&runtime, 4, 0).await;
    connect(&runtime, &beside, &at).await;
    shutdown(&runtime, &[&old, &far, &beside]).await;
}

/// Connects with one key after the other, sends Hello, and keeps the connections.
async fn attack<R: Rt>(
    runtime: &R,
    addr: SocketAddr,
    keys: usize,
    held: &RefCell<Vec<(Connection, (SendStream, RecvStream))>>,
) {
    let endpoint = raw::endpoint(runtime, None);
    let next = Cell::new(0usize);
    all((0..AT_ONCE).map(|_| async {
        while next.get() < keys {
            let number = next.get();
            next.set(number + 1);
            let mut seed = [0xee; 32];
            seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let presented = Presented::valid(&KeyPair::from_seed(&seed));
            // The victim keeps the connections alive.
            let config = raw::client(Some(&presented), &[raw::NATIVE], TransportConfig::default());
            let Ok(connection) = raw::dial(&endpoint, config, addr).await else { continue };
            if let Ok(control) = raw::greet(&connection).await {
                held.borrow_mut().push((connection, control));
            }
        }
    }))
    .await;
}

/// Nodes of another network connect, are dialed and disconnect, as long as the attack continues.
async fn others<R: Rt>(
    runtime: &R,
    victim: &mut Child,
    at: &SeedNode,
    far: &Node<R>,
    over: &Cell<bool>,
) -> Seen {
    let mut seen = Seen::default();
    while !over.get() {
        let honest = node_in(runtime, 100 + (seen.connects % 100) as u8, 1).await;
        let begun = Instant::now();
        connect(runtime, &honest, at).await;
        seen.slowest_connect = seen.slowest_connect.max(begun.elapsed());
        seen.connects += 1;
        soon(runtime, "ping", honest.ping_node(at.node, RequestOptions::default())).await.unwrap();
        shutdown(runtime, &[&honest]).await;
        let begun = Instant::now();
        dial(runtime, victim, far, at).await;
        seen.slowest_dial = seen.slowest_dial.max(begun.elapsed());
        seen.dials += 1;
        sleep(runtime, Duration::from_millis(100)).await;
    }
    seen
}

/// A node in a network of its own: 127.0.0.0/8 has many /24 networks.
async fn node_in<R: Rt>(runtime: &R, seed: u8, network: u8) -> Node<R> {
    let ip = IpAddr::from(Ipv4Addr::new(127, 0, network, 1));
    start_with(runtime, seed, |config| config.listen = SocketAddr::new(ip, 0)).await
}

async fn connect<R: Rt>(runtime: &R, node: &Node<R>, to: &SeedNode) {
    let limits = options(PROMISED, PROMISED);
    let connected =
        within(runtime, PROMISED, "connect", node.connect(to.node, to.address.clone(), limits))
            .await;
    connected.unwrap_or_else(|error| panic!("an honest node does not get in: {error}"));
}

/// The victim dials a node, which ends the connection again.
async fn dial<R: Rt>(runtime: &R, victim: &mut Child, far: &Node<R>, at: &SeedNode) {
    let answer = victim.ask(runtime, &format!("connect {}", seed(far))).await;
    assert!(answer.get("error").is_none(), "the victim cannot dial: {answer}");
    // A dial whose peer is silent for a while is repeated beside it, and both may succeed.
    let ended = far.disconnect(at.node).await.unwrap();
    assert!((1..=2).contains(&ended), "{ended} connections");
}

async fn only_connection<R: Rt>(node: &Node<R>, at: &SeedNode) -> ConnectionInfo {
    let all = connections_with(node, at.node).await;
    let [only] = &all[..] else { panic!("not one connection but {all:?}") };
    only.clone()
}
