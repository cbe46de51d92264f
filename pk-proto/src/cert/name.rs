//! Names of subjects and issuers: a CN that is a node id, and optional attributes.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

use der::asn1::{Any, AnyRef, ObjectIdentifier, PrintableStringRef};
use der::{Decode, Encode, Reader, Sequence, SliceReader, Tag, Tagged};

use crate::types::id::NodeId;

/// An attribute of a name in addition to the CN. Polykey's own certificates have none.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameAttribute {
    /// O, the organisation; only letters, digits, space and `'()+,-./:=?`.
    Organization(String),
    /// C, the country: the two letters of ISO 3166.
    Country(String),
}

/// A distinguished name: a sequence of RDNs, each a SET of attributes.
///
/// The sets are kept in the received order. Nothing depends on it, and sorting them would only be
/// work that a peer can cause.
pub(super) type Name = Vec<Any>;

/// Encodes the name of `id`.
pub(super) fn encode(id: &NodeId, extra: &[NameAttribute]) -> der::Result<Name> {
    let mut name = vec![rdn(COMMON_NAME, &id.to_string())?];
    for attribute in extra {
        name.push(match attribute {
            NameAttribute::Organization(value) => rdn(ORGANIZATION, value)?,
            NameAttribute::Country(value) => rdn(COUNTRY, value)?,
        });
    }
    Ok(name)
}

/// Returns the node id of a name; `None` if there is no CN, one that is not a node id, or several
/// of different nodes.
pub(super) fn node_id(name: &Name) -> Option<NodeId> {
    let mut found = None;
    for rdn in name {
        for attribute in attributes(rdn).ok()? {
            if attribute.kind == COMMON_NAME {
                let id = common_name(attribute.value)?;
                if found.is_some_and(|other| other != id) {
                    return None;
                }
                found = Some(id);
            }
        }
    }
    found
}

/// Returns whether both names have the same attributes in the same RDNs, in any order, as the
/// reference compares them.
///
/// Values are compared as bytes: a text is equal as PrintableString and as UTF8String.
pub(super) fn same(one: &Name, other: &Name) -> bool {
    matches!((comparable(one), comparable(other)), (Ok(one), Ok(other)) if one == other)
}

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const COUNTRY: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.6");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");

#[derive(Sequence)]
struct Attribute<'a> {
    kind: ObjectIdentifier,
    value: AnyRef<'a>,
}

/// Returns an RDN with one attribute.
fn rdn(kind: ObjectIdentifier, value: &str) -> der::Result<Any> {
    let value = PrintableStringRef::new(value)?;
    Any::new(Tag::Set, Attribute { kind, value: value.into() }.to_der()?)
}

fn attributes(rdn: &Any) -> der::Result<Vec<Attribute<'_>>> {
    rdn.tag().assert_eq(Tag::Set)?;
    let mut reader = SliceReader::new(rdn.value())?;
    let mut attributes = Vec::new();
    while !reader.is_finished() {
        attributes.push(Attribute::decode(&mut reader)?);
    }
    Ok(attributes)
}

fn common_name(value: AnyRef<'_>) -> Option<NodeId> {
    match value.tag() {
        Tag::PrintableString | Tag::Utf8String | Tag::Ia5String => {
            core::str::from_utf8(value.value()).ok()?.parse().ok()
        }
        _ => None,
    }
}

/// Attributes of an RDN by type and bytes, sorted.
type Comparable<'a> = Vec<(ObjectIdentifier, &'a [u8])>;

fn comparable(name: &Name) -> der::Result<Vec<Comparable<'_>>> {
    let mut rdns = Vec::with_capacity(name.len());
    for rdn in name {
        let mut attributes: Comparable<'_> =
            attributes(rdn)?.iter().map(|part| (part.kind, part.value.value())).collect();
        attributes.sort_unstable();
        rdns.push(attributes);
    }
    rdns.sort_unstable();
    Ok(rdns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: NodeId = NodeId::from_bytes([7; 32]);

    fn attribute(kind: ObjectIdentifier, tag: Tag, value: &[u8]) -> Vec<u8> {
        Attribute { kind, value: AnyRef::new(tag, value).unwrap() }.to_der().unwrap()
    }

    fn set(attributes: &[&[u8]]) -> Any {
        Any::new(Tag::Set, attributes.concat()).unwrap()
    }

    #[test]
    fn name_has_the_node_id_of_every_cn() {
        let text = ID.to_string();
        let own = attribute(COMMON_NAME, Tag::PrintableString, text.as_bytes());
        let own_utf8 = attribute(COMMON_NAME, Tag::Utf8String, text.as_bytes());
        let foreign = attribute(
            COMMON_NAME,
            Tag::PrintableString,
            NodeId::from_bytes([8; 32]).to_string().as_bytes(),
        );
        let org = attribute(ORGANIZATION, Tag::PrintableString, b"Org");
        let cases: [(Name, Option<NodeId>); 9] = [
            (vec![set(&[&own])], Some(ID)),
            (vec![set(&[&org]), set(&[&own_utf8])], Some(ID)),
            (vec![set(&[&org, &own])], Some(ID)),
            (vec![set(&[&own]), set(&[&own_utf8])], Some(ID)),
            (vec![set(&[&own]), set(&[&foreign])], None),
            (vec![set(&[&own, &foreign])], None),
            (vec![set(&[&org])], None),
            (vec![set(&[&attribute(COMMON_NAME, Tag::OctetString, text.as_bytes())])], None),
            (vec![Any::new(Tag::Sequence, own).unwrap()], None),
        ];
        for (case, (name, expected)) in cases.into_iter().enumerate() {
            assert_eq!(node_id(&name), expected, "case {case}");
        }
        assert_eq!(node_id(&Name::new()), None);
    }

    #[test]
    fn names_are_compared_without_order_and_string_type() {
        let country = NameAttribute::Country("AU".into());
        let organization = NameAttribute::Organization("Org".into());
        let name = |extra: &[NameAttribute]| encode(&ID, extra).unwrap();
        let both = name(&[country.clone(), organization.clone()]);
        assert!(same(&both, &name(&[organization.clone(), country.clone()])));
        assert!(!same(&both, &name(core::slice::from_ref(&country))));
        assert!(!same(&name(&[country]), &name(&[organization])));
        assert!(!same(&name(&[]), &encode(&NodeId::from_bytes([8; 32]), &[]).unwrap()));
        let utf8 =
            vec![set(&[&attribute(COMMON_NAME, Tag::Utf8String, ID.to_string().as_bytes())])];
        assert!(same(&name(&[]), &utf8));
        // A broken name equals nothing, not even itself.
        let broken = vec![Any::new(Tag::Set, vec![0x30, 0x05]).unwrap()];
        assert!(!same(&broken, &broken));
    }
}
