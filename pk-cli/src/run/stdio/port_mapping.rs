//! The events of the port mapping in the line protocol.

use pk_driver::{PortMapping, PortMappingEvent, PortMappingFailure, PortMappingProtocol};
use serde::Serialize;
use serde_json::{Value, json};

use super::lines::Printer;
use crate::output::format::ms;

/// An event about a mapping.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct About {
    event: &'static str,
    protocol: &'static str,
    host: String,
    port: u16,
    lifetime_ms: f64,
    /// Whether the address is public, so that it is sent to peers.
    public: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    restarted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
}

/// No protocol has mapped the port.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failed {
    event: &'static str,
    causes: Vec<Value>,
    retry_in_ms: f64,
}

/// Prints an event.
pub(super) async fn print(printer: &Printer, event: &PortMappingEvent) {
    let about = match event {
        PortMappingEvent::Mapped(mapping) => about("portMapped", mapping),
        PortMappingEvent::Renewed { mapping, restarted } => {
            About { restarted: Some(*restarted), ..about("portMappingRenewed", mapping) }
        }
        PortMappingEvent::RenewalFailed { mapping, why } => {
            About { error: Some(error(why)), ..about("portMappingRenewalFailed", mapping) }
        }
        PortMappingEvent::Lost(mapping) => about("portMappingLost", mapping),
        PortMappingEvent::Withdrawn(mapping) => about("portMappingWithdrawn", mapping),
        PortMappingEvent::WithdrawalFailed { mapping, why } => {
            About { error: Some(error(why)), ..about("portMappingWithdrawalFailed", mapping) }
        }
        PortMappingEvent::Failed { causes, retry_in } => {
            let cause = |(protocol, why): &(PortMappingProtocol, PortMappingFailure)| json!({ "protocol": name(*protocol), "error": error(why) });
            let causes = causes.iter().map(cause).collect();
            let failed = Failed { event: "portMappingFailed", causes, retry_in_ms: ms(*retry_in) };
            return printer.print(&failed).await;
        }
        _ => return,
    };
    printer.print(&about).await;
}

fn about(event: &'static str, mapping: &PortMapping) -> About {
    About {
        event,
        protocol: name(mapping.protocol),
        host: mapping.external.ip().to_string(),
        port: mapping.external.port(),
        lifetime_ms: ms(mapping.lifetime),
        public: mapping.is_global,
        restarted: None,
        error: None,
    }
}

fn error(why: &PortMappingFailure) -> Value {
    json!({ "name": why.name(), "message": why.to_string() })
}

fn name(protocol: PortMappingProtocol) -> &'static str {
    match protocol {
        PortMappingProtocol::Pcp => "pcp",
        PortMappingProtocol::NatPmp => "natpmp",
        PortMappingProtocol::Igd => "igd",
    }
}
