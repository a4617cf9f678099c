//! A backup of the managers' state as one file.
//!
//! In: a header and the state as the managers encode it. Out: bytes that tell by themselves whether they are whole, and back. Never: IO.
//!
//! ```text
//!  magic "rclu-bak" 8 │ format 4 │ length 4 │ header, JSON │ data │ SHA-256 of all before it, 32
//! ```
//!
//! Numbers are little-endian; *length* is the header's. The digest is over everything, so that a file is checked without being understood.

use std::collections::BTreeMap;

use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::object::{Kind, Object};
use crate::wire::convert::WireError;
use crate::wire::v1;

const MAGIC: &[u8; 8] = b"rclu-bak";
/// The format that this version writes; it reads this one only.
pub const FORMAT: u32 = 1;
const DIGEST_BYTES: usize = 32;
/// Magic, format and length.
const HEAD_BYTES: usize = 16;
/// Largest backup that is read: a manager takes no larger state either.
pub const BACKUP_BYTES_MAX: u64 = 1 << 30;

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub cluster_id: String,
    /// Of the state.
    pub revision: u64,
    /// Raft's, as the manager knew it that made the backup.
    pub term: u64,
    /// Unix time.
    pub made_at_ms: u64,
    /// The name of the manager that made it.
    pub manager: String,
    /// The program's version.
    pub version: String,
    pub data_bytes: u64,
    /// How the data is encrypted; empty: it is not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub seal: String,
}

/// A whole backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup<'a> {
    pub header: Header,
    pub data: &'a [u8],
}

/// Bytes that are no backup that can be used.
#[derive(Debug, Error)]
pub enum BackupError {
    #[error("it is not a backup of rcluster, or is damaged at its beginning")]
    Magic,
    #[error("it is cut off: it has {found} of {whole} bytes; use another copy or another backup")]
    Cut { found: u64, whole: u64 },
    #[error("it is damaged: its SHA-256 digest is not that of what was written; use another copy or another backup")]
    Digest,
    #[error("it has format {0}, and this version reads format {FORMAT}: use the version of rcluster that made it, or a newer one")]
    Format(u32),
    #[error("its header cannot be read: {0}")]
    Header(serde_json::Error),
    #[error("it is encrypted ({0}), which this version cannot read: use the version of rcluster that made it, or a newer one")]
    Sealed(String),
    #[error("it has more than {BACKUP_BYTES_MAX} bytes")]
    TooLarge,
    #[error("decode the state in it")]
    Protobuf(#[from] prost::DecodeError),
    #[error("decode an object in it")]
    Object(#[from] WireError),
}

/// The bytes of a backup.
pub fn encode(header: &Header, data: &[u8]) -> Vec<u8> {
    let json = serde_json::to_vec(header).expect("a header has nothing that JSON lacks");
    let length = u32::try_from(json.len()).expect("a header holds names and numbers");
    let mut bytes = Vec::with_capacity(HEAD_BYTES + json.len() + data.len() + DIGEST_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(data);
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

/// The backup in `bytes`, checked to the last of them.
pub fn decode(bytes: &[u8]) -> Result<Backup<'_>, BackupError> {
    if bytes.len() as u64 > BACKUP_BYTES_MAX {
        return Err(BackupError::TooLarge);
    }
    if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
        return Err(BackupError::Magic);
    }
    let whole_without_data = HEAD_BYTES + DIGEST_BYTES;
    if bytes.len() < whole_without_data {
        return Err(BackupError::Cut { found: bytes.len() as u64, whole: whole_without_data as u64 });
    }
    let (body, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (format, length) = (number(8), number(12) as usize);
    let whole = Sha256::digest(body).as_slice() == digest;
    if format != FORMAT {
        // Perhaps another format has its digest elsewhere: it may be whole.
        return Err(BackupError::Format(format));
    }
    let header = body.get(HEAD_BYTES..).and_then(|rest| rest.get(..length)).map(serde_json::from_slice::<Header>);
    if !whole {
        let expected = match &header {
            Some(Ok(header)) => header.data_bytes.saturating_add((whole_without_data + length) as u64),
            _ => (whole_without_data + length) as u64,
        };
        let found = bytes.len() as u64;
        return Err(if found < expected { BackupError::Cut { found, whole: expected } } else { BackupError::Digest });
    }
    let header = header.ok_or(BackupError::Digest)?.map_err(BackupError::Header)?;
    if !header.seal.is_empty() {
        return Err(BackupError::Sealed(header.seal));
    }
    let data = &body[HEAD_BYTES + length..];
    if data.len() as u64 == header.data_bytes { Ok(Backup { header, data }) } else { Err(BackupError::Digest) }
}

impl Backup<'_> {
    /// How many objects of each kind there are; every one of them is read for it.
    pub fn count(&self) -> Result<BTreeMap<Kind, usize>, BackupError> {
        let mut counts = BTreeMap::new();
        for object in v1::StateSnapshot::decode(self.data)?.objects {
            *counts.entry(Object::try_from(object)?.kind()).or_default() += 1;
        }
        Ok(counts)
    }
}

/// Numbers of objects as people read them; events and the cluster's own object need no word.
pub fn inventory(counts: &BTreeMap<Kind, usize>) -> String {
    let told = counts.iter().filter(|(kind, _)| !matches!(kind, Kind::Event | Kind::Cluster));
    let one = |(kind, count): (&Kind, &usize)| format!("{count} {}{}", kind.as_str(), if *count == 1 { "" } else { "s" });
    let told: Vec<String> = told.map(one).collect();
    if told.is_empty() { "nothing".to_owned() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            cluster_id: "c".to_owned(),
            revision: 7,
            term: 2,
            made_at_ms: 5,
            manager: "m1".to_owned(),
            version: "0".to_owned(),
            data_bytes: 0,
            seal: String::new(),
        }
    }

    fn whole() -> Vec<u8> {
        let data =
            v1::StateSnapshot { format: 1, revision: 7, objects: Vec::new(), cluster_id: "c".to_owned(), ..v1::StateSnapshot::default() }
                .encode_to_vec();
        encode(&Header { data_bytes: data.len() as u64, ..header() }, &data)
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = whole();
        let backup = decode(&bytes).unwrap();
        assert_eq!((backup.header.revision, backup.count().unwrap().len()), (7, 0));
    }

    #[test]
    fn a_bit_that_is_flipped_anywhere_is_told() {
        let good = whole();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                decode(&bytes).unwrap_err();
            }
        }
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_told() {
        let good = whole();
        for end in 0..good.len() {
            let error = decode(&good[..end]).unwrap_err().to_string();
            assert!(error.starts_with("it is cut off"), "{end}: {error}");
        }
        let mut longer = good;
        longer.push(0);
        assert!(matches!(decode(&longer).unwrap_err(), BackupError::Digest));
    }

    #[test]
    fn what_this_version_cannot_read_is_refused_by_name() {
        let mut newer = whole();
        newer[8] = 2;
        assert!(decode(&newer).unwrap_err().to_string().contains("format 2"));
        let sealed = encode(&Header { seal: "age".to_owned(), ..header() }, b"");
        assert!(decode(&sealed).unwrap_err().to_string().contains("encrypted (age)"));
        assert!(matches!(decode(b"something else, longer than a head is").unwrap_err(), BackupError::Magic));
    }
}
