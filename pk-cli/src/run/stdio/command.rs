//! The lines that `pk run --stdio` reads: `[#tag] name arguments…`, as for the reference's test
//! peer.

use pk_proto::{ApprovalId, Host, NodeAddress, NodeId, Scopes};

/// One line of stdin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Tag, which is repeated in the answer. A tagged command runs concurrently with others.
    pub(crate) tag: Option<String>,
    /// First word, which is repeated in the answer.
    pub(crate) name: String,
    /// The command, or the error in the line.
    pub(crate) command: Result<Command, String>,
}

/// Commands of the line protocol.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Connect { node: NodeId, address: NodeAddress },
    Disconnect { node: NodeId },
    FindNode { node: NodeId },
    FindClosest { target: NodeId, count: usize },
    Ping { node: NodeId },
    Closest { target: NodeId, via: Option<NodeId> },
    Active { target: NodeId, via: Option<NodeId> },
    Graph,
    Connections,
    Metrics,
    SetNode { node: NodeId, address: NodeAddress, scopes: Scopes, block: bool, force: bool },
    UnsetNode { node: NodeId },
    Signal { target: NodeId, relay: NodeId },
    Mdns { node: NodeId },
    Renew,
    Cert,
    Stream { node: NodeId, text: String },
    Claims(ClaimsCommand),
    Quit,
}

/// Commands about claims.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClaimsCommand {
    Allow { node: NodeId },
    Disallow { node: NodeId },
    Allowed,
    Claim { node: NodeId },
    ResolveApproval { approval: ApprovalId, sign: bool },
    Chain { node: NodeId },
    ClaimsGet { node: NodeId },
    Sigchain,
    Gestalt { node: Option<NodeId> },
    Sign { node: NodeId },
}

impl Line {
    /// Parses a line; returns `None` if it is blank.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        let (tag, line) =
            match line.strip_prefix('#').and_then(|rest| rest.split_once(char::is_whitespace)) {
                Some((tag, rest)) if !tag.is_empty() => (Some(tag.to_owned()), rest.trim_start()),
                _ => (None, line),
            };
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if name.is_empty() {
            return None;
        }
        Some(Self { tag, name: name.to_owned(), command: command(name, rest.trim_start()) })
    }
}

const FIND_CLOSEST: &str = "<nodeId> [number]";
/// Number of nodes of `findClosest` without a number.
const CLOSEST: usize = 20;
const SET_NODE: &str = "<nodeId> <host> <port> [global|local] [block] [force]";

fn command(name: &str, rest: &str) -> Result<Command, String> {
    let usage = |arguments: &str| format!("usage: {name} {arguments}").trim_end().to_owned();
    let words: Vec<&str> = rest.split_whitespace().collect();
    let node_and = |make: fn(NodeId) -> Command| match words[..] {
        [node] => id(node).map(make),
        _ => Err(usage("<nodeId>")),
    };
    let claims_of = |make: fn(NodeId) -> ClaimsCommand| match words[..] {
        [node] => Ok(Command::Claims(make(id(node)?))),
        _ => Err(usage("<nodeId>")),
    };
    let target_and_via = |make: fn(NodeId, Option<NodeId>) -> Command| match words[..] {
        [target] => Ok(make(id(target)?, None)),
        [target, via] => Ok(make(id(target)?, Some(id(via)?))),
        _ => Err(usage("<nodeId> [via]")),
    };
    let alone = |command: Command| if words.is_empty() { Ok(command) } else { Err(usage("")) };
    match name {
        "connect" => match words[..] {
            [node, host, port] => {
                Ok(Command::Connect { node: id(node)?, address: address(host, port)? })
            }
            _ => Err(usage("<nodeId> <host> <port>")),
        },
        "disconnect" => node_and(|node| Command::Disconnect { node }),
        "findNode" => node_and(|node| Command::FindNode { node }),
        "findClosest" => match words[..] {
            [target] => Ok(Command::FindClosest { target: id(target)?, count: CLOSEST }),
            [target, count] => match count.parse() {
                Ok(count) => Ok(Command::FindClosest { target: id(target)?, count }),
                Err(_) => Err(usage(FIND_CLOSEST)),
            },
            _ => Err(usage(FIND_CLOSEST)),
        },
        "ping" => node_and(|node| Command::Ping { node }),
        "closest" => target_and_via(|target, via| Command::Closest { target, via }),
        "active" => target_and_via(|target, via| Command::Active { target, via }),
        "graph" => alone(Command::Graph),
        "connections" => alone(Command::Connections),
        "metrics" => alone(Command::Metrics),
        "setnode" => match &words[..] {
            [node, host, port, how @ ..] => {
                let (mut scopes, mut block, mut force) = (Scopes::GLOBAL, false, false);
                for word in how {
                    match *word {
                        "global" => scopes = Scopes::GLOBAL,
                        "local" => scopes = Scopes::LOCAL,
                        "block" => block = true,
                        "force" => force = true,
                        _ => return Err(usage(SET_NODE)),
                    }
                }
                Ok(Command::SetNode {
                    node: id(node)?,
                    address: address(host, port)?,
                    scopes,
                    block,
                    force,
                })
            }
            _ => Err(usage(SET_NODE)),
        },
        "unsetnode" => node_and(|node| Command::UnsetNode { node }),
        "signal" => match words[..] {
            [target, relay] => Ok(Command::Signal { target: id(target)?, relay: id(relay)? }),
            _ => Err(usage("<target> <relay>")),
        },
        "mdns" => node_and(|node| Command::Mdns { node }),
        "renew" => alone(Command::Renew),
        "cert" => alone(Command::Cert),
        "stream" => match rest.split_once(char::is_whitespace) {
            Some((node, text)) => {
                Ok(Command::Stream { node: id(node)?, text: text.trim_start().to_owned() })
            }
            None => Err(usage("<nodeId> <text>")),
        },
        "allow" => claims_of(|node| ClaimsCommand::Allow { node }),
        "disallow" => claims_of(|node| ClaimsCommand::Disallow { node }),
        "allowed" => alone(Command::Claims(ClaimsCommand::Allowed)),
        "claim" => claims_of(|node| ClaimsCommand::Claim { node }),
        "answer" => match words[..] {
            [approval, how @ ("sign" | "refuse")] => {
                let approval = approval.parse().map_err(|_| {
                    format!("invalid number {approval}: use the number of the event claimAsked")
                })?;
                Ok(Command::Claims(ClaimsCommand::ResolveApproval {
                    approval: ApprovalId(approval),
                    sign: how == "sign",
                }))
            }
            _ => Err(usage("<ask> sign|refuse")),
        },
        "chain" => claims_of(|node| ClaimsCommand::Chain { node }),
        "claimsGet" => claims_of(|node| ClaimsCommand::ClaimsGet { node }),
        "sigchain" => alone(Command::Claims(ClaimsCommand::Sigchain)),
        "gestalt" => match words[..] {
            [] => Ok(Command::Claims(ClaimsCommand::Gestalt { node: None })),
            [node] => Ok(Command::Claims(ClaimsCommand::Gestalt { node: Some(id(node)?) })),
            _ => Err(usage("[nodeId]")),
        },
        "sign" => claims_of(|node| ClaimsCommand::Sign { node }),
        "quit" => alone(Command::Quit),
        _ => Err(format!("unknown command {name}")),
    }
}

fn id(text: &str) -> Result<NodeId, String> {
    text.parse().map_err(|error| format!("invalid node id {text}: {error}"))
}

fn address(host: &str, port: &str) -> Result<NodeAddress, String> {
    let host: Host = host.parse().map_err(|error| format!("invalid host: {error}"))?;
    match port.parse() {
        Ok(port) if port != 0 => Ok(NodeAddress { host, port }),
        _ => Err(format!("invalid port {port}: a port is 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "vha4e7nbk17opbvaircmjpeiteb56e2dv3ma146vjei403d0fdte0";

    fn parse(line: &str) -> Result<Command, String> {
        Line::parse(line).unwrap().command
    }

    #[test]
    fn line_has_a_tag_a_name_and_arguments() {
        assert_eq!(Line::parse(""), None);
        assert_eq!(Line::parse("  \t"), None);
        let line = Line::parse(&format!("  #7  ping   {ID} ")).unwrap();
        let node = ID.parse().unwrap();
        assert_eq!(
            line,
            Line {
                tag: Some("7".to_owned()),
                name: "ping".to_owned(),
                command: Ok(Command::Ping { node })
            }
        );
        let alone = Line::parse("#7").unwrap();
        assert_eq!((alone.tag, alone.name.as_str()), (None, "#7"));
        assert_eq!(parse("graph"), Ok(Command::Graph));
        assert_eq!(
            parse(&format!("closest {ID} {ID}")),
            Ok(Command::Closest { target: node, via: Some(node) })
        );
        let address = "a.b:1".parse().unwrap();
        let set =
            Command::SetNode { node, address, scopes: Scopes::LOCAL, block: true, force: true };
        assert_eq!(parse(&format!("setnode {ID} a.b 1 force local block")), Ok(set));
        let address = "[::1]:9".parse().unwrap();
        assert_eq!(parse(&format!("connect {ID} ::1 9")), Ok(Command::Connect { node, address }));
        assert_eq!(parse("gestalt"), Ok(Command::Claims(ClaimsCommand::Gestalt { node: None })));
        let answer = ClaimsCommand::ResolveApproval { approval: ApprovalId(7), sign: false };
        assert_eq!(parse("answer 7 refuse"), Ok(Command::Claims(answer)));
        let text = "two  words".to_owned();
        assert_eq!(parse(&format!("stream {ID}  two  words ")), Ok(Command::Stream { node, text }));
    }

    #[test]
    fn invalid_line_names_its_error() {
        for (line, expected) in [
            ("dance", "unknown command dance"),
            ("ping", "usage: ping <nodeId>"),
            ("quit now", "usage: quit"),
            ("ping xyz", "invalid node id xyz: a node id must start with `v`"),
            (&format!("connect {ID} 127.0.0.1"), "usage: connect <nodeId> <host> <port>"),
            (&format!("connect {ID} a..b 1"), "invalid host: `a..b`"),
            (&format!("connect {ID} a.b 0"), "invalid port 0"),
            (
                &format!("setnode {ID} a.b 1 wide"),
                "usage: setnode <nodeId> <host> <port> [global|local] [block] [force]",
            ),
            (&format!("signal {ID}"), "usage: signal <target> <relay>"),
            ("renew now", "usage: renew"),
            ("allow", "usage: allow <nodeId>"),
            ("claim", "usage: claim <nodeId>"),
            ("answer 1 maybe", "usage: answer <ask> sign|refuse"),
            ("answer one sign", "invalid number one: use the number of the event claimAsked"),
            ("gestalt 1 2", "usage: gestalt [nodeId]"),
            (&format!("stream {ID}"), "usage: stream <nodeId> <text>"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.starts_with(expected), "{line}: {error}");
        }
    }
}
