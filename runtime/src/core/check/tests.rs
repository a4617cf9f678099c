use serde_json::{Value, json};

use super::*;
use crate::core::spec;

const LEAST: &str = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"cwd":"/","args":["sh"]},
    "linux":{"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"uts"}]}}"#;

/// The least configuration with one value at a JSON pointer put in.
fn with(pointer: &str, value: &str) -> Result<Container, Vec<Refusal>> {
    let mut config: Value = serde_json::from_str(LEAST).unwrap();
    let (parents, last) = pointer.rsplit_once('/').unwrap();
    let mut at = &mut config;
    for key in parents.split('/').skip(1) {
        at = at.as_object_mut().unwrap().entry(key).or_insert_with(|| json!({}));
    }
    at[last] = serde_json::from_str(value).unwrap();
    check(Path::new("/bundle"), &spec::parse(config.to_string().as_bytes()).unwrap())
}

fn refused(pointer: &str, value: &str) -> String {
    let refusals = with(pointer, value).expect_err(pointer);
    refusals.iter().map(Refusal::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_least_configuration_passes() {
    let container = check(Path::new("/bundle"), &spec::parse(LEAST.as_bytes()).unwrap()).unwrap();
    assert_eq!(container.root, Path::new("/bundle/rootfs"));
    assert_eq!(container.devices.len(), 6);
    assert_eq!((container.process.umask, container.root_readonly), (0o022, false));
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let cases = [
        ("/linux/cgroupsPath", r#""system.slice:a:b""#, "linux.cgroupsPath: slice:prefix:name is systemd's form"),
        ("/process/commandLine", r#""cmd""#, "process.commandLine: is of Windows"),
        ("/vm", "{}", "vm: this runtime runs Linux containers only"),
        ("/windows", "{}", "windows: this runtime runs Linux containers only"),
    ];
    for (pointer, value, expected) in cases {
        let text = refused(pointer, value);
        assert!(text.starts_with(expected), "{pointer}: {text}");
    }
}

#[test]
fn interfaces_to_move() {
    let text = refused("/linux/netDevices", r#"{"eth1":{"name":"eth0"}}"#);
    assert!(text.starts_with("linux.netDevices: the container has the host's network"), "{text}");
    let network = r#"[{"type":"mount"},{"type":"network"}]"#;
    let given = |devices: &str| with("/linux", &format!(r#"{{"namespaces":{network},"netDevices":{devices}}}"#));
    let devices = given(r#"{"eth1":{"name":"eth0"},"eth2":{},"eth3":{"name":""}}"#).unwrap().net_devices;
    let names: Vec<(&str, &str)> = devices.iter().map(|device| (device.host_name.as_str(), device.name.as_str())).collect();
    assert_eq!(names, [("eth1", "eth0"), ("eth2", "eth2"), ("eth3", "eth3")]);
    for wrong in ["a/b", "..", "with space", "sixteen_bytes_or", "eth%d", "a:b"] {
        let text = given(&format!(r#"{{"eth1":{{"name":"{wrong}"}}}}"#)).unwrap_err()[0].to_string();
        assert!(text.starts_with("linux.netDevices[eth1]: ") && text.contains("no name of an interface"), "{text}");
    }
    let text = given(r#"{"eth1":{"name":"eth0"},"eth0":{}}"#).unwrap_err()[0].to_string();
    assert!(text.contains("two interfaces would be called eth0"), "{text}");
}

#[test]
fn empty_unbuilt_fields_ask_for_nothing() {
    for (pointer, value) in [
        ("/hooks", r#"{"prestart":[]}"#),
        ("/linux/seccomp", "null"),
        ("/linux/seccomp", "{}"),
        ("/process/apparmorProfile", r#""""#),
        ("/linux/resources/memory/disableOOMKiller", "false"),
        ("/anExtension", r#"{"deep":1}"#),
    ] {
        assert!(with(pointer, value).is_ok(), "{pointer}");
    }
}

#[test]
fn bad_values_are_refused_by_name() {
    let cases = [
        ("/ociVersion", r#""2.0.0""#, "ociVersion: \"2.0.0\""),
        ("/process/cwd", r#""tmp""#, "process.cwd: \"tmp\" is not an absolute path"),
        ("/process/args", "[]", "process.args: empty"),
        ("/process/env", r#"["A=\u0000"]"#, "process.env[0]: holds a NUL byte"),
        ("/process/env", r#"["A=", "B"]"#, "process.env[1]: \"B\" is not of the form"),
        ("/process/oomScoreAdj", "1001", "process.oomScoreAdj: 1001"),
        ("/process/user", r#"{"uid":4294967295}"#, "process.user.uid: 4294967295"),
        ("/process/rlimits", r#"[{"type":"RLIMIT_X","soft":1,"hard":1}]"#, "process.rlimits[0].type: \"RLIMIT_X\""),
        ("/process/rlimits", r#"[{"type":"RLIMIT_CPU","soft":2,"hard":1}]"#, "process.rlimits[0].soft: 2 is above"),
        ("/process/capabilities", r#"{"effective":["CAP_KILL"]}"#, "process.capabilities.effective: CAP_KILL is not in permitted"),
        ("/linux/namespaces", r#"[{"type":"pid"}]"#, "linux.namespaces: a container shares no mount namespace"),
        ("/linux/namespaces", r#"[{"type":"mount"},{"type":"ipc"},{"type":"ipc"}]"#, "linux.namespaces[2]: ipc is listed twice"),
        ("/linux/sysctl", r#"{"vm.overcommit_memory":"1"}"#, "linux.sysctl[vm.overcommit_memory]: belongs to the whole host"),
        ("/linux/sysctl", r#"{"net.ipv4.ip_forward":"1"}"#, "linux.sysctl[net.ipv4.ip_forward]: would change the host's"),
        ("/linux/sysctl", r#"{"net.ipv4/../../../x":"1"}"#, "linux.sysctl[net.ipv4/../../../x]: is no name of a setting"),
        ("/linux/cgroupsPath", r#""/a/../..""#, "linux.cgroupsPath: must not hold"),
        ("/linux/resources/cpu/quota", "10", "linux.resources.cpu.quota: 10 µs"),
        ("/linux/resources/memory", r#"{"limit":10,"swap":5}"#, "linux.resources.memory.swap: 5 is memory and swap"),
        ("/linux/maskedPaths", r#"["proc"]"#, "linux.maskedPaths[0]: not an absolute path"),
        ("/mounts", r#"[{"destination":"/","type":"tmpfs"}]"#, "mounts[0].destination: is the root itself"),
        ("/mounts", r#"[{"destination":"/a","type":"bind"}]"#, "mounts[0].source: missing"),
        ("/mounts", r#"[{"destination":"/a","source":"/b","options":["bind","size=1"]}]"#, "mounts[0].options: \"size\" is no option"),
        ("/hooks", r#"{"prestart":[{"path":"bin/x"}]}"#, "hooks.prestart[0].path: \"bin/x\" is not an absolute path"),
        ("/hooks", r#"{"createRuntime":[{"path":"/x"},{"path":"/x","timeout":0}]}"#, "hooks.createRuntime[1].timeout: 0 s"),
        ("/hooks", r#"{"poststart":[{"path":"/x","env":["A"]}]}"#, "hooks.poststart[0].env[0]: \"A\" is not of the form"),
        ("/hooks", r#"{"poststop":[{"path":"/x","args":["a","\u0000"]}]}"#, "hooks.poststop[0].args[1]: holds a NUL byte"),
        ("/process/scheduler", r#"{"policy":"SCHED_X"}"#, "process.scheduler.policy: \"SCHED_X\""),
        ("/process/scheduler", r#"{"policy":"SCHED_ISO"}"#, "process.scheduler.policy: SCHED_ISO is reserved"),
        ("/process/scheduler", r#"{"policy":"SCHED_OTHER","nice":20}"#, "process.scheduler.nice: 20 is not between"),
        ("/process/scheduler", r#"{"policy":"SCHED_IDLE","nice":1}"#, "process.scheduler.nice: SCHED_IDLE knows none"),
        ("/process/scheduler", r#"{"policy":"SCHED_FIFO"}"#, "process.scheduler.priority: 0 is not between 1 and 99"),
        ("/process/scheduler", r#"{"policy":"SCHED_OTHER","priority":3}"#, "process.scheduler.priority: SCHED_OTHER knows none"),
        ("/process/scheduler", r#"{"policy":"SCHED_OTHER","period":3}"#, "process.scheduler.period: SCHED_OTHER knows none"),
        ("/process/scheduler", r#"{"policy":"SCHED_DEADLINE","runtime":3,"deadline":2}"#, "process.scheduler.runtime: 0 < runtime"),
        ("/process/scheduler", r#"{"policy":"SCHED_OTHER","flags":["X"]}"#, "process.scheduler.flags[0]: \"X\""),
        ("/process/ioPriority", r#"{"class":"X"}"#, "process.ioPriority.class: \"X\""),
        ("/process/ioPriority", r#"{"class":"IOPRIO_CLASS_BE","priority":8}"#, "process.ioPriority.priority: 8 is not between 0 and 7"),
        ("/process/execCPUAffinity", r#"{"initial":"0","final":"x"}"#, "process.execCPUAffinity.final: \"x\""),
        ("/linux/personality", r#"{"domain":"BSD"}"#, "linux.personality.domain: \"BSD\""),
        ("/linux/personality", r#"{"domain":"LINUX","flags":["F"]}"#, "linux.personality.flags[0]: \"F\""),
        ("/linux/memoryPolicy", r#"{"mode":"X"}"#, "linux.memoryPolicy.mode: \"X\""),
        ("/linux/memoryPolicy", r#"{"mode":"MPOL_BIND"}"#, "linux.memoryPolicy.nodes: missing: MPOL_BIND needs one"),
        ("/linux/memoryPolicy", r#"{"mode":"MPOL_LOCAL","nodes":"0"}"#, "linux.memoryPolicy.nodes: MPOL_LOCAL takes none"),
        ("/linux/memoryPolicy", r#"{"mode":"MPOL_BIND","nodes":"0-99999999"}"#, "linux.memoryPolicy.nodes: \"0-99999999\""),
        ("/linux/memoryPolicy", r#"{"mode":"MPOL_BIND","nodes":"0","flags":["F"]}"#, "linux.memoryPolicy.flags[0]: \"F\""),
        ("/process/apparmorProfile", r#""a\u0000""#, "process.apparmorProfile: holds a NUL byte"),
        ("/linux/resources/unified", r#"{"memory/high":"1"}"#, "linux.resources.unified[memory/high]: is no file"),
        ("/linux/resources/unified", r#"{"cgroup.procs":"1"}"#, "linux.resources.unified[cgroup.procs]: is for this runtime"),
        ("/linux/resources/unified", r#"{"..x":"1"}"#, "linux.resources.unified[..x]: is no file"),
        ("/linux/resources/blockIO", r#"{"weight":9}"#, "linux.resources.blockIO.weight: 9 is not between 10 and 1000"),
        (
            "/linux/resources/blockIO",
            r#"{"weightDevice":[{"major":1,"minor":2,"leafWeight":1001}]}"#,
            "linux.resources.blockIO.weightDevice[0].leafWeight: 1001",
        ),
        ("/linux/resources/memory/swappiness", "101", "linux.resources.memory.swappiness: 101 is not between"),
        ("/linux/resources/memory/kernel", "-2", "linux.resources.memory.kernel: is negative"),
        ("/linux/resources/cpu/idle", "2", "linux.resources.cpu.idle: 2 is neither"),
        ("/linux/resources/cpu/shares", "1", "linux.resources.cpu.shares: 1 is not between 2 and 262144"),
        ("/linux/resources/cpu/burst", "5", "linux.resources.cpu.burst: needs linux.resources.cpu.quota"),
        ("/linux/resources/cpu", r#"{"quota":5000,"burst":5001}"#, "linux.resources.cpu.burst: 5001 µs is above"),
        ("/linux/resources/cpu/realtimeRuntime", "-2", "linux.resources.cpu.realtimeRuntime: -2 µs"),
        ("/linux/resources/cpu/cpus", r#""0-a""#, "linux.resources.cpu.cpus: \"0-a\""),
        ("/linux/resources/cpu/mems", r#""3-1""#, "linux.resources.cpu.mems: \"3-1\""),
        (
            "/linux/resources/hugepageLimits",
            r#"[{"pageSize":"../2MB","limit":1}]"#,
            "linux.resources.hugepageLimits[0].pageSize: \"../2MB\"",
        ),
        ("/linux/resources/hugepageLimits", r#"[{"pageSize":"2TB","limit":1}]"#, "linux.resources.hugepageLimits[0].pageSize: \"2TB\""),
        (
            "/linux/resources/network",
            r#"{"priorities":[{"name":"a b","priority":1}]}"#,
            "linux.resources.network.priorities[0].name: \"a b\"",
        ),
        ("/linux/resources/rdma", r#"{"mlx0":{}}"#, "linux.resources.rdma[mlx0]: sets neither"),
        ("/linux/rootfsPropagation", r#""rshare""#, "linux.rootfsPropagation: \"rshare\" is none of"),
        ("/mounts", r#"[{"destination":"/a","source":"/b","options":["bind","idmap"]}]"#, "mounts[0].uidMappings: missing: without a user"),
        (
            "/mounts",
            r#"[{"destination":"/a","source":"/b","type":"bind","uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#,
            "mounts[0].gidMappings: missing: uidMappings needs it",
        ),
        (
            "/mounts",
            r#"[{"destination":"/a","type":"tmpfs","uidMappings":[{"containerID":0,"hostID":1,"size":1}],
            "gidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#,
            "mounts[0].options: idmap: only a bind mount",
        ),
        ("/mounts", r#"[{"destination":"/a","source":"/b","options":["bind","tmpcopyup"]}]"#, "mounts[0].options: tmpcopyup: only a tmpfs"),
        ("/mounts", r#"[{"destination":"./","type":"tmpfs"}]"#, "mounts[0].destination: is the root itself"),
        ("/linux/devices", r#"[{"path":"/dev/x","type":"q"}]"#, "linux.devices[0].type: \"q\""),
        ("/linux/intelRdt", r#"{"closID":"a/b"}"#, "linux.intelRdt.closID: \"a/b\""),
        ("/linux/intelRdt", r#"{"closID":".."}"#, "linux.intelRdt.closID: \"..\""),
        ("/linux/intelRdt", r#"{"closID":"mon_groups"}"#, "linux.intelRdt.closID: \"mon_groups\""),
        ("/linux/intelRdt", r#"{"memBwSchema":"L3:0=1"}"#, "linux.intelRdt.memBwSchema: \"L3:0=1\""),
        ("/linux/intelRdt", r#"{"memBwSchema":"MB:0=1\nL3:0=1"}"#, "linux.intelRdt.memBwSchema: "),
        ("/linux/intelRdt", r#"{"schemata":["L3:0=1","L2:0=1\n"]}"#, "linux.intelRdt.schemata[1]: "),
    ];
    for (pointer, value, expected) in cases {
        let text = refused(pointer, value);
        assert!(text.starts_with(expected), "{pointer} {value}: {text}");
    }
}

#[test]
fn what_the_machine_lacks_is_refused_by_name() {
    let cases = [
        ("/process/apparmorProfile", r#""p""#, "process.apparmorProfile: AppArmor is not enabled"),
        ("/process/selinuxLabel", r#""l""#, "process.selinuxLabel: SELinux is not enabled"),
        ("/linux/mountLabel", r#""l""#, "linux.mountLabel: SELinux is not enabled"),
        ("/linux/intelRdt", r#"{"closID":"x"}"#, "linux.intelRdt: this machine has no resctrl"),
    ];
    for (pointer, value, expected) in cases {
        let container = with(pointer, value).unwrap();
        let text = check_machine(&container, Machine::default()).unwrap_err()[0].to_string();
        assert!(text.starts_with(expected), "{pointer}: {text}");
        let all = Machine { apparmor: true, selinux: true, resctrl: true };
        assert!(check_machine(&container, all).is_ok(), "{pointer}");
    }
}

/// The older fields together, without the one's lines for the other, and `schemata` last.
#[test]
fn schemata_are_put_together() {
    let lines = |value: &str| with("/linux/intelRdt", value).unwrap().intel_rdt.unwrap().lines.join(" ");
    let older = r#""l3CacheSchema":"L3:0=f\nMB:0=10\nL3CODE:0=f","memBwSchema":"MB:0=20""#;
    assert_eq!(lines(&format!("{{{older}}}")), "L3:0=f L3CODE:0=f MB:0=20");
    assert_eq!(lines(&format!(r#"{{"schemata":["L2:0=1"],{older}}}"#)), "L3:0=f L3CODE:0=f MB:0=20 L2:0=1");
    assert_eq!(lines("{}"), "");
}

#[test]
fn every_refusal_is_told_at_once() {
    let spec = r#"{"ociVersion":"3.0.0","hooks":{"poststop":[{"path":"x"}]}}"#;
    let refusals = check(Path::new("/b"), &spec::parse(spec.as_bytes()).unwrap()).unwrap_err();
    let fields: Vec<_> = refusals.iter().map(|refusal| refusal.field.as_str()).collect();
    assert_eq!(fields, ["ociVersion", "root.path", "linux.namespaces", "process", "hooks.poststop[0].path"]);
}

/// The least configuration with a user namespace of the first hundred ids, and values at JSON pointers.
fn in_user_namespace(values: &[(&str, &str)]) -> String {
    let mut config: Value = serde_json::from_str(LEAST).unwrap();
    config["linux"]["namespaces"] = json!([{"type":"mount"},{"type":"user"}]);
    let ids = json!([{"containerID":0,"hostID":1000,"size":100}]);
    config["linux"]["uidMappings"] = ids.clone();
    config["linux"]["gidMappings"] = ids;
    for (pointer, value) in values {
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[last] = serde_json::from_str(value).unwrap();
    }
    match check(Path::new("/bundle"), &spec::parse(config.to_string().as_bytes()).unwrap()) {
        Ok(_) => String::new(),
        Err(refusals) => refusals.iter().map(Refusal::to_string).collect::<Vec<_>>().join("\n"),
    }
}

#[test]
fn mappings_are_checked() {
    assert_eq!(in_user_namespace(&[]), "");
    let uid = "/linux/uidMappings";
    let cases = [
        (uid, "[]", "linux.uidMappings: missing: a new user namespace"),
        (uid, r#"[{"containerID":1,"hostID":1,"size":1}]"#, "linux.uidMappings: maps no containerID 0"),
        (uid, r#"[{"containerID":0,"hostID":1,"size":0}]"#, "linux.uidMappings[0].size: is 0"),
        (uid, r#"[{"containerID":0,"hostID":4294967295,"size":2}]"#, "linux.uidMappings[0].hostID: 4294967295 and 2 more"),
        (
            uid,
            r#"[{"containerID":0,"hostID":1,"size":9},{"containerID":8,"hostID":20,"size":1}]"#,
            "linux.uidMappings[1].containerID: overlaps",
        ),
        (uid, r#"[{"containerID":0,"hostID":1,"size":9},{"containerID":9,"hostID":9,"size":1}]"#, "linux.uidMappings[1].hostID: overlaps"),
        ("/process/user", r#"{"uid":100}"#, "process.user.uid: 100 is not mapped by linux.uidMappings"),
        ("/process/user", r#"{"additionalGids":[7,200]}"#, "process.user.additionalGids[1]: 200 is not mapped by linux.gidMappings"),
        ("/linux/namespaces", r#"[{"type":"mount"}]"#, "linux.uidMappings: maps the ids of no namespace"),
        (
            "/linux/namespaces",
            r#"[{"type":"mount","path":"/proc/1/ns/mnt"},{"type":"user"}]"#,
            "linux.namespaces[0].path: the root would change",
        ),
    ];
    for (pointer, value, expected) in cases {
        let text = in_user_namespace(&[(pointer, value)]);
        assert!(text.starts_with(expected), "{pointer} {value}: {text}");
    }
    let many: Vec<String> = (0..341).map(|id| format!(r#"{{"containerID":{id},"hostID":{id},"size":1}}"#)).collect();
    assert!(in_user_namespace(&[(uid, &format!("[{}]", many.join(",")))]).starts_with("linux.uidMappings: 341 entries"));
}

#[test]
fn time_offsets_are_checked() {
    let time = ("/linux/namespaces", r#"[{"type":"mount"},{"type":"user"},{"type":"time"}]"#);
    let offsets = "/linux/timeOffsets";
    assert_eq!(in_user_namespace(&[time, (offsets, r#"{"monotonic":{"secs":-5},"boottime":{"nanosecs":1}}"#)]), "");
    assert!(
        in_user_namespace(&[(offsets, r#"{"boottime":{"secs":1}}"#)]).starts_with("linux.timeOffsets: shift the clocks of no namespace")
    );
    let text = in_user_namespace(&[time, (offsets, r#"{"realtime":{"secs":1}}"#)]);
    assert!(text.starts_with("linux.timeOffsets[realtime]: is no clock"), "{text}");
    let text = in_user_namespace(&[time, (offsets, r#"{"boottime":{"nanosecs":1000000000}}"#)]);
    assert!(text.starts_with("linux.timeOffsets[boottime].nanosecs: 1000000000 is a second"), "{text}");
}

/// A place in a configuration, by turns into its objects and arrays.
fn place<'a>(mut at: &'a mut Value, turns: &[usize]) -> &'a mut Value {
    for turn in turns {
        let count = match &*at {
            Value::Object(fields) => fields.len(),
            Value::Array(items) => items.len(),
            _ => 0,
        };
        if count == 0 {
            break;
        }
        at = match at {
            Value::Object(fields) => fields.values_mut().nth(turn % count).expect("within the count"),
            Value::Array(items) => &mut items[turn % count],
            _ => unreachable!("it has children"),
        };
    }
    at
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Whatever stands where, it is checked or refused, and never panics.
    #[test]
    fn no_value_at_any_place_panics(turns in proptest::collection::vec(0_usize..40, 1..6), which in 0_usize..14, length in 0_usize..5000) {
        let values = [
            json!(null), json!(true), json!(-1), json!(0), json!(u64::MAX), json!(i64::MIN), json!(1e300), json!(""), json!("x".repeat(length)),
            json!("\0"), json!("é:\u{1F600}=%n../"), json!([]), json!({}), json!([{"path": "../..", "type": 7}, [], "a=b"]),
        ];
        let mut spec: Value = serde_json::from_str(crate::core::template::TEXT).unwrap();
        *place(&mut spec, &turns) = values[which].clone();
        if let Ok(spec) = crate::core::spec::parse(spec.to_string().as_bytes()) {
            let _ = check(Path::new("/bundle"), &spec);
        }
    }
}
