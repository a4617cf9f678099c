//! Decides what `update` changes of a container's limits.
//!
//! In: the container's configuration, what is asked for in the form of `linux.resources`, and the cgroup plans of before and after. Out:
//! the configuration as it is from now on, and the values to write, in an order the kernel takes at every moment. What is not named, or
//! is zero or empty, stays, as under runc. Never writes.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::cgroup::{CgroupPlan, Hierarchy, Write};

/// Reads a size as runc does (docker/go-units, RAMInBytes): a number with a fraction, then `b`, `k`, `m`, `g`, `t` or `p`, in either case,
/// also as `kb` or `kib`; steps of 1024; -1 is no limit.
pub fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match lower[digits.len()..].trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let digits = digits.trim_end();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let unit = 1i64 << (10 * power);
    match digits.parse::<i64>() {
        Ok(whole) => whole.checked_mul(unit).filter(|_| plain),
        Err(_) => {
            let bytes = digits.parse::<f64>().ok().filter(|_| plain)? * unit as f64;
            // Beyond 2^53 a fraction of a unit means nothing any more.
            (bytes < 9.0e15).then_some(bytes as i64)
        }
    }
}

/// The configuration with what is asked for in `linux.resources`.
pub fn merged(mut config: Value, asked: &Value) -> Value {
    let mut asked = asked.clone();
    // No limit on memory is none on memory and swap together, unless that is asked for: the kernel keeps the second above the first.
    let asks = |pointer: &str| asked.pointer(pointer).and_then(Value::as_i64);
    if asks("/memory/limit") == Some(-1) && matches!(asks("/memory/swap"), None | Some(0)) {
        asked["memory"]["swap"] = (-1).into();
    }
    let linux = config.as_object_mut().map(|config| config.entry("linux").or_insert_with(|| Value::Object(Map::new())));
    if let Some(linux) = linux.and_then(Value::as_object_mut) {
        merge(linux.entry("resources").or_insert_with(|| Value::Object(Map::new())), asked);
    }
    config
}

fn merge(at: &mut Value, asked: Value) {
    match asked {
        Value::Object(fields) => {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            for (name, value) in fields {
                // Whether a cgroup is idle is the one number of which zero means something.
                if name == "idle" || !is_unset(&value) {
                    merge(&mut at[name], value);
                }
            }
        }
        value => *at = value,
    }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Values to write into one cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub hierarchy: Hierarchy,
    pub directory: PathBuf,
    /// Version 2: controllers to enable above.
    pub enable: Vec<String>,
    pub writes: Vec<Write>,
}

/// What to write: values that differ from before, and those asked for, as somebody may have changed them meanwhile. `groups` are where
/// the container's cgroups are, whatever the plans say: the caller's own cgroup may be another one than at `create`.
pub fn changes(before: &CgroupPlan, after: &CgroupPlan, asked: &Value, groups: &[PathBuf]) -> Vec<Change> {
    let is_asked = |write: &Write| {
        let path = write.field.strip_prefix("linux.resources").unwrap_or(&write.field).replace('.', "/");
        asked.pointer(&path).is_some_and(|value| !is_unset(value))
    };
    let mut changes = Vec::new();
    for group in &after.groups {
        let Some(directory) = groups.iter().find(|directory| directory.starts_with(&group.hierarchy.mount_point)) else { continue };
        let old = before.groups.iter().find(|old| old.hierarchy == group.hierarchy).map_or(&[][..], |old| &old.writes);
        let mut writes: Vec<Write> = group.writes.iter().filter(|write| !old.contains(write) || is_asked(write)).cloned().collect();
        order(&mut writes, old);
        if !writes.is_empty() {
            changes.push(Change { hierarchy: group.hierarchy.clone(), directory: directory.clone(), enable: group.enable.clone(), writes });
        }
    }
    changes
}

/// Of two values that bound each other the one goes first that widens the bound: memory and swap together are never below memory alone,
/// and a quota's share of its period is never above that of the cgroup above (`memory.rst`, `sched-bwc.rst`).
fn order(writes: &mut Vec<Write>, old: &[Write]) {
    const LIMIT: &str = "memory.limit_in_bytes";
    const PERIOD: &str = "cpu.cfs_period_us";
    const PERIOD_US_DEFAULT: i64 = 100_000;
    let value = |writes: &[Write], file: &str| {
        let write = writes.iter().find(|write| write.file == file)?;
        Some(write.value.parse().ok().filter(|value| *value >= 0).unwrap_or(i64::MAX))
    };
    if value(writes, LIMIT) > Some(value(old, LIMIT).unwrap_or(i64::MAX)) {
        move_before(writes, "memory.memsw.limit_in_bytes", LIMIT);
    }
    if value(writes, PERIOD).is_some_and(|period| period < value(old, PERIOD).unwrap_or(PERIOD_US_DEFAULT)) {
        move_before(writes, "cpu.cfs_quota_us", PERIOD);
    }
}

fn move_before(writes: &mut Vec<Write>, file: &str, other: &str) {
    let place = |file: &str| writes.iter().position(|write| write.file == file);
    if let (Some(from), Some(to)) = (place(file), place(other))
        && from > to
    {
        let write = writes.remove(from);
        writes.insert(to, write);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::super::{cgroup, check, spec};
    use super::*;

    const MOUNTS: &str = "\
35 31 0:32 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
37 31 0:34 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";
    const OWN: &str = "1:cpu:/\n2:memory:/a\n3:pids:/\n";

    fn config(resources: Value) -> Value {
        json!({"ociVersion":"1.2.0","root":{"path":"/r"},"process":{"cwd":"/","args":["sh"]},
            "linux":{"namespaces":[{"type":"mount"}],"cgroupsPath":"/x","resources":resources}})
    }

    fn plan(config: &Value) -> CgroupPlan {
        let container = check::check(Path::new("/b"), &spec::parse(config.to_string().as_bytes()).unwrap()).unwrap();
        let hierarchies = cgroup::hierarchies(MOUNTS, OWN);
        cgroup::plan(&hierarchies, &[], container.cgroups_path.as_deref(), "x", &container.resources).unwrap()
    }

    fn written(before: Value, asked: Value) -> String {
        let before = config(before);
        let after = merged(before.clone(), &asked);
        let groups = ["cpu", "memory", "pids"].map(|name| Path::new("/sys/fs/cgroup").join(name).join("x"));
        let changes = changes(&plan(&before), &plan(&after), &asked, &groups);
        let line = |write: &Write| format!("{}={}", write.file, write.value);
        changes.iter().flat_map(|change| change.writes.iter().map(line)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_what_changes_or_is_asked_for_is_written() {
        let before = json!({"memory":{"limit":1000,"swap":2000},"cpu":{"shares":7},"pids":{"limit":5}});
        assert_eq!(written(before.clone(), json!({"pids":{"limit":6}})), "pids.max=6");
        assert_eq!(written(before.clone(), json!({"pids":{"limit":5}})), "pids.max=5");
        assert_eq!(written(before.clone(), json!({"cpu":{"shares":0,"cpus":""},"memory":{"limit":0}})), "");
        assert_eq!(written(before, json!({"pids":{"limit":-1},"cpu":{"shares":8}})), "cpu.shares=8 pids.max=max");
    }

    #[test]
    fn memory_and_swap_in_an_order_the_kernel_takes() {
        let before = json!({"memory":{"limit":1000,"swap":2000}});
        let both = |limit: i64, swap: i64| written(before.clone(), json!({"memory":{"limit":limit,"swap":swap}}));
        assert_eq!(both(3000, 4000), "memory.memsw.limit_in_bytes=4000 memory.limit_in_bytes=3000");
        assert_eq!(both(500, 600), "memory.limit_in_bytes=500 memory.memsw.limit_in_bytes=600");
        let unlimited = written(before.clone(), json!({"memory":{"limit":-1}}));
        assert_eq!(unlimited, "memory.memsw.limit_in_bytes=-1 memory.limit_in_bytes=-1");
        assert_eq!(written(json!({}), json!({"memory":{"limit":5,"swap":6}})), "memory.limit_in_bytes=5 memory.memsw.limit_in_bytes=6");
    }

    #[test]
    fn quota_and_period_in_an_order_the_kernel_takes() {
        let before = json!({"cpu":{"quota":50_000,"period":100_000}});
        let both = |quota: i64, period: i64| written(before.clone(), json!({"cpu":{"quota":quota,"period":period}}));
        assert_eq!(both(5000, 10_000), "cpu.cfs_quota_us=5000 cpu.cfs_period_us=10000");
        assert_eq!(both(100_000, 200_000), "cpu.cfs_period_us=200000 cpu.cfs_quota_us=100000");
    }

    #[test]
    fn sizes_as_docker_writes_them() {
        let read = ["1024", "1k", "1K", "2kb", "2KiB", "1.5m", "3g", "1t", "10 m", "-1", "0"].map(|text| parse_bytes(text).unwrap());
        assert_eq!(read, [1024, 1024, 1024, 2048, 2048, 1_572_864, 3 << 30, 1 << 40, 10 << 20, -1, 0]);
        for text in ["", "k", "-2", "1x", "1.2.3m", "inf", "nan", "1e3", "9223372036854775807k", "99999999.5p", "0x10"] {
            assert_eq!(parse_bytes(text), None, "{text:?}");
        }
    }
}
