//! Wrong clocks: nodes start, warn, and join when the clock is right. libfaketime shows a clock to
//! one process alone.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::internet::{Internet, Nat};
use crate::process::{Agent, Ended, LIMIT, command, command_in, finish, pk_ok};

const DAY: i64 = 86_400;

/// The wall clock of some processes, which can be set while they run.
struct Clock {
    library: PathBuf,
    file: tempfile::NamedTempFile,
}

impl Clock {
    /// Returns `None`, with a message, without libfaketime.
    fn new(test: &str) -> Option<Self> {
        let Some(library) = library() else {
            let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
            assert!(!ci, "CI has to run the tests of clocks: libfaketime is not here");
            // Not by `eprintln!`, whose output the test harness shows only if a test fails.
            drop(writeln!(
                std::io::stderr(),
                "\n*** NOT RUN: {test}: libfaketime is not here ***\n"
            ));
            return None;
        };
        let clock = Self { library, file: tempfile::NamedTempFile::new().unwrap() };
        clock.set(0);
        Some(clock)
    }

    /// Sets it ahead of the right time by so many seconds.
    fn set(&self, ahead: i64) {
        // The processes read it while it is written: it must be complete at any time.
        let whole = self.file.path().with_extension("next");
        std::fs::write(&whole, format!("{ahead:+}\n")).unwrap();
        std::fs::rename(whole, self.file.path()).unwrap();
    }

    fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", self.file.path())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
    }

    fn pk(&self, args: &[&str]) -> Ended {
        finish(self.apply(&mut command(args)), LIMIT)
    }

    fn pk_ok(&self, args: &[&str]) -> Ended {
        let ended = self.pk(args);
        assert_eq!(ended.code, Some(0), "`pk {}`: {ended}", args.join(" "));
        ended
    }

    fn run(&self, args: &[&str]) -> Agent {
        Agent::spawn(
            self.apply(&mut command(
                &[&["run", "--stdio", "--listen", "127.0.0.1:0"], args].concat(),
            )),
        )
    }
}

/// libfaketime for programs with threads, wherever the system has it.
fn library() -> Option<PathBuf> {
    let places = ["/usr/lib", "/usr/local/lib", "/usr/lib64"].map(Path::new);
    let below = places
        .iter()
        .filter_map(|place| place.read_dir().ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let mut candidates = places.iter().map(|place| place.to_path_buf()).chain(below);
    candidates.find_map(|place| {
        Some(place.join("faketime/libfaketimeMT.so.1")).filter(|library| library.exists())
    })
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// Wrong clocks as seconds ahead of the right one: 1970, before it, decades behind and ahead, after
/// the maximum of UTCTime and GeneralizedTime.
fn wrong_clocks() -> [(&'static str, i64); 9] {
    [
        ("1970", 60 - now()),
        ("before 1970", -now() - 10 * 365 * DAY),
        ("20 years behind", -20 * 365 * DAY),
        ("2 hours behind", -7200),
        ("45 minutes ahead", 45 * 60),
        ("300 days ahead", 300 * DAY),
        ("2106", 4_300_000_000 - now()),
        ("9999", 253_402_300_000 - now()),
        ("12000", 316_000_000_000 - now()),
    ]
}

fn connect(from: &mut Agent, id: &str, to: &Agent) -> Value {
    from.answer(&format!("connect {id} 127.0.0.1 {}", to.port))
}

fn connects_soon(from: &mut Agent, id: &str, to: &Agent, within: Duration, what: &str) {
    let begun = Instant::now();
    loop {
        let answer = connect(from, id, to);
        if answer["ok"] == true {
            return;
        }
        assert!(begun.elapsed() < within, "{what}: {answer}");
        sleep(Duration::from_millis(200));
    }
}

#[test]
fn node_created_under_a_wrong_clock_works_under_the_right_one() {
    let Some(clock) = Clock::new("nodes made under wrong clocks") else { return };
    let mut peer = Agent::start(&["--listen", "127.0.0.1:0"]);
    for (what, ahead) in wrong_clocks() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().to_str().unwrap();
        clock.set(ahead);
        let old = clock.pk_ok(&["keygen", "--dir", dir]).stdout.trim().to_owned();
        clock.run(&["--dir", dir]).quit();
        let new = clock.pk_ok(&["renew", "--dir", dir]).stdout.lines().next().unwrap().to_owned();

        // The first command under the right clock is a one-shot or a node that stays.
        if ahead % 2 == 0 {
            pk_ok(&["ping", &peer.id, "--dir", dir, "--seed-node", &peer.seed_node()]);
        }
        let node = Agent::start(&["--dir", dir, "--listen", "127.0.0.1:0"]);
        assert_eq!(node.id, new, "{what}");
        for id in [&new, &old] {
            let answer = connect(&mut peer, id, &node);
            assert_eq!(answer["ok"], true, "{what}, by {id}: {answer}");
            peer.answer(&format!("disconnect {new}"));
        }
        node.quit();
        let cert = pk_ok(&["cert", "--dir", dir]).stdout;
        assert!(
            cert.ends_with("the certificates prove 2 node ids\n") && !cert.contains("not yet"),
            "{what}: {cert}"
        );
    }
    peer.quit();
}

#[test]
fn start_under_a_wrong_clock_has_no_lasting_effect() {
    let Some(clock) = Clock::new("one start under a wrong clock") else { return };
    let mut peer = Agent::start(&["--listen", "127.0.0.1:0"]);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let id = pk_ok(&["keygen", "--dir", dir]).stdout.trim().to_owned();
    for (what, ahead) in wrong_clocks() {
        clock.set(ahead);
        let mut node = clock.run(&["--dir", dir]);
        assert_eq!(node.id, id, "{what}");
        // With any result.
        connect(&mut node, &peer.id.clone(), &peer);
        node.quit();
        if ahead > 2 * 3600 {
            let cert = pk_ok(&["cert", "--dir", dir]).stdout;
            assert!(
                cert.contains("not yet")
                    && cert.contains("the next command that starts the node reissues"),
                "{cert}"
            );
        }
        let ping = pk_ok(&["ping", &peer.id, "--dir", dir, "--seed-node", &peer.seed_node()]);
        assert!(ping.stdout.contains("answers in"), "{what}: {ping}");
        let node = Agent::start(&["--dir", dir, "--listen", "127.0.0.1:0"]);
        let answer = connect(&mut peer, &id, &node);
        assert_eq!((answer["ok"].as_bool(), &node.id), (Some(true), &id), "{what}: {answer}");
        node.quit();
    }
    peer.quit();
}

#[test]
fn clock_set_while_a_node_runs_is_detected_at_once() {
    let Some(clock) = Clock::new("clocks that are set") else { return };
    let mut peer = Agent::start(&["--listen", "127.0.0.1:0"]);
    for (what, ahead) in wrong_clocks() {
        clock.set(ahead);
        let mut node = clock.run(&[]);
        let id = node.id.clone();
        clock.set(0);
        // Nothing else wakes it.
        sleep(Duration::from_millis(2500));
        connects_soon(&mut peer, &id, &node, Duration::from_secs(4), what);
        peer.ask(&format!("disconnect {id}"));
        // To the wrong time and back.
        clock.set(ahead);
        sleep(Duration::from_millis(1500));
        let renewed = node.answer("renew");
        assert_eq!(renewed["ok"], true, "{what}: a new key under a wrong clock: {renewed}");
        clock.set(0);
        connects_soon(&mut node, &peer.id.clone(), &peer, Duration::from_secs(5), what);
        node.quit();
    }
    peer.quit();
}

#[test]
fn node_joins_when_its_clock_is_set_right() {
    let Some(clock) = Clock::new("joins under wrong clocks") else { return };
    for ahead in [60 - now(), 400 * DAY] {
        // A directory of its own: otherwise the other node, which has ended, would be dialed.
        let peer = Agent::start(&["--listen", "127.0.0.1:0"]);
        clock.set(ahead);
        let mut node = clock.run(&["--seed-node", &peer.seed_node()]);
        // The second time, so that the next try is ten seconds ahead.
        for _ in 0..2 {
            let failed = node.event("joinFailed").to_string();
            assert!(
                failed.contains("the clock of this node reads") && failed.contains("may be wrong"),
                "{failed}"
            );
        }
        clock.set(0);
        let begun = Instant::now();
        node.event("joined");
        assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
        node.quit();
        peer.quit();
    }
}

#[test]
fn impossible_clock_causes_a_warning() {
    let Some(clock) = Clock::new("warnings of clocks") else { return };
    for (ahead, date) in [(60 - now(), "1970-01-01T"), (316_000_000_000 - now(), "9999-12-31T")] {
        clock.set(ahead);
        let dir = tempfile::tempdir().unwrap();
        let made = clock.pk_ok(&["keygen", "--dir", dir.path().to_str().unwrap()]);
        let mut node = clock.run(&[]);
        for text in [made.stderr, node.kill()] {
            assert!(text.contains("the clock of this system") && text.contains(date), "{text}");
        }
    }
}

#[test]
fn failures_name_dates_and_clocks_on_both_sides() {
    let Some(clock) = Clock::new("messages about clocks") else { return };
    let mut right = Agent::start(&["--listen", "127.0.0.1:0"]);
    for (ahead, by_the_right_one) in
        [(800 * DAY, "is not valid before 20"), (-800 * DAY, "expired after 20")]
    {
        clock.set(ahead);
        let mut wrong = clock.run(&[]);
        let other = if ahead > 0 { "expired after 20" } else { "is not valid before 20" };
        let answers = [
            connect(&mut right, &wrong.id.clone(), &wrong),
            connect(&mut wrong, &right.id.clone(), &right),
        ];
        for (answer, says) in answers.iter().zip([by_the_right_one, other]) {
            let text = answer["error"].to_string();
            assert!(
                text.contains(says)
                    && text.contains("the clock of this node reads 20")
                    && text.contains("may be wrong"),
                "{text}"
            );
        }
        // It accepts the certificate of the peer, which does not accept its own.
        clock.set(if ahead > 0 { 300 * DAY } else { 0 });
        sleep(Duration::from_millis(2500));
        if ahead > 0 {
            let text = connect(&mut wrong, &right.id.clone(), &right)["error"].to_string();
            assert!(
                text.contains(
                    "the certificate of this node is not valid now; the clock of this node reads 20"
                ),
                "{text}"
            );
        }
        wrong.quit();
    }
    assert!(right.kill().contains("a peer was refused"), "the acceptor warns, too");
}

#[test]
fn nodes_behind_nats_connect_if_their_clocks_differ_by_up_to_an_hour() {
    let Some(clock) = Clock::new("signalling between wrong clocks") else { return };
    let hosts = ["a", "b", "c", "d", "e", "t"].map(|host| (host, Nat::PortPreserving));
    let Some(internet) = Internet::new("clk", &hosts) else { return };
    let start = |host: &str, relay: Option<&Agent>, clock: Option<&Clock>| {
        let mut args =
            vec!["run", "--stdio", "--listen", "0.0.0.0:4433", "--connect-timeout", "8000"];
        // A node that relays may be quicker than punching.
        args.extend(["--relay", "off"]);
        let seed =
            relay.map(|relay| format!("pk://{}@{}:4433", relay.id, internet.address("relay")));
        args.extend(seed.iter().flat_map(|seed| ["--seed-node", seed.as_str()]));
        let mut command = command_in(&internet.namespace(host), &args);
        if let Some(clock) = clock {
            clock.apply(&mut command);
        }
        let mut agent = Agent::spawn(&mut command);
        if relay.is_some() {
            agent.event("joined");
        }
        agent
    };
    let relay = start("relay", None, None);
    let mut target = start("t", Some(&relay), None);
    let mut punched = target.punches();
    for (host, minutes) in [("a", 0), ("b", 3), ("c", -3), ("d", 59), ("e", -59)] {
        clock.set(minutes * 60);
        let mut source = start(host, Some(&relay), Some(&clock));
        let found = source.ask(&format!("findNode {}", target.id));
        assert!(!found.is_null(), "{minutes} minutes: the target was not found");
        source.ask(&format!("disconnect {}", target.id));
        source.ask(&format!("signal {} {}", target.id, relay.id));
        // Not the mode of the connection: a direct dial that is repeated while the target punches
        // can be quicker than the dial after the signal.
        let before = std::mem::replace(&mut punched, target.punches());
        assert!(punched > before, "{minutes} minutes: the target did not punch");
        // The clock is corrected while the node runs: the relay knows its old time, and signals
        // nevertheless.
        clock.set(0);
        sleep(Duration::from_millis(1500));
        source.ask(&format!("disconnect {}", target.id));
        source.ask(&format!("signal {} {}", target.id, relay.id));
        source.quit();
    }
    target.quit();
    relay.quit();
}
