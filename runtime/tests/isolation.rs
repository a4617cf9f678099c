//! What a container sees and may do: namespaces, mounts, devices, capabilities, limits, and the ways out that must be shut.

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use common::{Bundle, eventually, namespace};
use serde_json::json;

#[test]
fn namespaces_are_its_own() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create();
    let pid = bundle.pid().to_string();
    for kind in ["pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(&pid, kind), namespace("self", kind), "{kind}");
    }
}

#[test]
fn namespaces_are_joined_by_path() {
    let first = Bundle::new("sleep 1000");
    first.create();
    let of_first = first.pid().to_string();
    let mut second = Bundle::new("sleep 1000");
    let path = |kind: &str| format!("/proc/{of_first}/ns/{kind}");
    second.set(
        "/linux/namespaces",
        json!([{"type":"mount"},{"type":"cgroup"},{"type":"pid","path":path("pid")},{"type":"network","path":path("net")},
            {"type":"ipc","path":path("ipc")},{"type":"uts","path":path("uts")}]),
    );
    second.config.as_object_mut().unwrap().remove("hostname");
    second.create();
    let of_second = second.pid().to_string();
    for kind in ["pid", "net", "ipc", "uts"] {
        assert_eq!(namespace(&of_second, kind), namespace(&of_first, kind), "{kind}");
    }
    assert_ne!(namespace(&of_second, "mnt"), namespace(&of_first, "mnt"));
}

#[test]
fn hostname_and_loopback() {
    let mut bundle =
        Bundle::new("hostname; cat /proc/sys/kernel/domainname; cat /sys/class/net/lo/operstate; cat /sys/class/net/lo/flags; hostname");
    bundle.set("/hostname", json!("web-1")).set("/domainname", json!("lan"));
    assert_eq!(bundle.prints(), "web-1\nlan\nunknown\n0x9\nweb-1");
}

#[test]
fn masked_and_readonly_paths() {
    let mut bundle = Bundle::new(
        "cat /secret/file | wc -c; ls /hidden | wc -l; touch /hidden/x 2>/dev/null || echo no; echo y > /kept/file 2>/dev/null || echo no; \
         cat /kept/file; echo x > /proc/sys/kernel/hostname 2>/dev/null || echo no",
    );
    for (dir, text) in [("secret", "secret"), ("hidden", "hidden"), ("kept", "kept\n")] {
        fs::create_dir(bundle.rootfs(dir)).unwrap();
        fs::write(bundle.rootfs(dir).join("file"), text).unwrap();
    }
    bundle.set("/root/readonly", json!(false));
    bundle.push("/linux/maskedPaths", json!("/secret/file")).push("/linux/maskedPaths", json!("/hidden"));
    bundle.push("/linux/maskedPaths", json!("/not/there")).push("/linux/readonlyPaths", json!("/kept"));
    assert_eq!(bundle.prints(), "0\n0\nno\nno\nkept\nno");
}

#[test]
fn a_readonly_root_is_not_written() {
    let mut bundle = Bundle::new("touch /new 2>/dev/null || echo no");
    assert_eq!(bundle.prints(), "no");
    bundle.set("/root/readonly", json!(false));
    assert_eq!(bundle.prints(), "");
    assert!(bundle.rootfs("new").exists());
}

#[test]
fn capabilities_user_and_privileges() {
    let mut bundle = Bundle::new("grep -E '^(Cap|NoNew|Uid|Gid|Groups)' /proc/self/status; umask; env | grep HOME");
    let set = json!(["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
    bundle.set("/process/user", json!({"uid":1000,"gid":1001,"additionalGids":[5,6],"umask":63}));
    bundle.set("/process/capabilities", json!({"bounding":set,"effective":set,"permitted":set,"inheritable":set,"ambient":set}));
    let expected = "Uid:\t1000\t1000\t1000\t1000\nGid:\t1001\t1001\t1001\t1001\nGroups:\t5 6 \nCapInh:\t0000000000000420\n\
        CapPrm:\t0000000000000420\nCapEff:\t0000000000000420\nCapBnd:\t0000000000000420\nCapAmb:\t0000000000000420\nNoNewPrivs:\t1\n0077\nHOME=/";
    assert_eq!(bundle.prints(), expected);
    // The shell's exec as another user without ambient capabilities leaves none but the bounding ones.
    bundle.set("/process/capabilities", json!({"bounding":set,"effective":set,"permitted":set}));
    bundle.set("/process/noNewPrivileges", json!(false));
    let expected = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000420";
    let printed = bundle.prints();
    assert!(printed.contains(expected) && printed.contains("NoNewPrivs:\t0"), "{printed}");
}

#[test]
fn without_capabilities_there_are_none() {
    let mut bundle = Bundle::new("grep ^Cap /proc/self/status | grep -v 0000000000000000; true");
    bundle.config["process"].as_object_mut().unwrap().remove("capabilities");
    assert_eq!(bundle.prints(), "");
}

#[test]
fn a_capability_the_runtime_lacks_is_left_out_with_a_warning() {
    let held = fs::read_to_string("/proc/self/status").unwrap();
    let held = held.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap().trim();
    let lacks_resource = u64::from_str_radix(held, 16).unwrap() >> 24 & 1 == 0;
    let mut bundle = Bundle::new("grep CapBnd /proc/self/status");
    let set = json!(["CAP_KILL", "CAP_SYS_RESOURCE"]);
    bundle.set("/process/capabilities", json!({"bounding":set,"effective":set,"permitted":set}));
    let (stdout, stderr, code) = bundle.run();
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(stdout, if lacks_resource { "CapBnd:\t0000000000000020" } else { "CapBnd:\t0000000001000020" });
    assert_eq!(stderr.contains("CAP_SYS_RESOURCE not granted"), lacks_resource, "{stderr}");
}

#[test]
fn rlimits_and_oom_score() {
    let mut bundle = Bundle::new("grep 'Max open files' /proc/self/limits; cat /proc/self/oom_score_adj");
    bundle.set("/process/rlimits", json!([{"type":"RLIMIT_NOFILE","soft":77,"hard":88}])).set("/process/oomScoreAdj", json!(321));
    let printed = bundle.prints();
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!(words, ["Max", "open", "files", "77", "88", "files", "321"]);
}

#[test]
fn devices_and_links() {
    let mut bundle = Bundle::new(
        "for d in null zero full random urandom tty own; do stat -c '%n %F %t:%T %a %u' /dev/$d; done; \
         for l in fd stdin stdout stderr core ptmx; do readlink /dev/$l; done; \
         head -c 2 /dev/zero | wc -c; echo x > /dev/null && echo written; head -c 1 /dev/own 2>/dev/null || echo denied",
    );
    bundle.set("/linux/devices", json!([{"path":"/dev/own","type":"c","major":1,"minor":11,"fileMode":384,"uid":7,"gid":8}]));
    let expected = "/dev/null character special file 1:3 666 0\n/dev/zero character special file 1:5 666 0\n\
        /dev/full character special file 1:7 666 0\n/dev/random character special file 1:8 666 0\n\
        /dev/urandom character special file 1:9 666 0\n/dev/tty character special file 5:0 666 0\n\
        /dev/own character special file 1:b 600 7\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\nCORE\
        pts/ptmx\n2\nwritten\ndenied";
    // A kernel need not have it.
    let core = if std::path::Path::new("/proc/kcore").exists() { "/proc/kcore\n" } else { "" };
    assert_eq!(bundle.prints(), expected.replace("CORE", core));
}

#[test]
fn a_user_may_open_its_outputs() {
    let mut bundle = Bundle::new("echo opened > /dev/stdout");
    bundle.set("/process/user", json!({"uid":1000,"gid":1000}));
    assert_eq!(bundle.prints(), "opened");
}

#[test]
fn mounts_and_their_options() {
    let mut bundle = Bundle::new(
        "cat /data/file; echo x > /data/file 2>/dev/null || echo ro; cat /etc/one; grep -E ' (/data|/scratch) ' /proc/self/mounts; \
         grep -o ' /data .*' /proc/self/mountinfo | grep -c -E 'shared|master'; stat -c %a /scratch",
    );
    fs::create_dir(bundle.path("data")).unwrap();
    fs::write(bundle.path("data/file"), "data\n").unwrap();
    fs::write(bundle.path("one"), "one\n").unwrap();
    fs::create_dir(bundle.rootfs("etc")).unwrap();
    fs::create_dir(bundle.rootfs("run")).unwrap();
    // As in many images: a link to a file that is not there yet.
    symlink("../run/one", bundle.rootfs("etc/one")).unwrap();
    bundle.push("/mounts", json!({"destination":"/data","source":"data","options":["rbind","ro","nosuid","nodev","noexec","rprivate"]}));
    bundle.push("/mounts", json!({"destination":"/etc/one","source":"one","type":"bind","options":["ro"]}));
    bundle.push("/mounts", json!({"destination":"/scratch","source":"tmpfs","type":"tmpfs","options":["size=64k","mode=711","noexec"]}));
    let printed = bundle.prints();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[..3], ["data", "ro", "one"], "{printed}");
    assert!(lines[3].contains(" /data ") && lines[3].contains(" ro,nosuid,nodev,noexec"), "{printed}");
    assert!(lines[4].contains(" /scratch tmpfs rw,noexec") && lines[4].contains("size=64k"), "{printed}");
    assert_eq!(lines[5..], ["0", "711"], "{printed}");
    assert!(bundle.rootfs("run/one").exists(), "the link's target was made inside the root");
}

#[test]
fn a_link_cannot_lead_a_mount_out_of_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new("grep -c caught /proc/self/mountinfo; ls /escape");
    symlink(outside.path(), bundle.rootfs("escape")).unwrap();
    let climb = format!("{}{}", "../".repeat(20), outside.path().strip_prefix("/").unwrap().display());
    symlink(climb, bundle.rootfs("climb")).unwrap();
    fs::write(bundle.path("caught"), "").unwrap();
    fs::write(outside.path().join("there"), "").unwrap();
    bundle.push("/mounts", json!({"destination":"/escape/made","source":"caught","options":["bind"]}));
    bundle.push("/mounts", json!({"destination":"/escape/there","source":"caught","options":["bind"]}));
    bundle.push("/mounts", json!({"destination":"/climb/deep/made","type":"tmpfs","source":"t"}));
    assert_eq!(bundle.prints(), "2\ndeep\nmade\nthere");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "something was made outside the root");
    assert!(bundle.rootfs("").join(outside.path().strip_prefix("/").unwrap()).join("deep").is_dir());
}

#[test]
fn proc_is_not_mounted_over_a_link() {
    let bundle = Bundle::new("true");
    fs::create_dir(bundle.rootfs("elsewhere")).unwrap();
    symlink("elsewhere", bundle.rootfs("proc")).unwrap();
    let error = bundle.create_fails();
    assert!(error.contains("mounts[0].destination") && error.contains("symbolic link"), "{error}");
}

#[test]
fn descriptors_do_not_leak() {
    let bundle = Bundle::new("ls /proc/$$/fd; true");
    bundle.write();
    // A descriptor of the caller that is not closed at exec must not reach the container.
    let leaked = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    assert_eq!(bundle.prints(), "0\n1\n2");
}

#[test]
fn no_signal_is_ignored_or_blocked() {
    let bundle = Bundle::new("exec grep -E '^Sig(Blk|Ign)' /proc/self/status");
    assert_eq!(bundle.prints(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000");
}

#[test]
fn a_directory_outside_the_root_is_refused() {
    // The caller's, which is not closed at exec, leads out for sure.
    let leaked = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    for descriptor in (3..24).chain([leaked.as_raw_fd()]) {
        let mut bundle = Bundle::new("pwd");
        bundle.set("/process/cwd", json!(format!("/proc/self/fd/{descriptor}")));
        let error = bundle.create_fails();
        assert!(error.contains("process.cwd"), "{descriptor}: {error}");
    }
}

#[test]
fn the_directory_is_made_and_entered() {
    let mut bundle = Bundle::new("pwd");
    bundle.set("/process/cwd", json!("/srv/app"));
    assert_eq!(bundle.prints(), "/srv/app");
}

#[test]
fn kernel_settings_of_its_namespaces() {
    let mut bundle = Bundle::new("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax");
    let host = fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start":"80","kernel.msgmax":"4242"}));
    assert_eq!(bundle.prints(), "80\n4242");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(), host);
}

#[test]
fn limits_are_written_and_every_hierarchy_is_joined() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.set("/linux/resources/cpu", json!({"shares":512,"quota":50000,"period":100_000,"cpus":"0"}));
    bundle
        .set("/linux/resources/memory", json!({"limit":67_108_864,"reservation":33_554_432}))
        .set("/linux/resources/pids", json!({"limit":20}));
    bundle.create();
    assert!(["50000", "50000 100000"].contains(&bundle.cgroup_file(&["cpu.cfs_quota_us", "cpu.max"]).as_str()));
    assert_eq!(bundle.cgroup_file(&["memory.limit_in_bytes", "memory.max"]), "67108864");
    assert_eq!(bundle.cgroup_file(&["memory.soft_limit_in_bytes", "memory.low"]), "33554432");
    assert_eq!(bundle.cgroup_file(&["pids.max"]), "20");
    assert_eq!(bundle.cgroup_file(&["cpuset.cpus"]), "0");
    let joined = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    assert!(joined.lines().all(|line| line.ends_with(&format!(":/{}", bundle.id))), "{joined}");
    assert_eq!(bundle.cgroups().len(), joined.lines().count());
}

#[test]
fn forks_stop_at_the_pids_limit() {
    let mut bundle = Bundle::new("for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; echo all");
    bundle.set("/linux/resources/pids", json!({"limit":4}));
    let (stdout, stderr, code) = bundle.run();
    assert_ne!(code, 0, "{stdout}");
    assert!(stderr.contains("can't fork"), "{stderr}");
}

#[test]
fn cgroups_are_seen_from_inside_and_read_only() {
    let mut bundle = Bundle::new(
        "cat /proc/self/cgroup; cd /sys/fs/cgroup; [ -d pids ] && cd pids; head -n 1 cgroup.procs; mkdir x 2>/dev/null || echo ro",
    );
    let printed = bundle.prints();
    let (own, rest): (Vec<&str>, Vec<&str>) = printed.lines().partition(|line| line.contains(':'));
    assert!(!own.is_empty() && own.iter().all(|line| line.ends_with(":/")), "{printed}");
    assert_eq!(rest, ["1", "ro"], "{printed}");
    // Without a cgroup namespace the container's own cgroup is bound there instead.
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "cgroup");
    let printed = bundle.prints();
    assert!(printed.lines().any(|line| line.ends_with(&bundle.id)) && printed.ends_with("1\nro"), "{printed}");
}

/// With version 1 out of sight, in a mount namespace of the test's own, version 2 is all there is and a BPF program filters devices.
#[test]
fn version_2_alone_filters_devices() {
    let mut bundle = Bundle::new(
        "cat /proc/self/cgroup | grep ^0:; head -c 1 /dev/zero | wc -c; head -c 1 /dev/own 2>/dev/null || echo denied; ls /sys/fs/cgroup",
    );
    bundle.set("/linux/devices", json!([{"path":"/dev/own","type":"c","major":1,"minor":11}]));
    bundle.write();
    let hidden = "for at in $(grep ' - cgroup cgroup ' /proc/self/mountinfo | cut -d' ' -f5); do umount $at; done; exec \"$@\"";
    let run = bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
    let mut unshared = std::process::Command::new("unshare");
    unshared.args(["--mount", "sh", "-ec", hidden, "sh"]).arg(run.get_program()).args(run.get_args());
    let output = unshared.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines.get(..3), Some(["0::/", "1", "denied"].as_slice()), "{stdout}{stderr}");
    assert!(lines[3..].contains(&"cgroup.procs"), "version 2 stands at the mount point itself: {stdout}");
    assert_eq!(bundle.cgroups(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn out_of_memory_is_the_containers_own_trouble() {
    let mut bundle = Bundle::new("dd if=/dev/zero of=/dev/null bs=64M count=1");
    bundle.set("/linux/resources/memory", json!({"limit":8_388_608}));
    assert_eq!(bundle.run().2, 137);
    eventually("nothing left", || bundle.cgroups().is_empty().then_some(()));
}
