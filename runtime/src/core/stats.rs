//! Decides what `events` says of a container's use of resources, in the form runc says it.
//!
//! In: the texts of the files of the container's cgroups, by name. Out: the JSON value. Never reads a file, and fails over none: what a
//! kernel does not count is left out or zero, as under runc.
//!
//! Sources: the kernel's `admin-guide/cgroup-v1` and `admin-guide/cgroup-v2.rst`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The texts of files, by name; a name is in one cgroup only.
pub type Files = BTreeMap<String, String>;

const FILES: [&str; 41] = [
    "cpuacct.usage",
    "cpuacct.usage_percpu",
    "cpuacct.usage_all",
    "cpuacct.stat",
    "cpu.stat",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpu_exclusive",
    "cpuset.mem_hardwall",
    "cpuset.mem_exclusive",
    "cpuset.memory_migrate",
    "cpuset.memory_spread_page",
    "cpuset.memory_spread_slab",
    "cpuset.memory_pressure",
    "cpuset.sched_load_balance",
    "cpuset.sched_relax_domain_level",
    "memory.stat",
    "memory.usage_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.limit_in_bytes",
    "memory.failcnt",
    "memory.memsw.usage_in_bytes",
    "memory.memsw.max_usage_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.memsw.failcnt",
    "memory.kmem.usage_in_bytes",
    "memory.kmem.max_usage_in_bytes",
    "memory.kmem.limit_in_bytes",
    "memory.kmem.failcnt",
    "memory.kmem.tcp.usage_in_bytes",
    "memory.kmem.tcp.max_usage_in_bytes",
    "memory.kmem.tcp.limit_in_bytes",
    "memory.kmem.tcp.failcnt",
    "memory.current",
    "memory.peak",
    "memory.max",
    "memory.swap.current",
    "memory.swap.max",
    "memory.events",
    "pids.current",
    "pids.max",
];

/// Whether a file of a cgroup is read.
pub fn is_read(name: &str) -> bool {
    FILES.contains(&name) || name == "io.stat" || name.starts_with("blkio.throttle.io_") || name.starts_with("hugetlb.")
}

/// runc's `data` of an event of the type `stats`.
pub fn stats(files: &Files, intel_rdt: Value) -> Value {
    json!({
        "cpu": cpu(files),
        "cpuset": cpuset(files),
        "memory": memory(files),
        "pids": pids(files),
        "blkio": blkio(files),
        "hugetlb": hugetlb(files),
        "intel_rdt": intel_rdt,
        "network_interfaces": null,
    })
}

fn number(files: &Files, name: &str) -> u64 {
    match files.get(name).map(|text| text.trim()) {
        Some("max") => u64::MAX,
        Some(text) => text.parse().unwrap_or(0),
        None => 0,
    }
}

fn has(files: &Files, name: &str) -> bool {
    files.contains_key(name)
}

/// Lines of a name and a number.
fn table(files: &Files, name: &str) -> BTreeMap<String, u64> {
    let lines = files.get(name).map_or("", String::as_str).lines();
    lines.filter_map(|line| line.split_once(' ').and_then(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))).collect()
}

/// Go's `omitempty`.
fn without_zeros(fields: &[(&str, u64)]) -> Map<String, Value> {
    fields.iter().filter(|(_, value)| *value != 0).map(|(name, value)| ((*name).to_owned(), (*value).into())).collect()
}

fn cpu(files: &Files) -> Value {
    const TICKS_PER_SECOND: u64 = 100;
    const TICK_NS: u64 = 1_000_000_000 / TICKS_PER_SECOND;
    let stat = table(files, "cpu.stat");
    let of = |name: &str| stat.get(name).copied().unwrap_or(0);
    let us = |name: &str| of(name).saturating_mul(1000);
    let mut usage = Map::new();
    if has(files, "cpuacct.usage") {
        let modes = table(files, "cpuacct.stat");
        let mode = |name: &str| modes.get(name).copied().unwrap_or(0).saturating_mul(TICK_NS);
        usage.extend(without_zeros(&[("total", number(files, "cpuacct.usage"))]));
        let per: Vec<u64> = files.get("cpuacct.usage_percpu").map(|text| numbers(text)).unwrap_or_default();
        // After the head: the processor, its time in user mode and in the kernel.
        let all = files.get("cpuacct.usage_all").map_or("", String::as_str).lines().skip(1).map(numbers).collect::<Vec<_>>();
        let column = |column: usize| all.iter().filter_map(|row| row.get(column).copied()).collect::<Vec<u64>>();
        for (name, values) in [("percpu", per), ("percpu_user", column(1)), ("percpu_kernel", column(2))] {
            if !values.is_empty() {
                usage.insert(name.to_owned(), values.into());
            }
        }
        usage.insert("kernel".to_owned(), mode("system").into());
        usage.insert("user".to_owned(), mode("user").into());
    } else {
        usage.extend(without_zeros(&[("total", us("usage_usec"))]));
        usage.insert("kernel".to_owned(), us("system_usec").into());
        usage.insert("user".to_owned(), us("user_usec").into());
    }
    let throttled_ns = of("throttled_time").max(us("throttled_usec"));
    let throttling = [("periods", of("nr_periods")), ("throttledPeriods", of("nr_throttled")), ("throttledTime", throttled_ns)];
    json!({ "usage": usage, "throttling": without_zeros(&throttling) })
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn cpuset(files: &Files) -> Value {
    const FLAGS: [&str; 8] = [
        "cpu_exclusive",
        "mem_hardwall",
        "mem_exclusive",
        "memory_migrate",
        "memory_spread_page",
        "memory_spread_slab",
        "memory_pressure",
        "sched_load_balance",
    ];
    let mut set = Map::new();
    for name in ["cpus", "mems"] {
        let list = files.get(&format!("cpuset.{name}")).map(|text| list(text)).unwrap_or_default();
        if !list.is_empty() {
            set.insert(name.to_owned(), list.into());
        }
    }
    for name in FLAGS {
        set.insert(name.to_owned(), number(files, &format!("cpuset.{name}")).into());
    }
    let level = files.get("cpuset.sched_relax_domain_level").and_then(|text| text.trim().parse::<i64>().ok());
    set.insert("sched_relax_domain_level".to_owned(), level.unwrap_or(0).into());
    set.into()
}

/// A list such as `0-2,7` (cpuset(7), "List format").
fn list(text: &str) -> Vec<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u16>().ok()?..=last.parse::<u16>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

fn memory(files: &Files) -> Value {
    let stat = table(files, "memory.stat");
    let entry = |usage: u64, max: u64, limit: u64, failures: u64| {
        let mut entry = without_zeros(&[("usage", usage), ("max", max)]);
        entry.insert("limit".to_owned(), limit.into());
        entry.insert("failcnt".to_owned(), failures.into());
        Value::from(entry)
    };
    let mut memory = Map::new();
    let cache = stat.get("cache").or_else(|| stat.get("file")).copied().unwrap_or(0);
    memory.extend(without_zeros(&[("cache", cache)]));
    let none = || entry(0, 0, 0, 0);
    let parts = if has(files, "memory.current") {
        let (usage, limit) = (number(files, "memory.current"), number(files, "memory.max"));
        let failures = table(files, "memory.events").get("max").copied().unwrap_or(0);
        // Memory and swap together, as version 1 counts.
        let swap_limit = number(files, "memory.swap.max");
        let both_limit = if swap_limit == u64::MAX { swap_limit } else { swap_limit.saturating_add(limit) };
        let both = entry(number(files, "memory.swap.current").saturating_add(usage), 0, both_limit, 0);
        [("usage", entry(usage, number(files, "memory.peak"), limit, failures)), ("swap", both), ("kernel", none()), ("kernelTCP", none())]
    } else {
        let of = |part: &str| {
            let file = |name: &str| number(files, &format!("memory.{part}{name}"));
            entry(file("usage_in_bytes"), file("max_usage_in_bytes"), file("limit_in_bytes"), file("failcnt"))
        };
        [("usage", of("")), ("swap", of("memsw.")), ("kernel", of("kmem.")), ("kernelTCP", of("kmem.tcp."))]
    };
    memory.extend(parts.map(|(name, value)| (name.to_owned(), value)));
    if !stat.is_empty() {
        memory.insert("raw".to_owned(), json!(stat));
    }
    memory.into()
}

fn pids(files: &Files) -> Value {
    let limit = Some(number(files, "pids.max")).filter(|limit| *limit != u64::MAX).unwrap_or(0);
    without_zeros(&[("current", number(files, "pids.current")), ("limit", limit)]).into()
}

fn blkio(files: &Files) -> Value {
    let mut parts = Map::new();
    let v1 = [
        ("ioServiceBytesRecursive", "blkio.throttle.io_service_bytes_recursive"),
        ("ioServicedRecursive", "blkio.throttle.io_serviced_recursive"),
    ];
    for (name, file) in v1 {
        let entries: Vec<Value> = files.get(file).map_or("", String::as_str).lines().filter_map(blkio_line).collect();
        if !entries.is_empty() {
            parts.insert(name.to_owned(), entries.into());
        }
    }
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in files.get("io.stat").map_or("", String::as_str).lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(device) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse::<u64>() else { continue };
            let (list, operation) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "dbytes" => (&mut bytes, "Discard"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                "dios" => (&mut operations, "Discard"),
                _ => continue,
            };
            list.push(json!({ "major": major, "minor": minor, "op": operation, "value": value }));
        }
    }
    for (name, entries) in [("ioServiceBytesRecursive", bytes), ("ioServicedRecursive", operations)] {
        if !entries.is_empty() {
            parts.insert(name.to_owned(), entries.into());
        }
    }
    parts.into()
}

/// `8:0 Read 4096`; the line of the total names no device.
fn blkio_line(line: &str) -> Option<Value> {
    let words: Vec<&str> = line.split(' ').collect();
    let &[number, operation, value] = words.as_slice() else { return None };
    let (major, minor) = device(number)?;
    Some(json!({ "major": major, "minor": minor, "op": operation, "value": value.parse::<u64>().ok()? }))
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Both versions name a file by the size of the pages: `hugetlb.2MB.…`.
fn hugetlb(files: &Files) -> Value {
    let sizes = files.keys().filter_map(|name| name.strip_prefix("hugetlb.")?.split_once('.')).map(|(size, _)| size);
    let mut found = Map::new();
    for size in sizes {
        let file = |name: &str| number(files, &format!("hugetlb.{size}.{name}"));
        let failures = file("failcnt").max(table(files, &format!("hugetlb.{size}.events")).get("max").copied().unwrap_or(0));
        let mut entry = without_zeros(&[("usage", file("usage_in_bytes").max(file("current"))), ("max", file("max_usage_in_bytes"))]);
        entry.insert("failcnt".to_owned(), failures.into());
        found.insert(size.to_owned(), entry.into());
    }
    found.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Value {
        stats(&files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(), json!({}))
    }

    #[test]
    fn version_1() {
        let stats = of(&[
            ("cpuacct.usage", "5000\n"),
            ("cpuacct.usage_percpu", "2000 3000 \n"),
            ("cpuacct.usage_all", "cpu user system\n0 500 1500\n1 1000 2000\n"),
            ("cpuacct.stat", "user 3\nsystem 4\n"),
            ("cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 99\n"),
            ("cpuset.cpus", "0-2,5\n"),
            ("cpuset.sched_relax_domain_level", "-1\n"),
            ("memory.usage_in_bytes", "4096\n"),
            ("memory.limit_in_bytes", "8192\n"),
            ("memory.stat", "cache 12\nrss 34\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n"),
            ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
        ]);
        assert_eq!(
            stats["cpu"],
            json!({"usage":{"total":5000,"percpu":[2000,3000],"percpu_user":[500,1000],"percpu_kernel":[1500,2000],
                "kernel":40_000_000,"user":30_000_000},"throttling":{"periods":7,"throttledPeriods":2,"throttledTime":99}})
        );
        assert_eq!((&stats["cpuset"]["cpus"], &stats["cpuset"]["sched_relax_domain_level"]), (&json!([0, 1, 2, 5]), &json!(-1)));
        assert_eq!(stats["memory"]["usage"], json!({"usage":4096,"limit":8192,"failcnt":0}));
        assert_eq!((&stats["memory"]["cache"], &stats["memory"]["raw"]), (&json!(12), &json!({"cache":12,"rss":34})));
        assert_eq!(stats["pids"], json!({"current":3}));
        let bytes = json!([{"major":8,"minor":0,"op":"Read","value":4096},{"major":8,"minor":0,"op":"Total","value":4096}]);
        assert_eq!(stats["blkio"], json!({ "ioServiceBytesRecursive": bytes }));
        assert_eq!(stats["hugetlb"], json!({"2MB":{"usage":2_097_152,"failcnt":0}}));
    }

    #[test]
    fn version_2() {
        let stats = of(&[
            ("cpu.stat", "usage_usec 9\nuser_usec 4\nsystem_usec 5\nnr_periods 1\nnr_throttled 0\nthrottled_usec 0\n"),
            ("memory.current", "100\n"),
            ("memory.peak", "150\n"),
            ("memory.max", "200\n"),
            ("memory.swap.current", "10\n"),
            ("memory.swap.max", "50\n"),
            ("memory.events", "low 0\nmax 6\noom_kill 1\n"),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("pids.current", "3\n"),
            ("pids.max", "9\n"),
            ("io.stat", "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
        ]);
        assert_eq!(stats["cpu"], json!({"usage":{"total":9000,"kernel":5000,"user":4000},"throttling":{"periods":1}}));
        assert_eq!(stats["memory"]["usage"], json!({"usage":100,"max":150,"limit":200,"failcnt":6}));
        assert_eq!((&stats["memory"]["swap"], &stats["memory"]["cache"]), (&json!({"usage":110,"limit":250,"failcnt":0}), &json!(2)));
        assert_eq!(stats["pids"], json!({"current":3,"limit":9}));
        assert_eq!(stats["blkio"]["ioServicedRecursive"][1], json!({"major":8,"minor":16,"op":"Write","value":4}));
    }

    #[test]
    fn nothing_to_read_and_garbage_are_no_error() {
        for name in FILES.iter().copied().chain(["io.stat", "hugetlb.x"]) {
            of(&[(name, "max\n\n : - = 99999999999999999999 \u{0} 8:0 x y\n5-3,65535-0,")]);
        }
        assert_eq!(of(&[])["pids"], json!({}));
    }
}
