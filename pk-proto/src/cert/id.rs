//! The serial number of a certificate.

use core::fmt;

use crate::types::id::sortable;

/// Serial number of a certificate: 128 bits that sort by time (docs/WIRE.md section 1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertId([u8; 16]);

impl CertId {
    /// Returns the id of a certificate created at `unix_millis` milliseconds since 1970.
    ///
    /// `seq` orders ids of the same 1/4096 second and is 0 otherwise; its low 12 bits are used.
    /// `tail` is random, so that ids of different issuers differ; its low 62 bits are used.
    pub const fn new(unix_millis: u64, seq: u16, tail: u64) -> Self {
        Self(sortable(unix_millis, seq, tail).to_be_bytes())
    }

    /// Returns the id with these big-endian bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the big-endian bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for CertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::*;

    /// Real ids of the reference: vectors/claim_ids.json, which has the same layout with a tail
    /// from the node id.
    #[test]
    fn layout_is_that_of_the_reference() {
        let tail = u64::from_be_bytes([0x8a, 0x88, 0xe3, 0xdd, 0x74, 0x09, 0xf1, 0x95]) >> 2;
        for (unix_millis, seq, hex) in [
            (0, 0, "0000000000007000a2a238f75d027c65"),
            (0, 1, "0000000000007001a2a238f75d027c65"),
            (1, 0, "0000000000047000a2a238f75d027c65"),
            (999, 0, "000000000ffb7000a2a238f75d027c65"),
            (1000, 0, "0000000010007000a2a238f75d027c65"),
            (1_700_000_000_123, 0, "06553f1001f77000a2a238f75d027c65"),
            (1_700_000_000_123, 1, "06553f1001f77001a2a238f75d027c65"),
            (1_795_333_496_107, 0, "06b029d781b67000a2a238f75d027c65"),
        ] {
            assert_eq!(format!("{:?}", CertId::new(unix_millis, seq, tail)), hex);
        }
    }

    #[test]
    fn oversized_field_changes_no_other_field() {
        let id = CertId::new(0, 0xffff, u64::MAX);
        assert_eq!(format!("{id:?}"), "0000000000007fffbfffffffffffffff");
        assert_eq!(
            format!("{:?}", CertId::new(u64::MAX, 0, 0)).get(12..),
            Some("70008000000000000000")
        );
    }
}
