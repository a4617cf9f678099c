//! What `process` and `linux` say of how the container's program is run: scheduling, memory, personality, labels, kernel settings.

mod common;

use std::process::Command;

use common::{Bundle, tool};
use serde_json::{Value, json};

/// Fields of proc_pid_stat(5), counted from 1: nice, real-time priority, policy.
fn scheduling(stat: &str) -> [i64; 3] {
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    [19, 40, 41].map(|number: usize| fields[number - 3].trim().parse().unwrap())
}

#[test]
fn schedulers() {
    let mut bundle = Bundle::new("cat /proc/self/stat");
    let cases = [
        (json!({"policy":"SCHED_OTHER","nice":5}), [5, 0, 0]),
        (json!({"policy":"SCHED_OTHER","nice":-5}), [-5, 0, 0]),
        (json!({"policy":"SCHED_BATCH","nice":7,"flags":["SCHED_FLAG_RESET_ON_FORK"]}), [7, 0, 3]),
    ];
    for (scheduler, expected) in cases {
        bundle.set("/process/args", json!(["cat", "/proc/self/stat"])).set("/process/scheduler", scheduler.clone());
        assert_eq!(scheduling(&bundle.prints()), expected, "{scheduler}");
    }
    // Idle is below every nice value, and the one before stays.
    bundle.set("/process/scheduler", json!({"policy":"SCHED_IDLE"}));
    assert_eq!(scheduling(&bundle.prints())[2], 5);
    // The container's user need not hold the privilege that raising it takes.
    bundle.set("/process/scheduler", json!({"policy":"SCHED_OTHER","nice":-5})).set("/process/user", json!({"uid":7,"gid":7}));
    bundle.config["process"].as_object_mut().unwrap().remove("capabilities");
    assert_eq!(scheduling(&bundle.prints()), [-5, 0, 0]);
}

/// What the kernel does not let this machine do is told by the field's name, and undone.
#[test]
fn a_scheduler_the_kernel_refuses_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    // More than the whole machine's time.
    bundle.set("/process/scheduler", json!({"policy":"SCHED_DEADLINE","runtime":1u64 << 40,"deadline":1u64 << 40,"period":1u64 << 40}));
    let error = bundle.create_fails();
    assert!(error.contains("process.scheduler: set SCHED_DEADLINE"), "{error}");
}

#[test]
fn io_priorities() {
    for (class, priority, expected) in
        [("IOPRIO_CLASS_BE", 3, "best-effort: prio 3"), ("IOPRIO_CLASS_IDLE", 0, "idle"), ("IOPRIO_CLASS_RT", 7, "realtime: prio 7")]
    {
        let mut bundle = Bundle::new("busybox ionice -p $$");
        bundle.set("/process/ioPriority", json!({"class":class,"priority":priority}));
        assert_eq!(bundle.prints(), expected);
    }
}

#[test]
fn processors_of_what_is_executed_later() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/process/execCPUAffinity", json!({"initial":"0","final":"1"})).set("/root/readonly", json!(false));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let allowed = |args: &[&str]| {
        let grep = ["grep", "Cpus_allowed_list", "/proc/self/status"];
        let call: Vec<&str> = ["exec"].iter().chain(args).chain([&bundle.id.as_str()]).chain(&grep).copied().collect();
        bundle.ok(&call).split_whitespace().last().unwrap().to_owned()
    };
    assert_eq!(allowed(&[]), "1");
    // Not the container's own process.
    let own = std::fs::read_to_string(format!("/proc/{}/status", bundle.pid())).unwrap();
    assert!(!own.contains("Cpus_allowed_list:\t1\n"), "{own}");
    let process = bundle.path("process.json");
    let write = |affinity: Value| {
        let process =
            json!({"cwd":"/","args":["grep","Cpus_allowed_list","/proc/self/status"],"env":["PATH=/bin"],"execCPUAffinity":affinity});
        std::fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    };
    let exec = ["exec", "--process", process.to_str().unwrap(), &bundle.id];
    write(json!({"initial":"0"}));
    assert!(bundle.ok(&exec).ends_with("\t0\n"));
    write(json!({"final":"0-1"}));
    assert!(bundle.ok(&exec).ends_with("\t0-1\n"));
    write(json!({"final":"4000"}));
    assert!(bundle.fails(&exec).contains("process.execCPUAffinity.final: run on [4000]"));
    write(json!({"final":"1-0"}));
    assert!(bundle.fails(&exec).contains("process.execCPUAffinity.final: \"1-0\""));
}

#[test]
fn personalities() {
    let mut bundle = Bundle::new("busybox uname -m; cat /proc/self/personality");
    bundle.set("/linux/personality", json!({"domain":"LINUX"}));
    let machine = bundle.prints();
    assert!(machine.ends_with("\n00000000"), "{machine}");
    bundle.set("/linux/personality", json!({"domain":"LINUX32"}));
    let machine32 = bundle.prints();
    assert!(machine32.ends_with("\n00000008"), "{machine32}");
    if cfg!(target_arch = "x86_64") {
        assert!(machine.starts_with("x86_64") && machine32.starts_with("i686"), "{machine} {machine32}");
    }
}

#[test]
fn memory_policies() {
    let mut bundle = Bundle::new("head -n 1 /proc/self/numa_maps");
    for (policy, expected) in [
        (json!({"mode":"MPOL_BIND","nodes":"0"}), "bind:0"),
        (json!({"mode":"MPOL_INTERLEAVE","nodes":"0","flags":["MPOL_F_STATIC_NODES"]}), "interleave=static:0"),
        (json!({"mode":"MPOL_PREFERRED","nodes":"0"}), "prefer:0"),
        (json!({"mode":"MPOL_LOCAL"}), "local"),
        (json!({"mode":"MPOL_DEFAULT"}), "default"),
    ] {
        bundle.set("/linux/memoryPolicy", policy.clone());
        let printed = bundle.prints();
        assert_eq!(printed.split(' ').nth(1), Some(expected), "{policy}");
    }
    bundle.set("/linux/memoryPolicy", json!({"mode":"MPOL_BIND","nodes":"63"}));
    assert!(bundle.create_fails().contains("linux.memoryPolicy: set MPOL_BIND of nodes [63]"));
}

/// Without the security module, a container that asks for confinement is refused, here and by runc.
#[test]
fn labels_without_their_module_are_refused() {
    let fields = [
        ("/process/apparmorProfile", json!("none-such"), "/sys/module/apparmor/parameters/enabled"),
        ("/process/selinuxLabel", json!("system_u:system_r:x_t:s0"), "/sys/fs/selinux/enforce"),
        ("/linux/mountLabel", json!("system_u:object_r:x_t:s0"), "/sys/fs/selinux/enforce"),
        ("/linux/intelRdt", json!({"closID":"x","l3CacheSchema":"L3:0=1"}), "/sys/fs/resctrl/schemata"),
    ];
    for (pointer, value, module) in fields {
        if std::path::Path::new(module).exists() {
            continue;
        }
        let mut bundle = Bundle::new("true");
        bundle.set(pointer, value);
        let error = bundle.create_fails();
        assert!(error.contains(&pointer[1..].replace('/', ".")), "{error}");
        if let Some(runc) = tool("runc") {
            let mut command = Command::new(runc);
            let output =
                command.arg("--root").arg(bundle.path("runc")).args(["run", "--bundle"]).arg(bundle.path("")).arg(&bundle.id).output();
            assert!(!output.unwrap().status.success(), "runc runs {pointer}");
        }
    }
}

#[test]
fn an_empty_label_asks_for_nothing() {
    let mut bundle = Bundle::new("echo ran");
    bundle.set("/process/apparmorProfile", json!("")).set("/process/selinuxLabel", json!("")).set("/linux/mountLabel", json!(""));
    bundle.set("/linux/intelRdt", Value::Null);
    assert_eq!(bundle.prints(), "ran");
}

#[test]
fn settings_of_a_joined_namespace_that_is_the_hosts_are_refused() {
    let before = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let mut bundle = Bundle::new("true");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type":"network","path":"/proc/self/ns/net"}));
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start":"7"}));
    let error = bundle.create_fails();
    assert!(error.contains("linux.sysctl[net.ipv4.ip_unprivileged_port_start]: would change the host's"), "{error}");
    assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(), before);
    let mut bundle = Bundle::new("true");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "uts");
    namespaces.push(json!({"type":"uts","path":"/proc/self/ns/uts"}));
    bundle.set("/hostname", json!("taken"));
    assert!(bundle.create_fails().contains("hostname: would change the host's"));
}
