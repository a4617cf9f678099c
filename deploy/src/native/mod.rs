//! Native manifests: YAML documents `kind: Service|Network|Secret|Config`, `name:`, `spec:`, the objects of the API.
//!
//! In: files as (name, text), and a reader for the files that secrets and configs name. Out: what is wanted, in the order of the files, each checked on its own, or every refusal with its place.
//! Anything in a file is honoured or refused by name. What `rclusterctl get -o yaml` prints is accepted: in a document with an `id` the keys
//! of the managers (`created`, `updated`, `replicas`, `update`, `mode`, `vips`, `vni`, `subnet`, `subnet6`, `endpoints`) are read over, and
//! `version` makes the deploy conditional on the object being unchanged since. A literal `${…}` stays as it is.

mod data;
mod de;
mod error;
mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use rcluster_api::data::DataKind;
use rcluster_api::error::ApiError;
use rcluster_api::object::Kind;
use rcluster_api::spec::{NetworkSpec, ServiceSpec, Spec};
use rcluster_api::validate::{self, nearest};

pub use self::error::{ManifestError, Position};
use self::error::{Problem, suggest};
use self::tree::{Entry, Node, Value};

/// One object that a manifest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub spec: Spec,
    /// Nothing is applied unless the object still has this version; 0: whatever is there.
    pub expected_version: u64,
    pub origin: Origin,
}

/// Where an object's document begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub file: String,
    pub position: Position,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file, self.position)
    }
}

impl Desired {
    /// The kind of the object.
    pub fn kind(&self) -> Kind {
        kind_of(&self.spec)
    }
}

/// The kind of object that a spec describes.
pub fn kind_of(spec: &Spec) -> Kind {
    match spec {
        Spec::Service(_) => Kind::Service,
        Spec::Network(_) => Kind::Network,
        Spec::Data(data) => data.kind.object_kind(),
    }
}

/// A manifest's text and the name to call it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

/// Reads a file that a manifest names: called with the manifest's name and the path as it is written; answers why it cannot.
pub type ReadFile<'a> = &'a dyn Fn(&str, &str) -> Result<Vec<u8>, String>;

/// Reads all documents of all files. `stack`: the name that every object is to carry.
///
/// # Errors
/// Every refusal, at most one for each document, in the order of the files.
pub fn parse(sources: &[Source<'_>], stack: Option<&str>, read_file: ReadFile<'_>) -> Result<Vec<Desired>, Vec<ManifestError>> {
    let mut desired: Vec<Desired> = Vec::new();
    let mut errors = Vec::new();
    for source in sources {
        let documents = match tree::documents(source.text) {
            Ok(documents) => documents,
            Err(problem) => {
                errors.push(problem.in_file(source.name));
                continue;
            }
        };
        for document in documents.iter().filter(|document| !document.is_null()) {
            match object(document, source.name, stack, read_file) {
                Ok(object) => desired.push(object),
                Err(problem) => errors.push(problem.in_file(source.name)),
            }
        }
    }
    errors.extend(named_twice(&desired));
    if errors.is_empty() { Ok(desired) } else { Err(errors) }
}

fn named_twice(desired: &[Desired]) -> Vec<ManifestError> {
    let mut first: BTreeMap<(Kind, &str), &Origin> = BTreeMap::new();
    let mut errors = Vec::new();
    for object in desired {
        let key = (object.kind(), object.spec.name());
        match first.get(&key) {
            Some(earlier) => errors.push(ManifestError {
                file: object.origin.file.clone(),
                position: object.origin.position,
                message: format!("{} {} is already described in {earlier}", key.0.as_str(), key.1),
                hint: "keep one of them".to_owned(),
            }),
            None => drop(first.insert(key, &object.origin)),
        }
    }
    errors
}

const KINDS: [&str; 4] = ["Service", "Network", "Secret", "Config"];
const KINDS_NOT_BUILT_YET: [&str; 3] = ["Volume", "Job", "Stack"];
/// Written by the managers; in a document with an `id` they are read over.
const SERVICE_STATUS: [&str; 7] = ["id", "mode", "replicas", "update", "vips", "created", "updated"];
const NETWORK_STATUS: [&str; 6] = ["id", "vni", "subnet", "subnet6", "endpoints", "created"];
const DATA_STATUS: [&str; 5] = ["id", "digest", "size", "created", "updated"];
const TOP_LEVEL: [&str; 4] = ["kind", "name", "spec", "version"];
/// To tell a key that stands one level too high from one that is misspelt.
const SPEC_KEYS: [&str; 25] = [
    "affinity",
    "containers",
    "data",
    "encrypted",
    "endpoint_mode",
    "file",
    "text",
    "internal",
    "ipv6",
    "labels",
    "leave",
    "mode",
    "networks",
    "placement",
    "policy",
    "ports",
    "replicas",
    "reschedule",
    "restart",
    "stack",
    "stop_grace",
    "subnet",
    "subnet6",
    "update",
    "image",
];

fn object(document: &Rc<Node>, file: &str, stack: Option<&str>, read_file: ReadFile<'_>) -> Result<Desired, Problem> {
    let Value::Map(entries) = &document.value else {
        return Err(Problem::new(document.position, "a manifest is a mapping with the keys kind, name and spec", "see examples/web.yaml"));
    };
    let kind = kind(document, entries)?;
    let name = required_text(document, "name")?;
    let owner = format!("{} {name}", kind.as_str());
    check_top_level(document, entries, kind, &owner)?;
    // Everything of a network has a default.
    let nothing = Node { position: document.position, value: Value::Map(Vec::new()) };
    let spec_node = match document.entry("spec") {
        Some(entry) if kind == Kind::Network && entry.value.is_null() => &nothing,
        Some(entry) => &*entry.value,
        None if kind == Kind::Network => &nothing,
        None => return Err(Problem::new(document.position, format!("key \"spec\" is missing in {owner}"), "")),
    };
    let mut spec = match kind {
        Kind::Service => Spec::Service(service(spec_node, name, &owner)?),
        Kind::Secret => Spec::Data(data::read(DataKind::Secret, name, spec_node, &owner, file, read_file)?),
        Kind::Config => Spec::Data(data::read(DataKind::Config, name, spec_node, &owner, file, read_file)?),
        _ => Spec::Network(network(spec_node, name, &owner)?),
    };
    if let Some(stack) = stack {
        put_in_stack(&mut spec, stack, spec_node, &owner)?;
    }
    validate::check(&spec).map_err(|error| refused(error, document, spec_node, &owner))?;
    let expected_version = match document.entry("version") {
        Some(entry) => de::read(&entry.value, "version", &owner)?,
        None => 0,
    };
    Ok(Desired { spec, expected_version, origin: Origin { file: file.to_owned(), position: document.position } })
}

fn kind(document: &Node, entries: &[Entry]) -> Result<Kind, Problem> {
    let Some(entry) = document.entry("kind") else {
        if let Some(services) = document.entry("services") {
            return Err(Problem::new(
                services.key_position,
                "this is a Compose file, and those are not built yet",
                "write native documents with kind: Service, as in examples/web.yaml",
            ));
        }
        let misspelt = entries.iter().find(|entry| nearest(&entry.key, ["kind"]).is_some());
        return Err(match misspelt {
            Some(entry) => Problem::new(entry.key_position, format!("unknown key {:?}", entry.key), "did you mean \"kind\"?"),
            None => Problem::new(document.position, "key \"kind\" is missing", "write kind: Service, Network, Secret or Config"),
        });
    };
    match required_text(document, "kind")? {
        "Service" => Ok(Kind::Service),
        "Network" => Ok(Kind::Network),
        "Secret" => Ok(Kind::Secret),
        "Config" => Ok(Kind::Config),
        other if KINDS_NOT_BUILT_YET.contains(&other) => Err(Problem::new(
            entry.value.position,
            format!("kind {other} is not built yet"),
            "there are Service, Network, Secret and Config",
        )),
        other => Err(Problem::new(entry.value.position, format!("unknown kind {other:?}"), suggest(other, &KINDS))),
    }
}

fn required_text<'a>(document: &'a Node, key: &str) -> Result<&'a str, Problem> {
    let Some(entry) = document.entry(key) else {
        return Err(Problem::new(document.position, format!("key {key:?} is missing"), ""));
    };
    match &entry.value.value {
        Value::Scalar { text, .. } if !entry.value.is_null() => Ok(text),
        Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
            Err(Problem::new(entry.value.position, format!("{key} takes one word"), ""))
        }
    }
}

/// Refuses keys beside kind, name, spec and version, unless the document is one that `get -o yaml` printed.
fn check_top_level(document: &Node, entries: &[Entry], kind: Kind, owner: &str) -> Result<(), Problem> {
    let status: &[&str] = match kind {
        Kind::Service => &SERVICE_STATUS,
        Kind::Secret | Kind::Config => &DATA_STATUS,
        _ => &NETWORK_STATUS,
    };
    let printed = document.entry("id").is_some();
    for entry in entries.iter().filter(|entry| !TOP_LEVEL.contains(&entry.key.as_str())) {
        let key = entry.key.as_str();
        if printed && status.contains(&key) {
            check_mode_agrees(document, entry, owner)?;
            continue;
        }
        let (message, hint) = if SPEC_KEYS.contains(&key) {
            (
                format!("key {key:?} does not belong at the top of {owner}"),
                format!("move it under spec:{}", if key == "image" { " containers:" } else { "" }),
            )
        } else {
            (format!("unknown key {key:?} at the top of {owner}"), suggest(key, &TOP_LEVEL))
        };
        return Err(Problem::new(entry.key_position, message, hint));
    }
    Ok(())
}

/// The printed mode is read over; one that was edited there would be ignored silently, so it is refused.
fn check_mode_agrees(document: &Node, entry: &Entry, owner: &str) -> Result<(), Problem> {
    let word = |node: &Node| match &node.value {
        Value::Scalar { text, .. } => Some(text.clone()),
        Value::List(_) | Value::Map(_) => None,
    };
    let wanted = document.entry("spec").and_then(|spec| spec.value.entry("mode").and_then(|mode| word(&mode.value)));
    if entry.key == "mode" && wanted.is_some() && word(&entry.value) != wanted {
        return Err(Problem::new(
            entry.value.position,
            format!("mode at the top of {owner} is what the managers say, and differs from spec.mode"),
            "change spec.mode alone",
        ));
    }
    Ok(())
}

fn service(node: &Node, name: &str, owner: &str) -> Result<ServiceSpec, Problem> {
    if let Some(mode) = node.entry("mode")
        && let Value::Scalar { text, .. } = &mode.value.value
        && matches!(text.as_str(), "job" | "cron")
    {
        return Err(Problem::new(
            mode.value.position,
            format!("mode {text} of {owner} is not built yet"),
            "there are replicated and global",
        ));
    }
    let mut spec = ServiceSpec { name: name.to_owned(), ..read_spec(node, owner)? };
    for index in 0..spec.containers.len() {
        spec.containers[index].name = validate::container_name(&spec, index);
    }
    Ok(spec)
}

/// Keys that networks have elsewhere: what is instead of each here, and what to do.
const NETWORK_KEYS_OF_OTHERS: [(&str, &str, &str); 3] = [
    ("attachable", "only services' tasks are on networks", "leave the key out"),
    ("driver_opts", "an overlay has no options", "leave the key out"),
    ("ipam", "the managers give out the addresses of a subnet", "write subnet: CIDR, or leave the key out and one is chosen"),
];

fn network(node: &Node, name: &str, owner: &str) -> Result<NetworkSpec, Problem> {
    if let Some(driver) = node.entry("driver") {
        let (message, hint) = match &driver.value.value {
            Value::Scalar { text, .. } if text == "overlay" => {
                (format!("driver of {owner}: every network is an overlay"), "leave the key out")
            }
            Value::Scalar { text, .. } => (format!("driver {text:?} of {owner} is not known"), "there is overlay (leave the key out)"),
            Value::List(_) | Value::Map(_) => (format!("driver of {owner} takes one word"), "leave the key out"),
        };
        return Err(Problem::new(driver.value.position, message, hint));
    }
    for (key, instead, hint) in NETWORK_KEYS_OF_OTHERS {
        if let Some(entry) = node.entry(key) {
            return Err(Problem::new(entry.key_position, format!("key {key:?} in spec of {owner}: {instead}"), hint));
        }
    }
    Ok(NetworkSpec { name: name.to_owned(), ..read_spec(node, owner)? })
}

fn read_spec<'de, T: serde::Deserialize<'de>>(node: &'de Node, owner: &str) -> Result<T, Problem> {
    de::read(node, "spec", owner)
}

fn put_in_stack(spec: &mut Spec, stack: &str, node: &Node, owner: &str) -> Result<(), Problem> {
    let own = match spec {
        Spec::Service(spec) => &mut spec.stack,
        Spec::Network(spec) => &mut spec.stack,
        Spec::Data(spec) => &mut spec.stack,
    };
    if !own.is_empty() && own != stack {
        return Err(Problem::new(
            node.locate("stack"),
            format!("spec.stack of {owner} is {own:?}, and --stack says {stack:?}"),
            "remove one of them",
        ));
    }
    *own = stack.to_owned();
    Ok(())
}

/// What `validate` refuses, with the place of the field that it blames.
fn refused(error: ApiError, document: &Node, spec: &Node, owner: &str) -> Problem {
    let (position, path) = match error.field.as_str() {
        "name" => (document.locate("name"), "name".to_owned()),
        "" => (spec.position, "spec".to_owned()),
        field => (spec.locate(field), format!("spec.{field}")),
    };
    Problem::new(position, format!("{path} of {owner}: {}", error.message), error.hint)
}

#[cfg(test)]
mod tests;
