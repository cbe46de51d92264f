//! Messages of multicast DNS, as far as service discovery needs them, and their bytes.
//!
//! Names are lower case, because they are compared without case (RFC 6762 section 16).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{A, AAAA, PTR, RData, SRV, TXT};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question as Ask, TYPE};
use simple_dns::{CharacterString, ResourceRecord};

/// Maximum length of a sent message, in bytes: an Ethernet packet (RFC 6762 section 17).
pub(crate) const MAX_SENT: usize = 1440;

/// Maximum length of a received message, in bytes (RFC 6762 section 17).
pub(crate) const MAX_RECEIVED: usize = 9000;

/// Length of the header, and the minimum length of a question and of a record.
const HEADER: usize = 12;
const MIN_QUESTION: usize = 5;
const MIN_RECORD: usize = 11;

/// A query or a response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) id: u16,
    pub(crate) is_response: bool,
    /// More known answers follow in further messages.
    pub(crate) is_truncated: bool,
    pub(crate) questions: Vec<Question>,
    pub(crate) answers: Vec<Record>,
    /// Of a probe: the records that the sender wants to own.
    pub(crate) proposed: Vec<Record>,
    pub(crate) additional: Vec<Record>,
}

/// What a question asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Whether the response may be sent to the sender alone.
    pub(crate) unicast: bool,
}

/// Types of records that a question may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ptr,
    Srv,
    Txt,
    A,
    Aaaa,
    Any,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) name: String,
    /// Seconds; 0 withdraws the record.
    pub(crate) ttl: u32,
    /// Whether it replaces all records of its name and type.
    pub(crate) flush: bool,
    pub(crate) data: Data,
}

/// Content of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    Ptr(String),
    Srv { port: u16, target: String },
    Txt,
    Addr(IpAddr),
}

impl Kind {
    /// Returns whether a question of this kind asks for such a record.
    pub(crate) fn wants(self, data: &Data) -> bool {
        match self {
            Self::Any => true,
            Self::Ptr => matches!(data, Data::Ptr(_)),
            Self::Srv => matches!(data, Data::Srv { .. }),
            Self::Txt => matches!(data, Data::Txt),
            Self::A => matches!(data, Data::Addr(IpAddr::V4(_))),
            Self::Aaaa => matches!(data, Data::Addr(IpAddr::V6(_))),
        }
    }

    fn read(kind: QTYPE) -> Option<Self> {
        Some(match kind {
            QTYPE::ANY => Self::Any,
            QTYPE::TYPE(TYPE::PTR) => Self::Ptr,
            QTYPE::TYPE(TYPE::SRV) => Self::Srv,
            QTYPE::TYPE(TYPE::TXT) => Self::Txt,
            QTYPE::TYPE(TYPE::A) => Self::A,
            QTYPE::TYPE(TYPE::AAAA) => Self::Aaaa,
            _ => return None,
        })
    }

    fn write(self) -> QTYPE {
        match self {
            Self::Any => QTYPE::ANY,
            Self::Ptr => QTYPE::TYPE(TYPE::PTR),
            Self::Srv => QTYPE::TYPE(TYPE::SRV),
            Self::Txt => QTYPE::TYPE(TYPE::TXT),
            Self::A => QTYPE::TYPE(TYPE::A),
            Self::Aaaa => QTYPE::TYPE(TYPE::AAAA),
        }
    }
}

impl Message {
    /// Decodes a message. Questions and records of other types are left out. `None` for bytes that
    /// are not a message.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_RECEIVED || !counts_are_possible(bytes) {
            return None;
        }
        let packet = Packet::parse(bytes).ok()?;
        let records = |records: &[ResourceRecord<'_>]| records.iter().filter_map(read).collect();
        Some(Self {
            id: packet.id(),
            is_response: packet.has_flags(PacketFlag::RESPONSE),
            is_truncated: packet.has_flags(PacketFlag::TRUNCATION),
            questions: packet.questions.iter().filter_map(read_question).collect(),
            answers: records(&packet.answers),
            proposed: records(&packet.name_servers),
            additional: records(&packet.additional_records),
        })
    }

    /// Encodes the message. `None` if a name is no name.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut packet = match self.is_response {
            true => Packet::new_reply(self.id),
            false => Packet::new_query(self.id),
        };
        if self.is_response {
            packet.set_flags(PacketFlag::AUTHORITATIVE_ANSWER);
        }
        if self.is_truncated {
            packet.set_flags(PacketFlag::TRUNCATION);
        }
        let class = QCLASS::CLASS(CLASS::IN);
        for question in &self.questions {
            let name = Name::new(&question.name).ok()?;
            packet.questions.push(Ask::new(name, question.kind.write(), class, question.unicast));
        }
        packet.answers = self.answers.iter().map(write).collect::<Option<_>>()?;
        packet.name_servers = self.proposed.iter().map(write).collect::<Option<_>>()?;
        packet.additional_records = self.additional.iter().map(write).collect::<Option<_>>()?;
        packet.build_bytes_vec_compressed().ok()
    }

    /// Returns all records, for a reader that makes no difference between the sections.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.answers.iter().chain(&self.additional)
    }
}

/// Returns whether the bytes can contain as many questions and records as the header says. The
/// decoder allocates memory for these numbers.
fn counts_are_possible(bytes: &[u8]) -> bool {
    let count = |at: usize| match bytes.get(at..at + 2) {
        Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
        _ => usize::MAX / 64,
    };
    let (questions, records) = (count(4), count(6) + count(8) + count(10));
    questions * MIN_QUESTION + records * MIN_RECORD + HEADER <= bytes.len()
}

fn text(name: &Name<'_>) -> String {
    name.to_string().to_ascii_lowercase()
}

fn read_question(question: &Ask<'_>) -> Option<Question> {
    let is_in = matches!(question.qclass, QCLASS::ANY | QCLASS::CLASS(CLASS::IN));
    let kind = Kind::read(question.qtype).filter(|_| is_in)?;
    Some(Question { name: text(&question.qname), kind, unicast: question.unicast_response })
}

fn read(record: &ResourceRecord<'_>) -> Option<Record> {
    let data = match &record.rdata {
        RData::PTR(PTR(target)) => Data::Ptr(text(target)),
        RData::SRV(srv) => Data::Srv { port: srv.port, target: text(&srv.target) },
        RData::TXT(_) => Data::Txt,
        RData::A(addr) => Data::Addr(Ipv4Addr::from(addr.address).into()),
        RData::AAAA(addr) => Data::Addr(Ipv6Addr::from(addr.address).into()),
        _ => return None,
    };
    (record.class == CLASS::IN).then(|| Record {
        name: text(&record.name),
        ttl: record.ttl,
        flush: record.cache_flush,
        data,
    })
}

fn write(record: &Record) -> Option<ResourceRecord<'_>> {
    let data = match &record.data {
        Data::Ptr(target) => RData::PTR(PTR(Name::new(target).ok()?)),
        Data::Srv { port, target } => {
            let target = Name::new(target).ok()?;
            RData::SRV(SRV { priority: 0, weight: 0, port: *port, target })
        }
        // One empty string (RFC 6763 section 6.1).
        Data::Txt => RData::TXT(TXT::new().with_char_string(CharacterString::new(b"").ok()?)),
        Data::Addr(IpAddr::V4(ip)) => RData::A(A::from(*ip)),
        Data::Addr(IpAddr::V6(ip)) => RData::AAAA(AAAA::from(*ip)),
    };
    let name = Name::new(&record.name).ok()?;
    Some(ResourceRecord::new(name, CLASS::IN, record.ttl, data).with_cache_flush(record.flush))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let record = |name: &str, data| Record { name: name.into(), ttl: 120, flush: true, data };
        Message {
            id: 7,
            is_response: true,
            is_truncated: false,
            questions: vec![Question {
                name: "_polykey._udp.local".into(),
                kind: Kind::Ptr,
                unicast: true,
            }],
            answers: vec![
                record("_polykey._udp.local", Data::Ptr("x._polykey._udp.local".into())),
                record("x._polykey._udp.local", Data::Srv { port: 1314, target: "x.local".into() }),
            ],
            proposed: vec![record("x._polykey._udp.local", Data::Txt)],
            additional: vec![
                record("x.local", Data::Addr("192.168.0.2".parse().unwrap())),
                record("x.local", Data::Addr("fe80::1".parse().unwrap())),
            ],
        }
    }

    #[test]
    fn encoded_message_is_decoded_to_the_same() {
        let bytes = message().encode().unwrap();
        assert_eq!(Message::decode(&bytes), Some(message()));
        assert!(bytes.len() < 250, "names are compressed: {}", bytes.len());
    }

    #[test]
    fn names_are_compared_in_lower_case() {
        let mut upper = message();
        upper.questions[0].name = "_POLYKEY._udp.Local".into();
        let decoded = Message::decode(&upper.encode().unwrap()).unwrap();
        assert_eq!(decoded.questions[0].name, "_polykey._udp.local");
    }

    #[test]
    fn no_prefix_is_a_message_and_counts_beyond_the_length_are_refused() {
        let bytes = message().encode().unwrap();
        for end in 0..bytes.len() {
            assert_eq!(Message::decode(&bytes[..end]), None, "{end}");
        }
        let mut header = [0; 12];
        header[6..8].copy_from_slice(&u16::MAX.to_be_bytes());
        assert!(!counts_are_possible(&header));
        assert!(Message::decode(&vec![0; MAX_RECEIVED + 1]).is_none());
    }
}
