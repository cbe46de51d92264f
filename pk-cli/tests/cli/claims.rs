//! Claims: the line protocol, the one-shots, and invalid chains.

use pk_driver::{RedbStore, Store};
use pk_proto::claims::ClaimId;
use pk_proto::{StoreOp, Table};
use serde_json::{Value, json};

use crate::process::{Agent, pk, pk_ok};

const UNKNOWN: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";
/// No node listens there.
const DEAD: &str = "pk://vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0@127.0.0.1:9";

/// Runs `pk run --stdio` and joins through another node.
fn joined(through: &Agent, args: &[&str]) -> Agent {
    let mut agent = Agent::start(&[args, &["--seed-node", &through.seed_node()]].concat());
    agent.event("joined");
    agent
}

fn refused(answer: &Value) {
    assert_eq!(
        (&answer["ok"], &answer["error"]["name"]),
        (&json!(false), &json!("Refused")),
        "{answer}"
    );
    assert!(answer["error"]["message"].as_str().unwrap().contains("does not allow it"), "{answer}");
}

/// B claims A, which must allow it; C, a third node, verifies the chains of both.
fn three_processes(runtimes: [&str; 3]) {
    let mut a = Agent::start(&["--runtime", runtimes[0]]);
    let mut b = joined(&a, &["--runtime", runtimes[1]]);
    let mut c = joined(&a, &["--runtime", runtimes[2]]);
    let (a_id, b_id) = (a.id.clone(), b.id.clone());

    refused(&b.answer(&format!("claim {a_id}")));
    assert_eq!(
        (a.ask("sigchain"), b.ask("sigchain"), a.ask("gestalt")),
        (json!([]), json!([]), json!(null))
    );
    assert_eq!(a.ask(&format!("allow {b_id}")), json!({}));
    assert_eq!(a.ask("allowed"), json!([b_id]));
    let claimed = b.ask(&format!("claim {a_id}"));
    assert_eq!(b.event("claimAdded")["claimIdEncoded"], claimed["claimIdEncoded"]);
    let of_a = a.event("claimAdded");
    assert_eq!(of_a["nodeId"], b_id.as_str());
    assert_eq!(
        claimed["signedTokenEncoded"]["signatures"].as_array().unwrap().len(),
        2,
        "{claimed}"
    );

    // Each has one in its own chain, signed by the owner first; both name the initiator.
    for (owner, other, id) in [(&a_id, &b_id, &of_a), (&b_id, &a_id, &claimed)] {
        let chain = c.ask(&format!("chain {owner}"));
        let [claim] = &chain.as_array().unwrap()[..] else { panic!("{chain}") };
        assert_eq!(claim["claimIdEncoded"], id["claimIdEncoded"]);
        assert_eq!(claim["signers"], json!([owner, other]));
        let payload = &claim["payload"];
        assert_eq!(
            (&payload["typ"], &payload["seq"]),
            (&json!("ClaimLinkNode"), &json!(1)),
            "{payload}"
        );
        assert_eq!((&payload["iss"], &payload["sub"]), (&json!(b_id), &json!(a_id)), "{payload}");
        assert_eq!(
            (&payload["prevClaimId"], &payload["jti"]),
            (&json!(null), &claim["claimIdEncoded"]),
            "{payload}"
        );
    }
    assert_eq!(c.ask(&format!("claimsGet {b_id}")), json!([claimed]));
    assert_eq!(c.ask(&format!("gestalt {a_id}")), json!([a_id, b_id]));
    assert_eq!(c.ask("gestalt"), json!(null), "it is a third");
    assert_eq!(b.ask("gestalt"), json!([b_id, a_id]));

    // The next one follows, and the network claim behind it.
    b.ask(&format!("claim {a_id}"));
    let signed = b.ask(&format!("sign {a_id}"));
    let own = b.ask("sigchain");
    let payloads: Vec<_> = own.as_array().unwrap().iter().map(|claim| &claim["payload"]).collect();
    let typs: Vec<_> = payloads.iter().map(|payload| payload["typ"].as_str().unwrap()).collect();
    assert_eq!(typs, ["ClaimLinkNode", "ClaimLinkNode", "ClaimNetworkAccess"]);
    assert_eq!(payloads[1]["prevClaimId"], claimed["claimIdEncoded"]);
    assert_eq!(own[2]["signedTokenEncoded"], signed["signedTokenEncoded"]);
    c.send(&format!("#x chain {b_id}"));
    let tagged = c.wait_for("the tagged answer", |line| line["tag"] == "x");
    assert_eq!(
        (&tagged["cmd"], tagged["result"].as_array().unwrap().len()),
        (&json!("chain"), 3),
        "{tagged}"
    );
    assert_eq!(tagged["result"][2]["signers"], json!([b_id, a_id]));

    assert_eq!(a.ask(&format!("disallow {b_id}")), json!({}));
    refused(&b.answer(&format!("claim {a_id}")));
    let itself = a.answer(&format!("claim {a_id}"));
    assert_eq!(itself["error"]["name"], "OwnNode", "{itself}");
    [a, b, c].into_iter().for_each(Agent::end);
}

#[test]
fn three_processes_on_tokio() {
    three_processes(["tokio"; 3]);
}

#[test]
fn three_processes_on_smol_and_tokio() {
    three_processes(["smol", "tokio", "smol"]);
}

#[test]
fn claim_policy_is_set_at_the_start_or_per_claim() {
    let mut ask = Agent::start(&["--claims", "ask"]);
    let mut other = joined(&ask, &[]);
    let (id, claim) = (other.id.clone(), format!("claim {}", ask.id));
    for (word, signs) in [("refuse", false), ("sign", true)] {
        other.send(&claim);
        let asked = ask.event("claimAsked");
        assert_eq!(
            (&asked["nodeId"], &asked["payload"]["typ"]),
            (&json!(id), &json!("ClaimLinkNode")),
            "{asked}"
        );
        assert!(asked["withinMs"].as_f64().unwrap() > 0.0, "{asked}");
        assert_eq!(ask.ask(&format!("answer {} {word}", asked["ask"])), json!({}));
        let answer = other.wait_for("the answer", |line| line["cmd"] == "claim");
        if signs { assert_eq!(answer["ok"], true, "{answer}") } else { refused(&answer) }
    }
    let mut listed = joined(&ask, &["--allow", &id]);
    assert_eq!(listed.ask("allowed"), json!([id]));
    other.ask(&format!("claim {}", listed.id));
    refused(&ask.answer(&format!("claim {}", listed.id)));
    let open = joined(&ask, &["--allow-all"]);
    let closed = joined(&ask, &["--claims", "refuse"]);
    other.ask(&format!("claim {}", open.id));
    refused(&other.answer(&format!("claim {}", closed.id)));
    assert_eq!(
        other.ask("gestalt").as_array().unwrap().len(),
        4,
        "itself and three that it claimed"
    );
    [ask, other, listed, open, closed].into_iter().for_each(Agent::end);
}

#[test]
fn one_shots_allow_claim_and_show_chains() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [dir, served] = dirs.each_ref().map(|dir| dir.path().to_str().unwrap());
    let [id, served_id] =
        [dir, served].map(|dir| pk_ok(&["keygen", "--dir", dir]).stdout.trim().to_owned());

    // The list is stored, and a node that runs later uses it.
    let absent = pk_ok(&["allow", "--dir", served]);
    assert_eq!(absent.stdout, format!("no node may claim {served_id}\n"));
    let allowed = pk_ok(&["allow", &id, "--dir", served, "--json", "--runtime", "smol"]);
    assert_eq!(allowed.json()[0]["allowed"], json!([id]), "{allowed}");
    pk_ok(&["allow", &id, "--dir", served, "--remove"]);
    let mut agent = Agent::start(&["--dir", served]);
    let claim = ["claim", &served_id, "--dir", dir, "--seed-node", &agent.seed_node()];
    let ended = pk(&claim);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended}");
    assert!(
        ended.stderr.contains("does not allow") && ended.stderr.contains(&format!("pk allow {id}")),
        "{ended}"
    );
    let ended = pk(&[&claim[..], &["--json"]].concat());
    assert_eq!(
        (ended.code, &ended.json()[0]["error"]["name"]),
        (Some(1), &json!("Refused")),
        "{ended}"
    );
    agent.ask(&format!("allow {id}"));
    agent.quit();

    let empty = pk_ok(&["chain", "--dir", dir]);
    assert_eq!(empty.stdout, format!("the chain of {id} is empty\n"));
    let agent = Agent::start(&["--dir", served]);
    let claim = ["claim", &served_id, "--dir", dir, "--seed-node", &agent.seed_node()];
    let claimed = pk_ok(&claim);
    assert!(claimed.stdout.starts_with(&format!("{id} and {served_id} are linked\n")), "{claimed}");
    let claimed = pk_ok(&[&claim[..], &["--json", "--runtime", "smol"]].concat());
    assert_eq!(claimed.json()[0]["seq"], 2, "{claimed}");

    for (whose, owner, other) in
        [(&[][..], &id, &served_id), (&[served_id.as_str()], &served_id, &id)]
    {
        let args = [&["chain"], whose, &["--dir", dir]].concat();
        let shown = pk_ok(&args);
        let lines: Vec<_> = shown.stdout.lines().collect();
        assert_eq!(lines.len(), 9, "{shown}");
        assert!(lines[0].starts_with("   1  v") && lines[0].ends_with("ClaimLinkNode"), "{shown}");
        assert_eq!(lines[1], format!("      ✓ signed by {owner}, its owner"), "{shown}");
        assert_eq!(lines[2], format!("      ✓ signed by {other}"), "{shown}");
        assert_eq!(
            (lines[3], lines[7]),
            ("      ✓ the first claim", "      ✓ follows claim 1, by id and digest"),
            "{shown}"
        );
        assert_eq!(lines[8], format!("the chain of {owner} is valid: 2 claims"), "{shown}");
        let shown = pk_ok(&[&args[..], &["--json"]].concat());
        let shown = &shown.json()[0];
        assert_eq!((&shown["nodeId"], &shown["verified"]), (&json!(owner), &json!(2)), "{shown}");
        assert_eq!(shown["claims"][1]["signers"], json!([owner, other]), "{shown}");
        assert_eq!(
            shown["claims"][1]["payload"]["prevClaimId"], shown["claims"][0]["claimIdEncoded"],
            "{shown}"
        );
    }
    for command in ["claim", "chain"] {
        let absent = pk(&[command, UNKNOWN, "--dir", dir]);
        assert_eq!((absent.code, absent.stdout.as_str()), (Some(1), ""), "{absent}");
        assert!(absent.stderr.contains(&format!("{UNKNOWN} was not found")), "{absent}");
        let timed_out =
            pk(&[command, UNKNOWN, "--dir", dir, "--timeout", "5", "--seed-node", DEAD]);
        assert_eq!((timed_out.code, timed_out.stdout.as_str()), (Some(1), ""), "{timed_out}");
        assert!(timed_out.stderr.contains("no seed node could be reached"), "{timed_out}");
    }
    agent.end();
    // Under another id it is still its chain.
    let new = pk_ok(&["renew", "--dir", dir]).stdout.lines().next().unwrap().to_owned();
    let shown = pk_ok(&["chain", "--dir", dir]);
    assert!(
        shown.stdout.contains(&format!("✓ signed by {id}, another id of its owner")),
        "{shown}"
    );
    assert!(shown.stdout.ends_with(&format!("the chain of {new} is valid: 2 claims\n")), "{shown}");
}

#[test]
fn invalid_chain_is_shown_up_to_its_verified_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let id = pk_ok(&["keygen", "--dir", path]).stdout.trim().to_owned();
    let friend = Agent::start(&["--allow-all"]);
    let mut agent = Agent::start(&["--dir", path, "--seed-node", &friend.seed_node()]);
    agent.event("joined");
    let claims: Vec<Value> = (0..3)
        .map(|_| agent.ask(&format!("claim {}", friend.id))["claimIdEncoded"].clone())
        .collect();
    agent.quit();

    // Delete one, as anyone with access to the disk can.
    let second: ClaimId = claims[1].as_str().unwrap().parse().unwrap();
    let mut store = RedbStore::open(dir.path().join("store.redb")).unwrap();
    let key = second.as_bytes().to_vec().into();
    store.apply(&[StoreOp::Delete { table: Table::Claims, key }], true).unwrap();
    drop(store);

    let fault = "claim 2 of the chain: claims before it are missing: it has number 3";
    let own = pk(&["chain", "--dir", path]);
    assert_eq!((own.code, own.stdout.lines().count()), (Some(1), 4), "{own}");
    assert!(
        own.stderr.contains(fault) && own.stderr.contains("the claim before is verified"),
        "{own}"
    );
    let own = pk(&["chain", "--dir", path, "--json"]).json().remove(0);
    assert_eq!((&own["ok"], &own["error"]["name"]), (&json!(false), &json!("ChainFault")), "{own}");
    assert_eq!(
        (&own["error"]["seq"], &own["error"]["fault"]),
        (&json!(2), &json!({ "SeqGap": 3 })),
        "{own}"
    );
    assert_eq!(own["error"]["verified"][0]["claimIdEncoded"], claims[0], "{own}");

    let agent = Agent::start(&["--dir", path]);
    let mut reader = joined(&agent, &["--runtime", "smol"]);
    let error = reader.answer(&format!("chain {id}"))["error"].clone();
    assert!(error["message"].as_str().unwrap().contains(fault), "{error}");
    assert_eq!((&error["claimIdEncoded"], &error["seq"]), (&claims[2], &json!(2)), "{error}");
    assert_eq!(error["verified"].as_array().unwrap().len(), 1, "{error}");
    [agent, reader, friend].into_iter().for_each(Agent::end);
}
