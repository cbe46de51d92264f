//! Bad usage: exit code 2, and a message that names the error.

use crate::process::{pk, pk_ok};

const ID: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";

/// Splits a command line at spaces, and replaces `ID` by a valid id.
fn split_words(line: &str) -> Vec<String> {
    line.split_whitespace().map(|word| word.replace("ID", ID)).collect()
}

#[test]
fn invalid_usage_exits_with_2_and_names_the_error() {
    for (line, expected) in [
        ("", "Usage: pk"),
        ("dance", "unrecognized subcommand 'dance'"),
        // Not implemented.
        ("simulate", "unrecognized subcommand"),
        ("keygen", "--dir <DIR>"),
        ("run", "--dir <DIR>"),
        ("renew", "--dir <DIR>"),
        ("cert", "--dir <DIR>"),
        ("replay", "<FILE>"),
        // Ids.
        ("find", "<ID>"),
        (
            "find xyz --dir d --seed-node ID@a.b:1",
            "a node id must start with `v` (base32hex), not with `x`",
        ),
        ("ping v --dir d --seed-node ID@a.b:1", "a node id must have 32 bytes, not 0"),
        ("ping IDv --dir d --seed-node ID@a.b:1", "node id"),
        ("closest ID --dir d --count 0", "the number of nodes must be 1 to 20"),
        ("closest ID --dir d --count 21", "the number of nodes must be 1 to 20"),
        // Seed nodes.
        ("buckets --dir d --seed-node ID", "the `@` is missing"),
        (
            "buckets --dir d --seed-node http://ID@a.b:1",
            "the scheme of a seed node must be `pk://`, not `http://`",
        ),
        ("buckets --dir d --seed-node pk://xyz@a.b:1", "seed node: a node id must start with `v`"),
        ("buckets --dir d --seed-node pk://ID@a.b", "does not end in a port from 1 to 65535"),
        ("buckets --dir d --seed-node pk://ID@a.b:0", "does not end in a port from 1 to 65535"),
        ("buckets --dir d --seed-node pk://ID@a..b:1", "neither an IP address nor a host name"),
        ("buckets --dir d --seed-node pk://ID@::1:1", "must be in brackets"),
        // Addresses to listen on.
        ("run --stdio --listen localhost:1", "the address to listen on has the form IP:PORT"),
        ("run --stdio --listen 127.0.0.1", "the address to listen on has the form IP:PORT"),
        ("run --stdio --listen 127.0.0.1:65536", "the address to listen on has the form IP:PORT"),
        ("run --stdio --host localhost", "not an IP address"),
        ("run --stdio --listen 127.0.0.1:1 --port 2", "cannot be used with"),
        ("run --stdio --port 65536", "65536 is not in 0..=65535"),
        // Claims.
        ("claim", "<ID>"),
        ("claim ID", "--dir <DIR>"),
        ("claim xyz --dir d", "a node id must start with `v`"),
        ("chain", "--dir <DIR>"),
        ("chain xyz --dir d", "a node id must start with `v`"),
        ("allow ID", "--dir <DIR>"),
        ("allow --dir d --remove", "<ID>"),
        ("run --stdio --claims some", "possible values: refuse, allow-list, ask, all"),
        ("run --stdio --allow-all --claims all", "cannot be used with"),
        ("run --stdio --allow-all --allow ID", "cannot be used with"),
        ("run --stdio --claims refuse --allow ID", "--allow has no effect with --claims refuse"),
        ("run --dir d --claims ask", "--claims ask needs --stdio"),
        // Keys.
        ("run --stdio --seed 0101", "a private key has 64 hex digits"),
        (
            "run --stdio --dir d --seed 0101010101010101010101010101010101010101010101010101010101010101",
            "cannot be used with",
        ),
        // The local network.
        ("run --stdio --mdns-port 5", "--mdns"),
        ("run --stdio --mdns --mdns-port 0", "0 is not in 1..=65535"),
        ("run --stdio --mdns-interface lo", "--mdns"),
        ("run --stdio --mdns --mdns-groups x", "such as 224.0.0.250, or `none`"),
        ("find ID --dir d --mdns-groups=none", "--mdns"),
        // The network.
        ("run --stdio --network-required", "--network <NAME>"),
        ("find ID --dir d --network-required", "--network <NAME>"),
        ("run --stdio --network=", "must not be empty"),
        // Numbers.
        ("demo --nodes 1", "1 is not in 2..=256"),
        ("demo --nodes 257", "257 is not in 2..=256"),
        ("demo --nodes many", "invalid value 'many'"),
        ("demo --runtime rayon", "possible values: tokio, smol"),
        ("run --stdio --connect-timeout 0", "0 is not in 1..=3600000"),
        ("run --stdio --keepalive-timeout 999", "999 is not in 1000..=600000"),
        ("run --stdio --keepalive-interval 10", "10 is not in 500..=300000"),
        ("run --stdio --keepalive-interval 20000", "at most half of --keepalive-timeout"),
        ("find ID --dir d --seed-node ID@a.b:1 --timeout 0", "0 is not in 1..=86400"),
        ("--log loud id --dir d", "the level must be one of off, error, warn, info, debug, trace"),
    ] {
        let words = split_words(line);
        let ended = pk(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ended.code, Some(2), "`pk {line}`: {ended}");
        assert!(ended.stderr.contains(expected), "`pk {line}` should say `{expected}`: {ended}");
        assert_eq!(ended.stdout, "", "`pk {line}`");
    }
}

#[test]
fn help_names_every_command() {
    let help = pk_ok(&["--help"]).stdout;
    for command in [
        "keygen", "id", "run", "find", "ping", "closest", "buckets", "cert", "renew", "replay",
        "demo", "claim", "chain", "allow",
    ] {
        assert!(help.contains(&format!("\n  {command}")), "{command} in {help}");
    }
    for command in ["run", "find", "ping", "closest", "buckets", "claim", "chain"] {
        let help = pk_ok(&[command, "--help"]).stdout;
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            help.contains("Not needed once the node in DIR has stored contacts")
                && help.contains("--mdns"),
            "{help}"
        );
        assert!(help.contains("--mdns-groups") && !help.contains("not stored"), "{help}");
    }
}
