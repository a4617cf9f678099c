//! `kind: Secret` and `kind: Config`: their bytes stand in the manifest as base64 (`data`) or as they are (`text`), or in a file beside it.

use std::collections::BTreeMap;

use rcluster_api::data::{DataKind, DataSpec, Payload};
use serde::Deserialize;

use super::error::Problem;
use super::tree::Node;
use super::{ReadFile, read_spec};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    stack: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    data: Option<Payload>,
    text: Option<String>,
    /// Relative to the manifest.
    file: Option<String>,
}

/// Reads a spec. With none of `data`, `text` and `file` the bytes that are there stay: that is how `get -o yaml` prints a secret.
pub(super) fn read(
    kind: DataKind,
    name: &str,
    node: &Node,
    owner: &str,
    manifest: &str,
    read_file: ReadFile<'_>,
) -> Result<DataSpec, Problem> {
    // What the reader says of a wrong value could hold the value.
    for key in ["data", "text", "file"] {
        if let Some(entry) = node.entry(key)
            && !matches!(entry.value.value, super::Value::Scalar { .. })
        {
            return Err(Problem::new(entry.value.position, format!("spec.{key} of {owner} takes text"), ""));
        }
    }
    let Written { stack, labels, data, text, file } = read_spec(node, owner)?;
    let given = [("data", data.is_some()), ("text", text.is_some()), ("file", file.is_some())];
    let given: Vec<&str> = given.into_iter().filter(|(_, given)| *given).map(|(key, _)| key).collect();
    if given.len() > 1 {
        return Err(Problem::new(node.locate(given[1]), format!("{} of {owner} are both given", given[..2].join(" and ")), "keep one"));
    }
    let data = match (data, text, file) {
        (None, None, Some(path)) => Some(Payload(read_file(manifest, &path).map_err(|why| {
            Problem::new(node.locate("file"), format!("spec.file of {owner}: {path}: {why}"), "the path is relative to the manifest")
        })?)),
        (data, text, _) => data.or_else(|| text.map(|text| Payload(text.into_bytes()))),
    };
    Ok(DataSpec { kind, name: name.to_owned(), stack, labels, data })
}
