//! Several `pk run --stdio`, driven through their pipes.

use std::time::Duration;

use serde_json::json;

use crate::process::{Agent, LIMIT, command, pk, signal, wait};

const UNKNOWN: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";
const SEED: &str = "0101010101010101010101010101010101010101010101010101010101010101";

/// B joins through A, C joins through A, C finds B by its id and opens an application stream to it.
fn three_processes(runtimes: [&str; 3]) {
    let [a, b, c] = runtimes;
    let mut a = Agent::start(&["--runtime", a]);
    let seed = a.seed_node();
    let mut b = Agent::start(&["--runtime", b, "--seed-node", &seed]);
    assert_eq!(b.event("joined")["seeds"], json!([a.id]));
    assert_eq!(b.event("connectionForward")["nodeId"], a.id.as_str());
    assert_eq!(a.event("connectionReverse")["nodeId"], b.id.as_str());
    let mut c = Agent::start(&["--runtime", c, "--seed-node", &seed]);
    c.event("joined");

    let (b_id, b_port) = (b.id.clone(), b.port);
    // C may have found B while it joined; now it must search.
    c.ask(&format!("disconnect {b_id}"));
    c.ask(&format!("unsetnode {b_id}"));
    let found = c.ask(&format!("findNode {b_id}"));
    assert_eq!(found[0], json!(["127.0.0.1", b_port]));
    assert_eq!(
        (&found[1]["mode"], &found[1]["scopes"]),
        (&json!("direct"), &json!(["global"])),
        "{found}"
    );
    assert_eq!(c.ask(&format!("stream {b_id} hello,  B")), "hello,  B");
    assert_eq!(c.ask(&format!("ping {b_id}"))[0], found[0]);

    let at_b = json!([{ "nodeId": b_id, "address": format!("127.0.0.1:{b_port}") }]);
    assert_eq!(c.ask(&format!("findClosest {b_id} 1")), at_b);

    assert_eq!(c.ask(&format!("findNode {UNKNOWN}")), json!(null));
    assert_eq!(c.ask(&format!("ping {UNKNOWN}")), json!(null));
    a.quit();
    b.end();
    c.quit();
}

#[test]
fn three_processes_on_tokio() {
    three_processes(["tokio"; 3]);
}

#[test]
fn three_processes_on_smol() {
    three_processes(["smol"; 3]);
}

#[test]
fn results_match_the_json_of_the_reference() {
    let mut a = Agent::start(&["--seed", SEED]);
    assert_eq!(a.id, UNKNOWN, "the id of that key");
    let mut b = Agent::start(&["--runtime", "smol", "--connect-timeout", "2000"]);
    let connected = b.ask(&format!("connect {} 127.0.0.1 {}", a.id, a.port));
    assert_eq!((&connected["nodeId"], &connected["host"]), (&json!(a.id), &json!("127.0.0.1")));
    let connection_id = connected["connectionId"].as_str().unwrap();
    let connections = b.ask("connections");
    assert_eq!(connections[0]["connectionId"], connection_id);
    assert_eq!(connections[0]["address"], json!({ "host": "127.0.0.1", "port": a.port }));
    assert_eq!(
        (&connections[0]["primary"], connections.as_array().unwrap().len()),
        (&json!(true), 1)
    );
    a.event("connectionReverse");
    let metrics = b.ask("metrics");
    assert_eq!(
        (&metrics["core"]["dials"], &metrics["core"]["connections"]),
        (&json!(1), &json!(1))
    );
    assert!(metrics["driver"]["bytes_sent"].as_u64() > Some(1200), "{metrics}");
    assert_eq!(metrics["driver"]["datagrams_forwarded"], 0);
    let others = a.ask("connections");
    assert_eq!(others[0]["connectionId"], connection_id, "both ends have one name for it");

    let key = format!("127.0.0.1-{}", a.port);
    let graph = b.ask("graph");
    assert_eq!(graph[&a.id]["contact"][&key]["mode"], "direct", "{graph}");
    assert!(graph[&a.id]["bucket"].as_u64().is_some(), "{graph}");
    let closest = b.ask(&format!("closest {}", a.id));
    assert_eq!(closest[0]["nodeIdEncoded"], a.id.as_str());
    assert_eq!(closest[0]["nodeContact"], graph[&a.id]["contact"]);
    let active = b.ask(&format!("active {}", a.id));
    assert_eq!(
        (&active[0]["nodeId"], &active[0]["connections"][connection_id]["primary"]),
        (&json!(a.id), &json!(true))
    );

    // What A returns to B about C.
    let mut c = Agent::start(&["--seed-node", &a.seed_node()]);
    c.event("joined");
    let c_key = format!("127.0.0.1-{}", c.port);
    let via = b.ask(&format!("closest {} {}", c.id, a.id));
    assert_eq!(
        (&via[0]["nodeIdEncoded"], &via[0]["nodeContact"][&c_key]["mode"]),
        (&json!(c.id), &json!("direct"))
    );
    let via = b.ask(&format!("active {} {}", c.id, a.id));
    assert_eq!(via[0]["nodeId"], c.id.as_str(), "{via}");
    let named = c.ask("connections")[0]["connectionId"].as_str().unwrap().to_owned();
    assert_eq!(via[0]["connections"][&named]["port"], c.port, "{via}");
    c.end();

    assert_eq!(
        b.ask(&format!("setnode {UNKNOWN} 127.0.0.1 {} local", a.port)),
        json!({ "outcome": "updated" })
    );
    let scopes = b.ask("graph")[UNKNOWN]["contact"][&key]["scopes"].clone();
    assert_eq!(scopes, json!(["global", "local"]));
    assert_eq!(b.ask(&format!("unsetnode {UNKNOWN}")), json!({}));
    assert_eq!(b.ask("graph")[UNKNOWN], json!(null));
    assert_eq!(b.ask(&format!("disconnect {}", a.id)), json!({}));
    let a_id = a.id.clone();
    b.wait_for("the end of the connection", |value| {
        value["event"] == "connectionClosed" && value["nodeId"] == a_id
    });
    let left = b.ask("connections");
    assert!(
        left.as_array().unwrap().iter().all(|connection| connection["nodeId"] != a_id),
        "{left}"
    );
    a.end();
    b.end();
}

#[test]
fn setnode_returns_every_outcome() {
    let mut a = Agent::start(&["--connect-timeout", "500"]);
    let own = a.id.clone();
    let rejected = a.answer(&format!("setnode {own} 127.0.0.1 9"));
    assert_eq!(rejected["error"]["name"], "Rejected", "{rejected}");
    // Ids that lie in the bucket of the farther half: the first bit is the other one.
    let first = own.parse::<pk_proto::NodeId>().unwrap().as_bytes()[0];
    let ids: Vec<String> = (0..22)
        .map(|n| {
            let mut bytes = [0; 32];
            bytes[0] = first ^ 0x80;
            bytes[31] = n;
            pk_proto::NodeId::from_bytes(bytes).to_string()
        })
        .collect();
    for id in &ids[..20] {
        assert_eq!(a.ask(&format!("setnode {id} 127.0.0.1 9")), json!({ "outcome": "added" }));
    }
    assert_eq!(
        a.ask(&format!("setnode {} 127.0.0.1 9 local", ids[0])),
        json!({ "outcome": "updated" })
    );
    let graph = a.ask("graph");
    assert_eq!(graph[&ids[0]]["contact"]["127.0.0.1-9"]["scopes"], json!(["global", "local"]));
    assert_eq!(graph[&ids[0]]["bucket"], 255);
    assert_eq!(a.ask(&format!("setnode {} 127.0.0.1 9", ids[20])), json!({ "outcome": "pending" }));
    let forced = a.ask(&format!("setnode {} 127.0.0.1 9 force", ids[21]));
    assert_eq!(forced["outcome"], "replaced", "{forced}");
    let gone = forced["replaced"].as_str().unwrap().to_owned();
    assert!(ids[..20].contains(&gone), "{forced}");
    let graph = a.ask("graph");
    assert!(graph[&gone].is_null() && graph[&ids[21]].is_object(), "{graph}");
    // No node answers, so there is room by the time the search for it ends.
    assert_eq!(a.ask(&format!("setnode {gone} 127.0.0.1 9 block")), json!({ "outcome": "added" }));
    for id in &ids {
        assert_eq!(a.ask(&format!("unsetnode {id}")), json!({}));
    }
    assert_eq!(a.ask("graph"), json!({}));
    a.end();
}

#[test]
fn two_nodes_connect_through_the_named_relay() {
    let relay = Agent::start(&["--runtime", "smol"]);
    let [mut a, mut b] = ["tokio", "smol"].map(|runtime| Agent::start(&["--runtime", runtime]));
    for node in [&mut a, &mut b] {
        node.ask(&format!("connect {} 127.0.0.1 {}", relay.id, relay.port));
    }
    let through = a.ask(&format!("signal {} {}", b.id, relay.id));
    assert_eq!(through, json!({ "nodeId": b.id, "host": "127.0.0.1", "port": b.port }));
    let key = format!("127.0.0.1-{}", b.port);
    assert_eq!(a.ask("graph")[&b.id]["contact"][&key]["mode"], "signal");
    let unknown = a.answer(&format!("signal {UNKNOWN} {}", relay.id));
    assert_eq!(unknown["error"]["errors"][0]["name"], "Signal", "{unknown}");
    let itself = a.answer(&format!("signal {} {}", b.id, a.id.clone()));
    assert_eq!(itself["error"]["name"], "OwnNode", "{itself}");
    for node in [a, b, relay] {
        node.end();
    }
}

#[test]
fn nodes_without_contacts_find_each_other_on_the_local_network() {
    for [port, disabled, off] in [
        ["--mdns-port", "--mdns-standard-port", "0"],
        ["--mdns-standard-port", "--mdns-groups", "none"],
    ] {
        find_on_loopback(port, &[disabled, off]);
    }
}

/// Two nodes that use mDNS on a free port for the option `port`.
fn find_on_loopback(port: &str, groups: &[&str]) {
    let free =
        std::net::UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port().to_string();
    let mdns = [&["--mdns", port, &free, "--mdns-interface", "lo"], groups].concat();
    let [mut a, mut b] = ["tokio", "smol"]
        .map(|runtime| Agent::start(&[&mdns[..], &["--runtime", runtime]].concat()));
    // A busy machine may be late; a query itself is short.
    let until = std::time::Instant::now() + LIMIT;
    let told = loop {
        let told = a.ask(&format!("mdns {}", b.id));
        if told != json!([]) {
            break told;
        }
        assert!(std::time::Instant::now() < until, "no node is reported");
    };
    assert_eq!(told, json!([["127.0.0.1", b.port]]));
    let found = a.ask(&format!("findNode {}", b.id));
    assert_eq!((&found[0], &found[1]["scopes"]), (&told[0], &json!(["local"])), "{found}");
    assert_eq!(b.ask(&format!("mdns {UNKNOWN}")), json!([]));
    // A one-shot node without contacts.
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    pk(&["keygen", "--dir", dir]);
    let ended = pk(&[&["find", &b.id, "--dir", dir][..], &mdns].concat());
    assert_eq!(ended.code, Some(0), "{ended}");
    a.end();
    b.end();
}

#[test]
fn tagged_commands_run_concurrently_and_others_in_order() {
    let mut a = Agent::start(&["--connect-timeout", "2000"]);
    // No node listens there, so these take some time.
    a.send(&format!("connect {UNKNOWN} 127.0.0.1 9"));
    a.send("graph");
    a.send(&format!("#slow connect {UNKNOWN} 127.0.0.1 10"));
    a.send("#1 connections");
    let answers: Vec<_> =
        (0..4).map(|_| a.wait_for("an answer", |value| value["cmd"].is_string())).collect();
    let at = |cmd: &str, tagged: bool| {
        answers
            .iter()
            .position(|answer| answer["cmd"] == cmd && answer["tag"].is_string() == tagged)
            .unwrap()
    };
    assert_eq!(
        (answers[0]["tag"].as_str(), at("connections", true)),
        (Some("1"), 0),
        "{answers:?}"
    );
    assert!(at("connect", false) < at("graph", false), "{answers:?}");
    let failed = &answers[at("connect", true)];
    assert_eq!((&failed["tag"], &failed["ok"]), (&json!("slow"), &json!(false)), "{failed}");
    assert_eq!(failed["error"]["errors"][0]["name"], "TimedOut", "{failed}");
    a.end();
}

#[test]
fn invalid_line_is_answered_and_the_next_one_executed() {
    let mut a = Agent::start(&[]);
    for (line, expected) in [
        ("dance", "unknown command dance"),
        ("ping xyz", "invalid node id xyz"),
        ("connect", "usage: connect <nodeId> <host> <port>"),
    ] {
        let answer = a.answer(line);
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(answer["ok"] == false && message.starts_with(expected), "{answer}");
    }
    let own = a.id.clone();
    assert_eq!(a.answer(&format!("ping {own}"))["error"]["name"], "OwnNode");
    assert_eq!(a.ask("graph"), json!({}));
    // Commands in progress when stdin ends are still answered.
    a.send("#last graph");
    a.send("connections");
    a.end();
}

#[test]
fn quit_ends_running_commands_at_once() {
    let mut a = Agent::start(&[]);
    a.send(&format!("#slow connect {UNKNOWN} 127.0.0.1 9"));
    a.ask("graph");
    a.send("quit");
    let slow = a.wait_for("the answer to connect", |value| value["tag"] == "slow");
    assert_eq!(slow["error"]["name"], "Stopped", "{slow}");
    a.ended();
}

#[test]
fn signal_ends_the_session_and_closes_its_connections() {
    for (name, runtime) in [("TERM", "tokio"), ("INT", "smol")] {
        let mut a = Agent::start(&["--runtime", runtime]);
        let mut b = Agent::start(&["--seed-node", &a.seed_node()]);
        b.event("joined");
        signal(a.pid(), name);
        a.ended();
        let closed = b.event("connectionClosed");
        assert_eq!(closed["nodeId"], a.id.as_str());
        assert_eq!(closed["reason"], "closed by the peer");
        b.end();
    }
}

#[test]
fn signal_ends_a_session_whose_output_is_not_read() {
    use std::io::Write;
    use std::process::Stdio;

    let mut child = command(&["run", "--stdio"]).stdin(Stdio::piped()).spawn().unwrap();
    // More answers than the pipe and the queue hold, while stdout stays unread. Its writer ends
    // with the node.
    let mut stdin = child.stdin.take().unwrap();
    let writer =
        std::thread::spawn(move || while writeln!(stdin, "#x {}", "dance".repeat(100)).is_ok() {});
    std::thread::sleep(Duration::from_secs(1));
    signal(child.id(), "TERM");
    assert_eq!(wait(&mut child, LIMIT), Some(Some(0)));
    writer.join().unwrap();
}

#[test]
fn killed_node_is_reported_after_the_idle_timeout() {
    let mut a = Agent::start(&[]);
    let mut b = Agent::start(&["--seed-node", &a.seed_node(), "--keepalive-timeout", "2000"]);
    b.event("joined");
    a.kill();
    let closed = b.event("connectionClosed");
    assert_eq!((&closed["nodeId"], &closed["reason"]), (&json!(a.id), &json!("timed out")));
    b.end();
}

#[test]
fn occupied_port_is_a_fatal_error_with_a_tip() {
    let a = Agent::start(&[]);
    let ended = pk(&["run", "--stdio", "--port", &a.port.to_string()]);
    assert_eq!(ended.code, Some(1), "{ended}");
    let fatal = &ended.json()[0];
    assert_eq!(
        (&fatal["event"], &fatal["error"]["name"]),
        (&json!("fatal"), &json!("Bind")),
        "{ended}"
    );
    assert!(
        ended.stderr.contains("cannot listen on UDP 127.0.0.1:") && ended.stderr.contains("tip:"),
        "{ended}"
    );
    a.end();
}
