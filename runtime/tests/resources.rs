//! Limits beyond the plain ones: what is written into the container's cgroups, and what this host has nothing for.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{Bundle, cgroup_v1, cgroup_v2, tool};
use serde_json::json;

/// A block device's numbers.
fn block_device() -> (u32, u32) {
    let dev = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path().join("dev")).find(|path| path.exists()).unwrap();
    let text = fs::read_to_string(dev).unwrap();
    let (major, minor) = text.trim().split_once(':').unwrap();
    (major.parse().unwrap(), minor.parse().unwrap())
}

#[test]
fn bursts_and_idleness() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/linux/resources/cpu", json!({"quota":50_000,"period":100_000,"burst":20_000}));
    bundle.create();
    assert_eq!(bundle.cgroup_file(&["cpu.cfs_burst_us", "cpu.max.burst"]), "20000");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.set("/linux/resources/cpu", json!({"shares":512,"idle":1}));
    bundle.create();
    assert_eq!(bundle.cgroup_file(&["cpu.idle"]), "1");
}

#[test]
fn shares_of_real_time() {
    let mut bundle = Bundle::new("cat /proc/self/stat");
    bundle.set("/linux/resources/cpu", json!({"realtimeRuntime":10_000,"realtimePeriod":1_000_000}));
    bundle.set("/process/scheduler", json!({"policy":"SCHED_FIFO","priority":7})).set("/process/args", json!(["cat", "/proc/self/stat"]));
    if cgroup_v2("cpu") {
        assert!(bundle.create_fails().contains("linux.resources.cpu.realtimeRuntime: cgroup version 2 gives no shares"));
        return;
    }
    if !bundle.cgroup_root("cpu").join("cpu.rt_runtime_us").exists() {
        assert!(bundle.create_fails().contains("linux.resources.cpu.realtimePeriod: write"));
        return;
    }
    let printed = bundle.prints();
    let (_, rest) = printed.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    assert_eq!([fields[40 - 3], fields[41 - 3]], ["7", "1"]);
    // Without a share the kernel refuses real time, and the field is named.
    bundle.config["linux"]["resources"].as_object_mut().unwrap().remove("cpu");
    assert!(bundle.create_fails().contains("process.scheduler: set SCHED_FIFO"));
}

#[test]
fn memory_of_version_1() {
    let fields = json!({"limit":67_108_864,"swappiness":7,"disableOOMKiller":true,"kernelTCP":8_388_608,"useHierarchy":true,"checkBeforeUpdate":true});
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/linux/resources/memory", fields);
    if cgroup_v2("memory") {
        let error = bundle.create_fails();
        for field in ["swappiness", "disableOOMKiller", "kernelTCP"] {
            assert!(error.contains(&format!("linux.resources.memory.{field}: cgroup version 2 has nothing of the kind")), "{error}");
        }
        return;
    }
    bundle.create();
    assert_eq!(bundle.cgroup_file(&["memory.swappiness"]), "7");
    assert_eq!(bundle.cgroup_file(&["memory.kmem.tcp.limit_in_bytes"]), "8388608");
    assert_eq!(bundle.cgroup_file(&["memory.use_hierarchy"]), "1");
    assert!(bundle.cgroup_file(&["memory.oom_control"]).starts_with("oom_kill_disable 1"));
}

/// Linux 5.16 and later take it and forget it: then it is refused by the field's name.
#[test]
fn kernel_memory() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/linux/resources/memory", json!({"kernel":8_388_608}));
    match bundle.try_create() {
        Ok(()) => assert_eq!(bundle.cgroup_file(&["memory.kmem.limit_in_bytes"]), "8388608"),
        Err(error) => assert!(error.contains("linux.resources.memory.kernel: "), "{error}"),
    }
}

#[test]
fn block_io_is_throttled() {
    let (major, minor) = block_device();
    let of = |rate: u64| json!([{"major":major,"minor":minor,"rate":rate}]);
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set(
        "/linux/resources/blockIO",
        json!({"throttleReadBpsDevice":of(1_000_000),"throttleWriteBpsDevice":of(2_000_000),
            "throttleReadIOPSDevice":of(300),"throttleWriteIOPSDevice":of(400)}),
    );
    bundle.create();
    if cgroup_v2("io") {
        assert_eq!(bundle.cgroup_file(&["io.max"]), format!("{major}:{minor} rbps=1000000 wbps=2000000 riops=300 wiops=400"));
    } else {
        for (file, rate) in [("read_bps", 1_000_000), ("write_bps", 2_000_000), ("read_iops", 300), ("write_iops", 400)] {
            assert_eq!(bundle.cgroup_file(&[&format!("blkio.throttle.{file}_device")]), format!("{major}:{minor} {rate}"));
        }
    }
}

#[test]
fn a_throttle_of_no_device_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    bundle.set("/linux/resources/blockIO", json!({"throttleReadBpsDevice":[{"major":4000,"minor":1,"rate":5}]}));
    let error = bundle.create_fails();
    assert!(error.contains("linux.resources.blockIO.throttleReadBpsDevice[0]: write"), "{error}");
}

/// The kernel's io schedulers decide whether there are weights; without them the field is named.
#[test]
fn block_io_weights() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/linux/resources/blockIO", json!({"weight":200}));
    match bundle.try_create() {
        Ok(()) => {
            let weight = bundle.cgroup_file(&["blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight"]);
            assert!(["200", "default 200", "default 1920"].contains(&weight.as_str()), "{weight}");
        }
        Err(error) => {
            assert!(error.contains("linux.resources.blockIO.weight: write \"200\""), "{error}");
            assert!(error.contains("this kernel does not account it"), "{error}");
        }
    }
}

#[test]
fn what_no_controller_holds_is_refused_by_its_name() {
    let cases = [
        ("hugetlb", "/linux/resources/hugepageLimits", json!([{"pageSize":"2MB","limit":0}]), "linux.resources.hugepageLimits[0]"),
        ("net_cls", "/linux/resources/network", json!({"classID":7}), "linux.resources.network.classID"),
        (
            "net_prio",
            "/linux/resources/network",
            json!({"priorities":[{"name":"lo","priority":1}]}),
            "linux.resources.network.priorities[0]",
        ),
        ("rdma", "/linux/resources/rdma", json!({"mlx0":{"hcaHandles":1}}), "linux.resources.rdma[mlx0]"),
    ];
    for (controller, pointer, value, field) in cases {
        if cgroup_v1(controller) || cgroup_v2(controller) {
            continue;
        }
        let mut bundle = Bundle::new("true");
        bundle.set(pointer, value);
        let error = bundle.create_fails();
        assert!(error.contains(&format!("{field}: this host has no {controller} cgroup controller mounted to hold it")), "{error}");
    }
}

#[test]
fn unified_files() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/linux/resources/unified", json!({"memory.high":"50000000"}));
    if cgroup_v2("memory") {
        bundle.create();
        assert_eq!(bundle.cgroup_file(&["memory.high"]), "49999872");
        bundle.ok(&["delete", "--force", &bundle.id]);
    } else {
        let error = bundle.create_fails();
        assert!(
            error.contains("linux.resources.unified[memory.high]: the memory controller is not of cgroup version 2 on this host"),
            "{error}"
        );
    }
    // Every cgroup of version 2 has the core's files.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if mounts.contains(" - cgroup2 ") {
        bundle.set("/linux/resources/unified", json!({"cgroup.max.depth":"3"}));
        bundle.create();
        assert_eq!(bundle.cgroup_file(&["cgroup.max.depth"]), "3");
        bundle.ok(&["delete", "--force", &bundle.id]);
        bundle.set("/linux/resources/unified", json!({"cgroup.none":"3"}));
        assert!(bundle.create_fails().contains("linux.resources.unified[cgroup.none]: write"));
    }
}

#[test]
fn a_checked_update_below_what_is_used_is_refused() {
    let mut bundle = Bundle::new("dd if=/dev/zero of=/tmp/fill bs=1M count=32; echo filled; sleep 1000");
    bundle.push("/mounts", json!({"destination":"/tmp","type":"tmpfs"}));
    bundle.set("/linux/resources/memory", json!({"limit":134_217_728,"checkBeforeUpdate":true}));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    common::eventually("it fills", || {
        let used: u64 = bundle.cgroup_file(&["memory.usage_in_bytes", "memory.current"]).parse().unwrap();
        (used > 32 << 20).then_some(())
    });
    let error = bundle.fails(&["update", "--memory", "16m", &bundle.id]);
    assert!(error.contains("linux.resources.memory.limit: 16777216 is below the"), "{error}");
    assert_eq!(bundle.cgroup_file(&["memory.limit_in_bytes", "memory.max"]), "134217728");
    bundle.ok(&["update", "--memory", "100m", &bundle.id]);
    assert_eq!(bundle.cgroup_file(&["memory.limit_in_bytes", "memory.max"]), "104857600");
}

/// The files of a container's cgroups whose values a configuration sets, under ours and under runc; runc 1.1 ignores kernelTCP.
#[test]
fn the_values_are_runcs() {
    let Some(runc) = tool("runc") else { return };
    let (major, minor) = block_device();
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/linux/resources/memory", json!({"limit":67_108_864,"reservation":33_554_432,"swappiness":9,"disableOOMKiller":true}));
    bundle.set(
        "/linux/resources/cpu",
        json!({"shares":333,"quota":40_000,"period":80_000,"cpus":"0","mems":"0","realtimePeriod":500_000,"realtimeRuntime":5000}),
    );
    bundle.set("/linux/resources/blockIO", json!({"throttleReadBpsDevice":[{"major":major,"minor":minor,"rate":12345}]}));
    if !cgroup_v1("memory") || !bundle.cgroup_root("cpu").join("cpu.rt_runtime_us").exists() {
        return;
    }
    let values = |bundle: &Bundle| -> Vec<(PathBuf, String)> {
        let files = [
            "memory.limit_in_bytes",
            "memory.soft_limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.swappiness",
            "memory.kmem.tcp.limit_in_bytes",
            "memory.oom_control",
            "cpu.shares",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "cpu.rt_period_us",
            "cpu.rt_runtime_us",
            "cpuset.cpus",
            "cpuset.mems",
            "blkio.throttle.read_bps_device",
            "pids.max",
        ];
        let found = bundle.cgroups().into_iter().flat_map(|group| files.map(|file| group.join(file)));
        found.filter_map(|path| Some((path.clone(), fs::read_to_string(path).ok()?))).collect()
    };
    bundle.create();
    let ours = values(&bundle);
    bundle.ok(&["delete", "--force", &bundle.id]);
    let call = |args: &[&str]| {
        let mut command = Command::new(&runc);
        command.arg("--root").arg(bundle.path("runc")).args(args).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status().unwrap()
    };
    let created = call(&["create", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    let theirs = values(&bundle);
    call(&["delete", "--force", &bundle.id]);
    assert!(created.success());
    assert!(ours.len() > 12, "{ours:?}");
    assert_eq!(ours, theirs);
}
