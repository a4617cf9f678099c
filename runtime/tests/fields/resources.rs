//! `linux.resources`: what stands in the files of the container's cgroups, after `create` and after every `update`.
//!
//! The files are those of version 1; on a host without it nothing is compared, as both runtimes' values of version 2 follow from the
//! specification's own conversions, which `core/limits` checks.

use std::fs;

use serde_json::{Value, json};

use crate::common::{Bundle, cgroup_v1, cgroup_v2};
use crate::engine::{Engine, Kind, Said, check, edit, refused};

/// The files that a configuration can set.
const FILES: [&str; 27] = [
    "memory.limit_in_bytes",
    "memory.soft_limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.swappiness",
    "memory.oom_control",
    "memory.use_hierarchy",
    "cpu.shares",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpu.rt_period_us",
    "cpu.rt_runtime_us",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
    "blkio.bfq.weight",
    "blkio.weight",
    "pids.max",
    "devices.list",
    "hugetlb.2MB.limit_in_bytes",
    "net_cls.classid",
    "net_prio.ifpriomap",
    "freezer.state",
    "rdma.max",
];

/// `FILE=VALUE` of each that is there.
fn values(bundle: &Bundle) -> Vec<String> {
    let mut found = Vec::new();
    for group in bundle.cgroups() {
        for file in FILES {
            if let Ok(text) = fs::read_to_string(group.join(file)) {
                // Device rules are in the order of writing.
                let mut lines: Vec<&str> = text.lines().collect();
                lines.sort_unstable();
                found.push(format!("{file}={}", lines.join(", ")));
            }
        }
    }
    found
}

/// A block device's numbers.
fn block_device() -> (u32, u32) {
    let dev = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path().join("dev")).find(|path| path.exists()).unwrap();
    let text = fs::read_to_string(dev).unwrap();
    let (major, minor) = text.trim().split_once(':').unwrap();
    (major.parse().unwrap(), minor.parse().unwrap())
}

/// What `look` sees of a container, under ours and under runc.
fn both(name: &str, bundle: &Bundle, look: impl Fn(&Engine<'_>) -> Vec<String>) {
    bundle.write();
    let mut seen = Vec::new();
    for kind in [Kind::Ours, Kind::Runc] {
        let Some(engine) = Engine::new(kind, bundle) else { return };
        seen.push(look(&engine));
        engine.delete();
    }
    let theirs = seen.pop().expect("two have looked");
    let ours = seen.pop().expect("two have looked");
    assert!(!ours.is_empty(), "{name}: nothing to compare");
    assert_eq!(ours.len(), theirs.len(), "{name}: {ours:?} and runc's {theirs:?}");
    let differ: Vec<_> = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(differ.is_empty(), "{name}: ours and runc's: {differ:#?}");
}

/// The same of a created container with edits.
fn created(name: &str, edits: &Value, look: impl Fn(&Engine<'_>) -> Vec<String>) {
    let mut bundle = Bundle::new("sleep 1000");
    edit(&mut bundle, edits);
    both(name, &bundle, |engine| {
        let created = engine.create(&[]);
        assert_eq!(created.code, 0, "{name}: {}", created.stderr);
        look(engine)
    });
}

#[test]
fn files_of_a_new_container() {
    if !cgroup_v1("memory") {
        return;
    }
    let (major, minor) = block_device();
    let of = |rate: u64| json!([{"major":major,"minor":minor,"rate":rate}]);
    let devices = |rules: Value| json!({"/linux/resources/devices": rules});
    let none = json!({"allow":false,"access":"rwm"});
    let cases = [
        ("nothing", json!({"/linux/resources":null})),
        ("memory", json!({"/linux/resources/memory":{"limit":67_108_864,"reservation":33_554_432}})),
        ("memory and swap", json!({"/linux/resources/memory":{"limit":67_108_864,"swap":134_217_728}})),
        ("memory without an end", json!({"/linux/resources/memory":{"limit":-1}})),
        ("swap without an end", json!({"/linux/resources/memory":{"limit":67_108_864,"swap":-1}})),
        ("how memory is used", json!({"/linux/resources/memory":{"swappiness":9,"disableOOMKiller":true,"useHierarchy":true}})),
        ("processors", json!({"/linux/resources/cpu":{"shares":333,"quota":40_000,"period":80_000}})),
        ("a quota alone", json!({"/linux/resources/cpu":{"quota":40_000}})),
        ("a period alone", json!({"/linux/resources/cpu":{"period":50_000}})),
        ("no quota", json!({"/linux/resources/cpu":{"quota":-1,"period":50_000}})),
        ("which processors", json!({"/linux/resources/cpu":{"cpus":"0","mems":"0"}})),
        ("processes", json!({"/linux/resources/pids":{"limit":7}})),
        ("processes without an end", json!({"/linux/resources/pids":{"limit":-1}})),
        (
            "reading and writing",
            json!({"/linux/resources/blockIO":{"throttleReadBpsDevice":of(1000),"throttleWriteBpsDevice":of(2000),
            "throttleReadIOPSDevice":of(30),"throttleWriteIOPSDevice":of(40)}}),
        ),
        ("a weight", json!({"/linux/resources/blockIO":{"weight":200}})),
        ("no device rules", devices(json!([]))),
        ("no devices", devices(json!([none]))),
        (
            "some devices",
            devices(json!([none, {"allow":true,"type":"c","major":10,"minor":229,"access":"rw"},
            {"allow":true,"type":"b","major":8,"access":"r"}])),
        ),
        ("all devices", devices(json!([{"allow":true,"access":"rwm"}]))),
    ];
    for (name, edits) in cases {
        created(name, &edits, |engine| values(engine.bundle));
    }
    if fs::metadata("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").is_ok() {
        created("real time", &json!({"/linux/resources/cpu":{"realtimePeriod":500_000,"realtimeRuntime":5000}}), |engine| {
            values(engine.bundle)
        });
    }
}

#[test]
fn files_after_updates() {
    if !cgroup_v1("memory") {
        return;
    }
    let file = |name: &str, value: Value| (format!("{name}.json"), value);
    let files = [
        file(
            "all",
            json!({"memory":{"limit":50_331_648,"reservation":20_971_520},"cpu":{"shares":99,"quota":30_000,"period":60_000,"cpus":"0","mems":"0"},
            "pids":{"limit":44}}),
        ),
        file("nothing", json!({"memory":{"limit":0},"cpu":{"cpus":"","shares":0},"pids":{"limit":0}})),
        file("unlimited", json!({"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1},"pids":{"limit":-1}})),
    ];
    let options: [&[&str]; 12] = [
        &["--memory", "96m"],
        &["--memory", "64m", "--memory-swap", "96m"],
        &["--memory-reservation", "32m"],
        &["--cpu-share", "222"],
        &["--cpu-quota", "20000"],
        &["--cpu-period", "50000"],
        &["--cpu-quota", "-1"],
        &["--cpuset-cpus", "0", "--cpuset-mems", "0"],
        &["--pids-limit", "33"],
        &["--pids-limit", "-1"],
        &["--memory", "much"],
        &["--cpuset-cpus", "9999"],
    ];
    let edits = json!({"/linux/resources/memory":{"limit":134_217_728,"swap":268_435_456},"/linux/resources/pids":{"limit":9}});
    created("updates", &edits, |engine| {
        let mut seen = values(engine.bundle);
        let mut note = |what: &str, code: i32| {
            let well = if code == 0 { "taken" } else { "refused" };
            seen.extend([format!("{what}: {well}")].into_iter().chain(values(engine.bundle)));
        };
        for options in options {
            let args: Vec<&str> = ["update"].iter().chain(options).copied().chain([engine.bundle.id.as_str()]).collect();
            let code = engine.call(&args).code;
            note(&options.join(" "), code);
        }
        for (name, value) in &files {
            let path = engine.bundle.path(name);
            fs::write(&path, value.to_string()).unwrap();
            let code = engine.call(&["update", "--resources", path.to_str().unwrap(), &engine.bundle.id]).code;
            note(name, code);
        }
        seen
    });
}

/// What version 1 cannot hold is refused by both.
#[test]
fn what_no_controller_holds() {
    if !cgroup_v1("memory") {
        return;
    }
    check([
        refused("version 2's own", json!({"/linux/resources/unified":{"memory.high":"50000000"}}), "linux.resources.unified"),
        refused("memory below what a process needs", json!({"/linux/resources/memory":{"limit":4096}}), "linux.resources.memory.limit"),
        refused(
            "swap below memory",
            json!({"/linux/resources/memory":{"limit":67_108_864,"swap":33_554_432}}),
            "linux.resources.memory.swap",
        ),
        refused("processors that are not there", json!({"/linux/resources/cpu":{"cpus":"9999"}}), "linux.resources.cpu.cpus"),
        refused("a period too long", json!({"/linux/resources/cpu":{"quota":1000,"period":9_000_000}}), "linux.resources.cpu.period"),
        refused("a swappiness too high", json!({"/linux/resources/memory":{"swappiness":201}}), "linux.resources.memory.swappiness"),
        refused(
            "a throttle of no device",
            json!({"/linux/resources/blockIO":{"throttleReadBpsDevice":[{"major":4000,"minor":1,"rate":5}]}}),
            "linux.resources.blockIO.throttleReadBpsDevice[0]",
        ),
        refused("a word", json!({"/linux/resources/pids":{"limit":"few"}}), "linux.resources.pids.limit"),
        refused("a weight too high", json!({"/linux/resources/blockIO":{"weight":65_535}}), "linux.resources.blockIO.weight"),
    ]);
    for (controller, case) in [
        (
            "hugetlb",
            refused(
                "huge pages",
                json!({"/linux/resources/hugepageLimits":[{"pageSize":"2MB","limit":2_097_152}]}),
                "linux.resources.hugepageLimits[0]",
            ),
        ),
        ("net_cls", refused("a class", json!({"/linux/resources/network":{"classID":7}}), "linux.resources.network.classID")),
        (
            "net_prio",
            refused(
                "priorities",
                json!({"/linux/resources/network":{"priorities":[{"name":"lo","priority":1}]}}),
                "linux.resources.network.priorities",
            ),
        ),
        ("rdma", refused("rdma", json!({"/linux/resources/rdma":{"mlx0":{"hcaHandles":1}}}), "linux.resources.rdma")),
    ] {
        if !cgroup_v1(controller) && !cgroup_v2(controller) {
            check([case]);
        }
    }
}

/// What a paused container says, and what may be done with it.
#[test]
fn pausing_and_resuming() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.set("/process/args", json!(["sleep", "1000"]));
    both("pausing", &bundle, |engine| {
        engine.started();
        let calls: [&[&str]; 9] =
            [&["resume"], &["pause"], &["state"], &["pause"], &["exec", "true"], &["kill"], &["delete"], &["resume"], &["state"]];
        let mut seen = Vec::new();
        for call in calls {
            let args: Vec<&str> = [call[0], &engine.bundle.id].into_iter().chain(call[1..].iter().copied()).collect();
            let Said { stdout, code, .. } = engine.call(&args);
            let status = serde_json::from_str::<Value>(&stdout).map_or(Value::Null, |state| state["status"].clone());
            seen.push(format!("{}: {code} {status}", call.join(" ")));
            seen.extend(values(engine.bundle).into_iter().filter(|value| value.starts_with("freezer.")));
        }
        seen
    });
}
