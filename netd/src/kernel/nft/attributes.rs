//! Netlink attributes, written and read. nf_tables' integers are big-endian on the wire, the headers of attributes in the host's order.

use std::collections::BTreeMap;

const NESTED: u16 = 0x8000;

/// Attributes being written: each padded to 4 bytes.
pub struct Attributes(pub Vec<u8>);

impl Attributes {
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one of any shape.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(4 + value.len()).expect("an attribute is bounded by ELEMENTS_MAX");
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a text with its final zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds a number of 32 bits.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds a number of 64 bits.
    pub fn long_number(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds attributes as one.
    pub fn nested(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// Attributes one after the other; a list has several of the same kind.
pub fn split(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut attributes = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let Some(value) = bytes.get(4..len) else { break };
        attributes.push((u16::from_ne_bytes([header[2], header[3]]) & !NESTED, value));
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    attributes
}

/// Attributes by their kinds.
pub fn parse(bytes: &[u8]) -> BTreeMap<u16, &[u8]> {
    split(bytes).into_iter().collect()
}

/// An attribute as text; empty if it is not there.
pub fn text(attributes: &BTreeMap<u16, &[u8]>, kind: u16) -> String {
    let bytes = attributes.get(&kind).copied().unwrap_or_default();
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

/// An attribute as a number of 32 bits.
pub fn number(attributes: &BTreeMap<u16, &[u8]>, kind: u16) -> Option<u32> {
    attributes.get(&kind).and_then(|bytes| (*bytes).try_into().ok()).map(u32::from_be_bytes)
}
