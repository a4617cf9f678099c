//! User and time namespaces: ids, what the host's privileges are needed for, and what is left when it fails.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Stdio;
use std::time::Duration;

use common::{Bundle, eventually, namespace};
use serde_json::json;

const HOST: u32 = 200_000;

/// A bundle in a user namespace whose root stands for an ordinary user of the host; its files belong to it, and the host's other users
/// cannot reach its directory.
fn mapped(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.push("/linux/namespaces", json!({"type":"user"}));
    let ids = json!([{"containerID":0,"hostID":HOST,"size":65536}]);
    bundle.set("/linux/uidMappings", ids.clone()).set("/linux/gidMappings", ids);
    bundle.give_rootfs(HOST);
    bundle
}

#[test]
fn root_inside_is_a_user_outside() {
    let mut bundle =
        mapped("id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; touch /made; grep Groups /proc/self/status; sleep 1000");
    bundle.set("/root/readonly", json!(false));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let pid = bundle.pid();
    eventually("the file", || bundle.rootfs("made").exists().then_some(()));
    assert_eq!(fs::metadata(bundle.rootfs("made")).unwrap().uid(), HOST);
    assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), HOST);
    for kind in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind), "{kind}");
    }
    let joined = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(joined.lines().all(|line| line.ends_with(&format!(":/{}", bundle.id))), "{joined}");
    bundle.script("id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; grep Groups /proc/self/status");
    let printed = {
        bundle.ok(&["delete", "--force", &bundle.id]);
        bundle.prints()
    };
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "200000", "65536", "0", "200000", "65536", "Groups:"]);
}

#[test]
fn its_users_capabilities_and_limits_are_set() {
    let mut bundle = mapped("grep -E '^(CapEff|CapBnd|Uid|Gid|Groups|NoNew)' /proc/self/status; hostname; cat /proc/self/oom_score_adj");
    bundle.set("/process/user", json!({"uid":1000,"gid":1001,"additionalGids":[5,6]})).set("/hostname", json!("inside"));
    bundle.set(
        "/process/capabilities",
        json!({"bounding":["CAP_SYS_RESOURCE"],"effective":["CAP_SYS_RESOURCE"],
        "permitted":["CAP_SYS_RESOURCE"],"inheritable":["CAP_SYS_RESOURCE"],"ambient":["CAP_SYS_RESOURCE"]}),
    );
    bundle.set("/process/oomScoreAdj", json!(321));
    let expected = "Uid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001\nGroups:\t5 6 \nCapEff:\t0000000001000000\n\
        CapBnd:\t0000000001000000\nNoNewPrivs:\t1\ninside\n321";
    assert_eq!(bundle.prints(), expected);
}

#[test]
fn mounts_and_devices_work() {
    let mut bundle = mapped(
        "for d in null zero full random urandom tty; do stat -c '%n %F %t:%T' /dev/$d; done; head -c 2 /dev/zero | wc -c; \
         echo x > /dev/null && echo written; cat /bound/file; touch /bound/new 2>/dev/null || echo ro; grep -c . /proc/self/mounts > /dev/null; \
         ls /sys/class/net; ls -d /proc/self; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cd /sys/fs/cgroup; [ -d pids ] && cd pids; head -n 1 cgroup.procs; \
         cat /proc/kcore | wc -c; mknod /tmp-node c 1 3 2>/dev/null || echo no node",
    );
    // Reached through directories that only the host's root may enter.
    let private = bundle.path("private/deep");
    fs::create_dir_all(&private).unwrap();
    fs::write(private.join("file"), "bound\n").unwrap();
    fs::set_permissions(bundle.path("private"), fs::Permissions::from_mode(0o700)).unwrap();
    bundle.push("/mounts", json!({"destination":"/bound","source":"private/deep","type":"bind","options":["rbind","ro"]}));
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start":"80"}));
    let printed = bundle.prints();
    let expected = "/dev/null character special file 1:3\n/dev/zero character special file 1:5\n/dev/full character special file 1:7\n\
        /dev/random character special file 1:8\n/dev/urandom character special file 1:9\n/dev/tty character special file 5:0\n2\nwritten\n\
        bound\nro\nlo\n/proc/self\n80\n1\n0\nno node";
    assert_eq!(printed, expected);
}

#[test]
fn a_device_that_is_not_the_hosts_is_refused() {
    let mut bundle = mapped("true");
    bundle.set("/linux/devices", json!([{"path":"/dev/full","type":"c","major":1,"minor":11}]));
    let error = bundle.create_fails();
    assert!(error.contains("linux.devices: bind the host's /dev/full: the host's is another device"), "{error}");
}

#[test]
fn a_user_namespace_is_joined_with_what_belongs_to_it() {
    let first = mapped("sleep 1000");
    first.create();
    let of_first = first.pid().to_string();
    let mut second = mapped("id -u; sleep 1000");
    let path = |kind: &str| format!("/proc/{of_first}/ns/{kind}");
    second.set(
        "/linux/namespaces",
        json!([{"type":"mount"},{"type":"cgroup"},{"type":"user","path":path("user")},{"type":"pid","path":path("pid")},
            {"type":"network","path":path("net")},{"type":"ipc","path":path("ipc")},{"type":"uts","path":path("uts")}]),
    );
    second.config.as_object_mut().unwrap().remove("hostname");
    second.create();
    let of_second = second.pid().to_string();
    for kind in ["user", "pid", "net", "ipc", "uts"] {
        assert_eq!(namespace(&of_second, kind), namespace(&of_first, kind), "{kind}");
    }
    assert_ne!(namespace(&of_second, "mnt"), namespace(&of_first, "mnt"));
    assert_eq!(fs::metadata(format!("/proc/{of_second}")).unwrap().uid(), HOST);
    second.ok(&["delete", "--force", &second.id]);
    second.set("/linux/uidMappings", json!([{"containerID":0,"hostID":1,"size":65536}]));
    let error = second.create_fails();
    assert!(error.contains("linux.uidMappings: that namespace maps 0 200000 65536 instead"), "{error}");
}

#[test]
fn a_network_of_the_hosts_is_joined_from_a_user_namespace() {
    let outer = Bundle::new("sleep 1000");
    outer.create();
    let path = format!("/proc/{}/ns/net", outer.pid());
    let mut bundle = mapped("readlink /proc/self/ns/net");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type":"network","path":path}));
    // The network is not the user namespace's, so its sysfs is not either.
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/sys" && mount["type"] != "cgroup");
    assert_eq!(bundle.prints(), namespace(&outer.pid().to_string(), "net"));
}

#[test]
fn clocks_are_shifted() {
    for user in [false, true] {
        let mut bundle = if user { mapped("cat /proc/uptime") } else { Bundle::new("cat /proc/uptime") };
        bundle.push("/linux/namespaces", json!({"type":"time"}));
        bundle.set("/linux/timeOffsets", json!({"boottime":{"secs":100_000_000,"nanosecs":5},"monotonic":{"secs":7}}));
        let printed = bundle.prints();
        assert!(is_shifted(&printed), "{user} {printed}");
    }
}

/// Whether this `/proc/uptime` is of a host that was started 100,000,000 s earlier.
fn is_shifted(uptime: &str) -> bool {
    let seconds = |uptime: &str| uptime.split(' ').next().unwrap().parse::<f64>().unwrap();
    let host = seconds(&fs::read_to_string("/proc/uptime").unwrap());
    (99_999_900.0..100_000_100.0).contains(&(seconds(uptime) - host))
}

#[test]
fn a_time_namespace_is_joined() {
    let mut first = Bundle::new("sleep 1000");
    first.push("/linux/namespaces", json!({"type":"time"})).set("/linux/timeOffsets", json!({"boottime":{"secs":100_000_000}}));
    first.create();
    let pid = first.pid().to_string();
    assert_ne!(namespace(&pid, "time"), namespace("self", "time"));
    let mut second = Bundle::new("cat /proc/uptime; readlink /proc/self/ns/time");
    second.push("/linux/namespaces", json!({"type":"time","path":format!("/proc/{pid}/ns/time")}));
    let printed = second.prints();
    assert!(is_shifted(&printed), "{printed}");
    assert!(printed.ends_with(&namespace(&pid, "time")), "{printed}");
}

#[test]
fn what_fails_on_the_way_leaves_nothing() {
    // The kernel has the last word on an offset: time would begin before the machine.
    let mut bundle = mapped("true");
    bundle.push("/linux/namespaces", json!({"type":"time"})).set("/linux/timeOffsets", json!({"boottime":{"secs":-1_000_000_000}}));
    let error = bundle.create_fails();
    assert!(error.contains("linux.timeOffsets") && error.contains("boottime -1000000000 0"), "{error}");
    // Before the user namespace, after it, and in the child.
    let mut bundle = mapped("true");
    bundle.push("/linux/namespaces", json!({"type":"time","path":"/proc/self/ns/uts"}));
    assert!(bundle.create_fails().contains("join the time namespace"));
    let mut bundle = mapped("true");
    bundle.push("/mounts", json!({"destination":"/x","source":"missing","type":"bind","options":["bind"]}));
    assert!(bundle.create_fails().contains("mounts[7].source: copy the mount of"));
    let mut bundle = mapped("true");
    bundle.push("/mounts", json!({"destination":"/bin/x","type":"tmpfs","options":["mode=nonsense"]}));
    assert!(bundle.create_fails().contains("mounts[7]: mount tmpfs at /bin/x"));
    let mut bundle = mapped("true");
    bundle.set("/process/args", json!(["missing"]));
    assert!(bundle.create_fails().contains("process.args[0]: find \"missing\""));
    // An image whose files are another's.
    let bundle = mapped("true");
    fs::set_permissions(bundle.rootfs("bin"), fs::Permissions::from_mode(0o700)).unwrap();
    chown(bundle.rootfs("bin"), Some(0), Some(0)).unwrap();
    assert!(bundle.create_fails().contains("process.args[0]: find \"sh\""));
}

#[test]
fn a_process_is_executed_in_it() {
    let mut bundle = mapped("sleep 1000");
    bundle.push("/linux/namespaces", json!({"type":"time"})).set("/linux/timeOffsets", json!({"boottime":{"secs":100_000_000}}));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let script = "id -u; id -g; cat /proc/self/uid_map; readlink /proc/self/ns/user; readlink /proc/self/ns/time";
    let printed = bundle.ok(&["exec", &bundle.id, "sh", "-c", script]);
    let words: Vec<&str> = printed.split_whitespace().collect();
    let pid = bundle.pid().to_string();
    assert_eq!(words, ["0", "0", "0", "200000", "65536", &namespace(&pid, "user"), &namespace(&pid, "time")]);
    let uptime = bundle.ok(&["exec", &bundle.id, "cat", "/proc/uptime"]);
    assert!(is_shifted(&uptime), "{uptime}");
    let printed = bundle.ok(&["exec", "--user", "7:8", "--additional-gids", "9", &bundle.id, "id"]);
    assert_eq!(printed.trim(), "uid=7 gid=8 groups=9");
}

#[test]
fn a_terminal_in_it() {
    let mut bundle = mapped("tty; stat -c %u $(tty); stat -c %t /dev/console; stty size");
    for applet in ["tty", "stty"] {
        std::os::unix::fs::symlink("busybox", bundle.rootfs("bin").join(applet)).unwrap();
    }
    bundle.give_rootfs(HOST);
    bundle.set("/process/terminal", json!(true)).set("/process/consoleSize", json!({"height":40,"width":100}));
    assert_eq!(bundle.prints().replace('\r', ""), "/dev/pts/0\n0\n88\n40 100");
}

/// Whoever kills the runtime at any moment: what is left is removed by `delete --force`, and nothing waits for a parent that is gone.
#[test]
fn a_killed_creation_is_deleted() {
    let mut bundle = mapped("true");
    bundle.set("/hooks", json!({"prestart":[{"path":"/bin/true"}],"createContainer":[{"path":"/bin/true"}]}));
    bundle.write();
    for step in 0..30 {
        let mut run = bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Some are killed on the way, some have ended.
        std::thread::sleep(Duration::from_millis(step));
        run.kill().unwrap();
        run.wait().unwrap();
        bundle.ok(&["delete", "--force", &bundle.id]);
        eventually("all is gone", || bundle.nothing_is_left().then_some(()));
    }
}
