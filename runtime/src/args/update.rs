//! The options of `update`.

use serde_json::Value;

use super::{Args, Collected, Known, Verb};
use crate::core::update;
use crate::parent::{Schemas, UpdateSource};

/// How the value of an option of `update` is written.
#[derive(Clone, Copy)]
enum Limit {
    Bytes,
    Number,
    Positive,
    Text,
}

/// Options of `update` and the fields below `linux.resources` they set.
const LIMITS: [(&str, &str, &str, Limit); 14] = [
    ("--memory", "memory", "limit", Limit::Bytes),
    ("--memory-reservation", "memory", "reservation", Limit::Bytes),
    ("--memory-swap", "memory", "swap", Limit::Bytes),
    ("--cpu-share", "cpu", "shares", Limit::Positive),
    ("--cpu-quota", "cpu", "quota", Limit::Number),
    ("--cpu-period", "cpu", "period", Limit::Positive),
    ("--cpu-burst", "cpu", "burst", Limit::Positive),
    ("--cpu-idle", "cpu", "idle", Limit::Number),
    ("--cpu-rt-period", "cpu", "realtimePeriod", Limit::Positive),
    ("--cpu-rt-runtime", "cpu", "realtimeRuntime", Limit::Number),
    ("--cpuset-cpus", "cpu", "cpus", Limit::Text),
    ("--cpuset-mems", "cpu", "mems", Limit::Text),
    ("--pids-limit", "pids", "limit", Limit::Number),
    ("--blkio-weight", "blockIO", "weight", Limit::Positive),
];

/// Reads them.
pub(super) fn update(args: &mut Args) -> Result<Verb, String> {
    let mut known: Vec<Known> = LIMITS.iter().map(|(name, ..)| (*name, "", true)).collect();
    known.push(("--resources", "-r", true));
    known.extend(["--l3-cache-schema", "--mem-bw-schema"].map(|name| (name, "", true)));
    // The kernel has no such limit any more, and runc takes no notice of them either.
    known.extend(["--kernel-memory", "--kernel-memory-tcp"].map(|name| (name, "", true)));
    let (id, options) = args.only_id("update", &known)?;
    let schemas = Schemas { l3_cache: schema(&options, "--l3-cache-schema")?, mem_bw: schema(&options, "--mem-bw-schema")? };
    if let Some(line) = schemas.mem_bw.as_ref().filter(|line| !line.starts_with("MB:") || line.contains('\n')) {
        return Err(format!("update --mem-bw-schema {line:?}: give a single line that begins with \"MB:\""));
    }
    if let Some(path) = options.path("--resources") {
        if let Some((name, ..)) = LIMITS.iter().find(|(name, ..)| options.given(name)) {
            return Err(format!("update {name}: belongs into the file of --resources, which tells all that changes"));
        }
        return Ok(Verb::Update { id, source: UpdateSource::File(path), schemas });
    }
    let mut asked = serde_json::Map::new();
    for (name, group, field, limit) in LIMITS {
        let Some(text) = options.filled(name)? else { continue };
        let value = match limit {
            Limit::Bytes => update::parse_bytes(&text).map(Value::from).ok_or("a size such as 512m"),
            Limit::Number => text.parse::<i64>().map(Value::from).map_err(|_| "a number"),
            Limit::Positive => text.parse::<u64>().map(Value::from).map_err(|_| "a number"),
            Limit::Text => Ok(Value::from(text.clone())),
        };
        let value = value.map_err(|what| format!("update {name} {text:?}: give {what}"))?;
        asked.entry(group).or_insert_with(|| serde_json::json!({}))[field] = value;
    }
    Ok(Verb::Update { id, source: UpdateSource::Options(Value::Object(asked)), schemas })
}

/// An empty one changes nothing, as under runc.
fn schema(options: &Collected, name: &str) -> Result<Option<String>, String> {
    Ok(options.text(name)?.filter(|text| !text.trim().is_empty()))
}
