//! Secrets and configs: bytes that the managers keep and containers find as files.
//!
//! Both are one type here, told apart by [`DataKind`]: they differ in that a secret's bytes are given to nobody but the agents whose tasks
//! use it. What holds bytes prints their number only.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::container::FileMode;
use crate::id::DataId;
use crate::object::{Kind, Stamp};
use crate::wire::v1;

/// Most bytes of one secret or config: Docker's limit for secrets.
pub const DATA_BYTES_MAX: usize = 500 << 10;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataKind {
    Secret,
    Config,
}

impl DataKind {
    /// The kind among all kinds of objects.
    pub fn object_kind(self) -> Kind {
        match self {
            Self::Secret => Kind::Secret,
            Self::Config => Kind::Config,
        }
    }

    /// The kind's name as users see it.
    pub fn as_str(self) -> &'static str {
        self.object_kind().as_str()
    }
}

/// Bytes; written as base64, printed as their number.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(pub Vec<u8>);

impl Payload {
    /// `sha256:` and 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        let hex: String = Sha256::digest(&self.0).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Payload({} bytes)", self.0.len())
    }
}

impl fmt::Debug for v1::Payload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Payload({} bytes)", self.bytes.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: String = String::deserialize(deserializer)?;
        // Written over several lines it is still base64 (RFC 2045 §6.8). The error says where, and nothing of what stands there.
        let text: String = text.split_ascii_whitespace().collect();
        STANDARD.decode(text).map(Self).map_err(|_| {
            serde::de::Error::custom("not base64 (RFC 4648 §4): in a manifest, plain text goes under text and a file's path under file")
        })
    }
}

/// A secret or config as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Set from the manifest's `kind`.
    #[serde(skip, default = "secret")]
    pub kind: DataKind,
    /// Set from the manifest's `name`.
    #[serde(skip)]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stack: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Not given: the bytes stay as they are. Never given back for a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Payload>,
}

/// Until the kind is set, the one whose bytes are kept back.
fn secret() -> DataKind {
    DataKind::Secret
}

/// A secret or config as the managers keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    pub id: DataId,
    pub stamp: Stamp,
    pub spec: DataSpec,
    /// Of the bytes, see [`Payload::digest`].
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

impl Data {
    /// What stands in a list of many: no bytes, which together would be more than a message holds.
    pub fn listed(&self) -> Self {
        Self { spec: DataSpec { data: None, ..self.spec.clone() }, ..self.clone() }
    }

    /// What users may see of it: of a secret not its bytes.
    pub fn shown(&self) -> Self {
        let mut shown = self.clone();
        if shown.spec.kind == DataKind::Secret {
            shown.spec.data = None;
        }
        shown
    }
}

/// A secret or config as a file of a container. In YAML also just its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataRef {
    pub source: String,
    /// As written; see [`DataRef::path`].
    pub target: String,
    pub uid: u32,
    pub gid: u32,
    pub mode: FileMode,
}

impl DataRef {
    /// Readable for all, as in Docker.
    pub const MODE: FileMode = FileMode(0o444);

    /// Where it appears: a relative target, or the name, stands under `/run/secrets` for a secret and under `/` for a config.
    pub fn path(&self, kind: DataKind) -> String {
        let target = if self.target.is_empty() { &self.source } else { &self.target };
        match kind {
            _ if target.starts_with('/') => target.clone(),
            DataKind::Secret => format!("/run/secrets/{target}"),
            DataKind::Config => format!("/{target}"),
        }
    }

    fn is_short(&self) -> bool {
        self.target.is_empty() && (self.uid, self.gid, self.mode) == (0, 0, Self::MODE)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongRef {
    source: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    target: String,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default = "default_mode")]
    mode: FileMode,
}

fn default_mode() -> FileMode {
    DataRef::MODE
}

impl Serialize for DataRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_short() {
            return serializer.serialize_str(&self.source);
        }
        let Self { source, target, uid, gid, mode } = self.clone();
        LongRef { source, target, uid, gid, mode }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DataRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = DataRef;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name, or {source: NAME, target: PATH, uid: NUMBER, gid: NUMBER, mode: \"0444\"}")
            }

            fn visit_str<E: serde::de::Error>(self, source: &str) -> Result<Self::Value, E> {
                Ok(DataRef { source: source.to_owned(), target: String::new(), uid: 0, gid: 0, mode: DataRef::MODE })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let LongRef { source, target, uid, gid, mode } = LongRef::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(DataRef { source, target, uid, gid, mode })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Object;

    fn data(kind: DataKind) -> Data {
        let payload = Payload(b"hunter2".to_vec());
        let spec = DataSpec { kind, name: "db".into(), stack: String::new(), labels: BTreeMap::new(), data: Some(payload.clone()) };
        Data { id: "d".into(), stamp: Stamp::default(), spec, digest: payload.digest(), size: 7 }
    }

    #[test]
    fn what_holds_bytes_does_not_print_them() {
        let numbers = format!("{:?}", b"hunter2").replace(['[', ']'], "");
        let object = Object::Data(data(DataKind::Secret));
        let wire = v1::Object::from(object.clone());
        for text in [format!("{object:?}"), format!("{object:#?}"), format!("{wire:?}"), format!("{:?}", wire.clone())] {
            assert!(text.contains("Payload(7 bytes)"), "{text}");
            assert!(!text.contains("hunter2") && !text.contains(&numbers) && !text.contains("104,"), "{text}");
        }
    }

    #[test]
    fn users_see_a_configs_bytes_and_not_a_secrets() {
        assert_eq!(data(DataKind::Secret).shown().spec.data, None);
        assert_eq!(data(DataKind::Config).shown(), data(DataKind::Config));
    }

    #[test]
    fn it_comes_back_from_the_wire_as_it_went() {
        let object = Object::Data(data(DataKind::Config));
        assert_eq!(Object::try_from(v1::Object::from(object.clone())).unwrap(), object);
    }

    #[test]
    fn bytes_are_base64() {
        assert_eq!(serde_json::from_str::<Payload>(r#""aHVu\n dGVyMg==""#).unwrap(), Payload(b"hunter2".to_vec()));
        let error = serde_json::from_str::<Payload>(r#""hunter2!""#).unwrap_err().to_string();
        assert!(error.starts_with("not base64") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_reference_is_a_name_or_says_more() {
        let read = |text: &str| serde_json::from_str::<DataRef>(text).unwrap();
        let short = read(r#""db""#);
        assert_eq!((short.path(DataKind::Secret), short.path(DataKind::Config)), ("/run/secrets/db".into(), "/db".into()));
        assert_eq!(serde_json::to_string(&short).unwrap(), r#""db""#);
        let long = r#"{"source":"db","target":"/etc/db","uid":7,"gid":8,"mode":"0400"}"#;
        assert_eq!(serde_json::to_string(&read(long)).unwrap(), long);
        assert_eq!(read(r#"{"source":"db","target":"a/b"}"#).path(DataKind::Secret), "/run/secrets/a/b");
    }
}
