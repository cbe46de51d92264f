//! `pk renew`, the command `renew`, and `pk cert`.

use serde_json::json;

use crate::process::{Agent, pk, pk_ok};

#[test]
fn renewed_directory_has_a_new_id_and_proves_the_old_one() {
    for runtime in ["tokio", "smol"] {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        let old = pk_ok(&["keygen", "--dir", dir]).stdout.trim().to_owned();
        let mut friend = Agent::start(&[]);
        let node = Agent::start(&["--dir", dir, "--runtime", runtime]);
        friend.ask(&format!("connect {old} 127.0.0.1 {}", node.port));
        node.quit();

        let renewed = pk_ok(&["renew", "--dir", dir, "--runtime", runtime]).stdout;
        let new = renewed.lines().next().unwrap().to_owned();
        assert!(renewed.contains(&format!("was {old}")) && new != old, "{renewed}");
        assert_eq!(pk_ok(&["id", "--dir", dir]).stdout.trim(), new);
        let mut node = Agent::start(&["--dir", dir, "--runtime", runtime]);
        assert_eq!(node.id, new);
        // A node with a contact for the old id learns the new one.
        let connected = friend.ask(&format!("connect {old} 127.0.0.1 {}", node.port));
        assert_eq!(connected["nodeId"], new.as_str());
        assert_ne!(friend.ask(&format!("ping {old}")), json!(null));
        let graph = friend.ask("graph");
        assert!(graph[&new].is_object() && graph[&old].is_null(), "{graph}");

        // Once more, while it runs.
        let again = node.ask("renew");
        let newest = again["nodeId"].as_str().unwrap().to_owned();
        assert_eq!(again["oldNodeId"], new.as_str());
        assert_eq!(again["certChainPem"].as_str().unwrap().matches("BEGIN CERTIFICATE").count(), 3);
        assert_eq!(node.ask("cert")["certPem"], again["certChainPem"]);
        assert_eq!(
            node.event("identityRenewed"),
            json!({
                "event": "identityRenewed", "oldNodeId": new, "nodeId": newest,
            })
        );
        // Its neighbours learn the newest id when it connects to them again.
        friend.wait_for("a connection of the newest id", |value| {
            ["connectionForward", "connectionReverse"]
                .contains(&value["event"].as_str().unwrap_or(""))
                && value["nodeId"] == newest.as_str()
        });
        assert_ne!(friend.ask(&format!("ping {newest}")), json!(null));
        node.quit();
        friend.quit();

        let cert = &pk_ok(&["cert", "--dir", dir, "--json"]).json()[0];
        assert_eq!((&cert["nodeId"], &cert["fault"]), (&json!(newest), &json!(null)), "{cert}");
        assert_eq!(cert["provenNodeIds"], json!([newest, new, old]));
        assert_eq!(cert["certPem"], again["certChainPem"]);
        let issuers: Vec<_> = cert["certificates"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["issuerNodeId"])
            .collect();
        assert_eq!(issuers, [&json!(new), &json!(old), &json!(old)]);
        let people = pk_ok(&["cert", "--dir", dir]).stdout;
        assert!(people.starts_with(&format!("{newest} has 3 certificates\n")), "{people}");
        assert!(
            people.contains("issued by itself")
                && people.ends_with("the certificates prove 3 node ids\n"),
            "{people}"
        );
    }
}

#[test]
fn directory_without_a_node_is_not_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().to_str().unwrap();
    for command in ["renew", "cert"] {
        let ended = pk(&[command, "--dir", empty]);
        assert_eq!(ended.code, Some(1), "{ended}");
        assert!(ended.stderr.contains("there is no node in"), "{ended}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}
