//! `pk cert`.

use pk_driver::{KeyStore, unix_now};
use pk_proto::Identity;
use pk_proto::cert::{Certificate, MAX_CHAIN_LEN, verify_client};
use serde_json::{Value, json};

use crate::args::KeysArgs;
use crate::error::{CliError, Result};
use crate::node::keys;
use crate::output;
use crate::output::format::{count, date};
use crate::output::polykey_json;

/// `pk cert`: prints the certificates of a node, newest first, and the ids that they prove. Only
/// reads, so that it also works while the node runs.
pub(crate) fn cert(args: &KeysArgs) -> Result<()> {
    let key = keys::expect(&args.dir)?;
    let identity = KeyStore::new(&args.dir).load_identity()?.ok_or_else(|| {
        let dir = args.dir.display();
        CliError::new("NoCertificate", format!("the node in {dir} has no certificate"))
            .tip("the next `pk run` creates one")
    })?;
    let chain = certificates(&identity)?;
    let unix = unix_now().as_secs();
    let proven = verify_client(&identity.chain, unix);
    if args.json {
        let certificates = chain.iter().map(|certificate| {
            json!({
                "nodeId": certificate.node_id().to_string(),
                "issuerNodeId": certificate.issuer().map(|issuer| issuer.to_string()),
                "notBefore": certificate.not_before(),
                "notAfter": certificate.not_after(),
            })
        });
        let certificates: Value = certificates.collect();
        let fault = proven.as_ref().err().map(ToString::to_string);
        let nodes: Vec<_> =
            proven.iter().flat_map(|proven| &proven.chain).map(ToString::to_string).collect();
        output::json(&json!({
            "ok": true, "nodeId": key.node_id().to_string(), "provenNodeIds": nodes, "fault": fault,
            "certificates": certificates, "chainFull": chain.len() >= MAX_CHAIN_LEN, "certPem": polykey_json::pem(&identity),
        }));
        return Ok(());
    }
    output::line(format_args!(
        "{} has {}",
        key.node_id(),
        count(chain.len() as u64, "certificate")
    ));
    for certificate in &chain {
        let node = certificate.node_id();
        let issuer = match certificate.issuer() {
            Some(issuer) if issuer == node => "itself".to_owned(),
            Some(issuer) => issuer.to_string(),
            None => "an unknown issuer".to_owned(),
        };
        output::line(format_args!("  {node}"));
        output::line(format_args!("    issued by {issuer}"));
        let (from, to) = (certificate.not_before(), certificate.not_after());
        output::line(format_args!(
            "    valid from {} to {}{}",
            date(from),
            date(to),
            validity(unix, from, to)
        ));
    }
    match proven {
        Ok(proven) => {
            if chain
                .iter()
                .skip(1)
                .any(|older| unix < older.not_before() || unix > older.not_after())
            {
                output::line(
                    "peers that dial a former id refuse an invalid certificate between it and \
                        the current id; the next command that starts the node reissues those \
                        whose keys are in DIR/keys",
                );
            }
            output::line(format_args!(
                "the certificates prove {}",
                count(proven.chain.len() as u64, "node id")
            ));
            if chain.len() >= MAX_CHAIN_LEN {
                output::line(format_args!(
                    "the chain has the maximum length: the next renewal drops its oldest certificate"
                ));
            }
        }
        Err(fault) if fault.is_of_time() => output::line(format_args!(
            "the certificates prove nothing now: {fault}; the next command that starts the \
                node reissues the newest one; the node ids do not change"
        )),
        Err(fault) => output::line(format_args!("the certificates prove nothing: {fault}")),
    }
    Ok(())
}

fn certificates(identity: &Identity) -> Result<Vec<Certificate>> {
    let damaged =
        |fault| CliError::new("Certificate", format!("a certificate is damaged: {fault}"));
    identity.chain.iter().map(|der| Certificate::parse(der).map_err(damaged)).collect()
}

fn validity(unix: u64, from: u64, to: u64) -> String {
    const DAY: u64 = 24 * 60 * 60;
    match unix {
        _ if unix < from => " (not yet)".to_owned(),
        _ if unix > to => " (expired)".to_owned(),
        _ => format!(" ({} left)", count((to - unix) / DAY, "day")),
    }
}
