//! Reads a typed value from a tree, so that each refusal knows its place, its path and what would have been accepted.
//!
//! Numbers and truth values are taken as text where text is wanted, exactly as they are written: `PORT: 8080` is the text 8080.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::error::{Position, Problem, suggest};
use super::tree::{Node, Value};

/// Reads `T` from `node`. `path` is where the node stands in its object (`spec`), `owner` the object (`service web`).
pub(super) fn read<'de, T: Deserialize<'de>>(node: &'de Node, path: &str, owner: &str) -> Result<T, Problem> {
    T::deserialize(NodeReader(node)).map_err(|mut error| {
        error.path.push(path.to_owned());
        error.explain(owner).unwrap_or_else(|message| Problem::new(node.position, message, ""))
    })
}

/// Keys of the design that no version understands so far: refused as what they are, not as misspelt.
const NOT_BUILT_YET: [&str; 19] = [
    "autoscale",
    "cap_add",
    "cap_drop",
    "devices",
    "health",
    "healthcheck",
    "hostname",
    "init",
    "lease",
    "mounts",
    "on_partition",
    "privileged",
    "rollback",
    "runtime",
    "schedule",
    "sysctls",
    "tmpfs",
    "ulimits",
    "volumes",
];

#[derive(Debug)]
enum Why {
    UnknownKey { key: String, known: &'static [&'static str] },
    UnknownWord { word: String, known: &'static [&'static str] },
    MissingKey(&'static str),
    Other(String),
}

#[derive(Debug)]
struct ReadError {
    why: Why,
    position: Option<Position>,
    /// From the innermost outwards; an index ends with `]`.
    path: Vec<String>,
}

impl ReadError {
    fn new(why: Why) -> Self {
        Self { why, position: None, path: Vec::new() }
    }

    fn at(mut self, position: Position) -> Self {
        self.position.get_or_insert(position);
        self
    }

    fn inside(mut self, step: impl Into<String>) -> Self {
        self.path.push(step.into());
        self
    }

    /// The error as a user reads it; the message alone when it has no place.
    fn explain(self, owner: &str) -> Result<Problem, String> {
        let path = self
            .path
            .iter()
            .rev()
            .fold(String::new(), |path, step| if path.is_empty() || step.starts_with('[') { path + step } else { path + "." + step });
        let (message, hint) = match self.why {
            Why::UnknownKey { key, .. } if NOT_BUILT_YET.contains(&key.as_str()) => {
                (format!("key {key:?} in {path} of {owner} is not built yet"), "remove it".to_owned())
            }
            Why::UnknownKey { key, known } => (format!("unknown key {key:?} in {path} of {owner}"), suggest(&key, known)),
            Why::UnknownWord { word, known } => (format!("{path} of {owner}: {word:?} is not known"), suggest(&word, known)),
            Why::MissingKey(key) => (format!("key {key:?} is missing in {path} of {owner}"), String::new()),
            Why::Other(message) => (format!("{path} of {owner}: {message}"), String::new()),
        };
        match self.position {
            Some(position) => Ok(Problem::new(position, message, hint)),
            None => Err(message),
        }
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.why)
    }
}

impl std::error::Error for ReadError {}

/// Serde's words for what is wanted, in ours.
fn wanted(expected: &dyn Expected) -> String {
    match expected.to_string().as_str() {
        "a boolean" => "true or false".to_owned(),
        "a string" => "text".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a mapping of keys to values".to_owned(),
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i32" | "i64" => "a whole number".to_owned(),
        text if text.starts_with("struct ") => "a mapping of keys to values".to_owned(),
        text => text.to_owned(),
    }
}

fn given(unexpected: &Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(value) => format!("the truth value {value}"),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Unit => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Why::Other(message.to_string()))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Why::Other(format!("{} is wanted, not {}", wanted(expected), given(&unexpected))))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::new(Why::UnknownKey { key: key.to_owned(), known })
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Self::new(Why::UnknownWord { word: word.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Why::MissingKey(key))
    }
}

struct NodeReader<'de>(&'de Node);

/// A plain scalar by the core schema of YAML 1.2 (§10.3.2).
enum Plain {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text,
}

fn plain(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "true" | "True" | "TRUE" => return Plain::Bool(true),
        "false" | "False" | "FALSE" => return Plain::Bool(false),
        _ => {}
    }
    let radix = |prefix, radix| text.strip_prefix(prefix).and_then(|digits| u64::from_str_radix(digits, radix).ok());
    if let Some(number) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Plain::Unsigned(number);
    }
    if let Ok(number) = text.parse::<u64>() {
        return Plain::Unsigned(number);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Plain::Signed(number);
    }
    // Rust reads words such as "inf" and "nan" as numbers; YAML does not.
    if text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
        && let Ok(number) = text.parse::<f64>()
    {
        return Plain::Float(number);
    }
    Plain::Text
}

impl<'de> NodeReader<'de> {
    fn visit<V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::Scalar { text, plain: false } => visitor.visit_borrowed_str(text),
            Value::Scalar { text, plain: true } => match plain(text) {
                Plain::Null => visitor.visit_unit(),
                Plain::Bool(value) => visitor.visit_bool(value),
                Plain::Unsigned(number) => visitor.visit_u64(number),
                Plain::Signed(number) => visitor.visit_i64(number),
                Plain::Float(number) => visitor.visit_f64(number),
                Plain::Text => visitor.visit_borrowed_str(text),
            },
            Value::List(_) => visitor.visit_seq(Items { node: self.0, next: 0 }),
            Value::Map(_) => visitor.visit_map(Entries { node: self.0, next: 0 }),
        }
    }
}

impl<'de> de::Deserializer<'de> for NodeReader<'de> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.visit(visitor).map_err(|error| error.at(self.0.position))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::Scalar { text, .. } if !self.0.is_null() => {
                visitor.visit_borrowed_str(text).map_err(|error: ReadError| error.at(self.0.position))
            }
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, ReadError> {
        match &self.0.value {
            Value::Scalar { text, .. } => {
                let word: de::value::StrDeserializer<'_, ReadError> = text.as_str().into_deserializer();
                visitor.visit_enum(word).map_err(|error| error.at(self.0.position))
            }
            Value::List(_) | Value::Map(_) => Err(ReadError::new(Why::Other("one word is wanted".to_owned())).at(self.0.position)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

struct Items<'de> {
    node: &'de Node,
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = ReadError;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        let Value::List(items) = &self.node.value else { return Ok(None) };
        let Some(item) = items.get(self.next) else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(NodeReader(item)).map(Some).map_err(|error| error.inside(format!("[{index}]")))
    }
}

struct Entries<'de> {
    node: &'de Node,
    /// Of the entry whose key comes next; its value's turn is after it has been counted.
    next: usize,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = ReadError;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, ReadError> {
        let Value::Map(entries) = &self.node.value else { return Ok(None) };
        let Some(entry) = entries.get(self.next) else { return Ok(None) };
        self.next += 1;
        let key: de::value::BorrowedStrDeserializer<'de, ReadError> = de::value::BorrowedStrDeserializer::new(&entry.key);
        seed.deserialize(key).map(Some).map_err(|error| error.at(entry.key_position))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, ReadError> {
        let Value::Map(entries) = &self.node.value else {
            return Err(ReadError::new(Why::Other("a value was read before its key".to_owned())));
        };
        match self.next.checked_sub(1).and_then(|index| entries.get(index)) {
            Some(entry) => seed.deserialize(NodeReader(&entry.value)).map_err(|error| error.inside(entry.key.clone())),
            None => Err(ReadError::new(Why::Other("a value was read before its key".to_owned()))),
        }
    }
}
