//! `hostname`, `linux.namespaces`, user namespaces, devices, masked paths, kernel settings, cgroup paths, seccomp.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::common::{Bundle, eventually, namespace};
use crate::engine::{Case, Kind, check, check_prepared, check_with, refused, same};

const KINDS: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];

/// Which of the namespaces are the host's.
const WHOSE: &str = "for n in cgroup ipc mnt net pid uts user; do h=$(eval echo \\$H_$n); \
    [ \"$(readlink /proc/self/ns/$n)\" = \"$h\" ] && echo $n the same || echo $n its own; done; ls /proc/self/ns";

/// Tells the container what the names of a process' namespaces are.
fn tell(bundle: &mut Bundle, pid: &str) {
    for kind in KINDS.into_iter().chain(["user"]) {
        bundle.push("/process/env", json!(format!("H_{kind}={}", namespace(pid, kind))));
    }
}

#[test]
fn new_namespaces() {
    let without = |kinds: &[&str]| {
        let mut edits: serde_json::Map<String, Value> =
            kinds.iter().map(|kind| (format!("/linux/namespaces/-{kind}"), Value::Null)).collect();
        if kinds.contains(&"uts") {
            edits.insert("/hostname".into(), Value::Null);
        }
        Value::Object(edits)
    };
    check_prepared(
        |bundle| tell(bundle, "self"),
        [
            same("all", json!({}), WHOSE),
            same("but uts", without(&["uts"]), WHOSE),
            same("but pid", without(&["pid"]), WHOSE),
            same("but network", without(&["network"]), WHOSE),
            same("but ipc", json!({"/linux/namespaces/-ipc":null,"/mounts/-/dev/mqueue":null}), WHOSE),
            same("but cgroup", without(&["cgroup"]), WHOSE),
            same("but five", without(&["cgroup", "network", "uts", "pid"]), WHOSE),
            refused("unknown", json!({"/linux/namespaces/+":[{"type":"weather"}]}), "linux.namespaces[6]"),
            refused("twice", json!({"/linux/namespaces/+":[{"type":"uts"}]}), "linux.namespaces[6]"),
            refused(
                "no such path",
                json!({"/hostname":null,"/linux/namespaces/-uts":null,"/linux/namespaces/+":[{"type":"uts","path":"/proc/0/ns/uts"}]}),
                "linux.namespaces: open the uts namespace",
            ),
            refused(
                "of another kind",
                json!({"/hostname":null,"/linux/namespaces/-uts":null,"/linux/namespaces/+":[{"type":"uts","path":"/proc/self/ns/net"}]}),
                "linux.namespaces: join the uts namespace",
            ),
        ],
    );
}

/// A process with namespaces of its own.
struct Holder(Child);

impl Holder {
    fn new(options: &[&str]) -> Self {
        let child = Command::new("unshare").args(options).args(["sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
        let holder = Self(child);
        eventually("the holder", || {
            fs::read_link(format!("/proc/{}/exe", holder.0.id())).ok().filter(|program| !program.ends_with("unshare"))
        });
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn namespaces_by_path() {
    let holder = Holder::new(&["--uts", "--ipc", "--net", "--cgroup"]);
    let pid = holder.0.id().to_string();
    let by_path = |kind: &str, file: &str| {
        json!({format!("/linux/namespaces/-{kind}"):null,
            "/linux/namespaces/+":[{"type":kind,"path":format!("/proc/{pid}/ns/{file}")}]})
    };
    check_prepared(
        |bundle| tell(bundle, &pid),
        [
            same(
                "uts",
                {
                    let mut edits = by_path("uts", "uts");
                    edits["/hostname"] = Value::Null;
                    edits
                },
                WHOSE,
            ),
            same("network", by_path("network", "net"), WHOSE),
            same("ipc", by_path("ipc", "ipc"), WHOSE),
            same("cgroup", by_path("cgroup", "cgroup"), WHOSE),
        ],
    );
}

fn ids(first: u32, size: u32) -> Value {
    json!([{"containerID":0,"hostID":first,"size":size}])
}

fn user_namespace(edits: Value) -> Value {
    let mut all =
        json!({"/linux/namespaces/+":[{"type":"user"}],"/linux/uidMappings":ids(100_000, 1000),"/linux/gidMappings":ids(100_000, 1000)});
    all.as_object_mut().unwrap().extend(edits.as_object().unwrap().clone());
    all
}

#[test]
fn user_namespaces() {
    let look = "id; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; grep -E '^(Cap|NoNew|Groups)' /proc/self/status; \
        cat /proc/self/oom_score_adj; cat /proc/self/limits; touch /dev/shm/x; stat -c %u:%g /dev/shm/x /bin /proc/1";
    check_prepared(
        |bundle| {
            for dir in ["proc", "dev", "sys"] {
                fs::create_dir_all(bundle.rootfs(dir)).unwrap();
            }
        },
        [
            same("root of its own", user_namespace(json!({})), look),
            same("a user", user_namespace(json!({"/process/user":{"uid":7,"gid":8,"additionalGids":[9]}})), look),
            same(
                "a score and limits",
                user_namespace(json!({"/process/oomScoreAdj":200,
                "/process/rlimits":[{"type":"RLIMIT_NOFILE","soft":60,"hard":60}]})),
                look,
            ),
            same(
                "ids as on the host",
                user_namespace(json!({"/linux/uidMappings":ids(0, 65536),"/linux/gidMappings":ids(0, 65536)})),
                look,
            ),
            same(
                "several ranges",
                user_namespace(json!({"/linux/uidMappings":[{"containerID":0,"hostID":100_000,"size":10},
                {"containerID":10,"hostID":0,"size":1}]})),
                "cat /proc/self/uid_map; id",
            ),
            refused("no mappings", user_namespace(json!({"/linux/uidMappings":null,"/linux/gidMappings":null})), "linux.uidMappings"),
            refused("a size of none", user_namespace(json!({"/linux/uidMappings":ids(1, 0)})), "linux.uidMappings"),
            refused("a user outside", user_namespace(json!({"/process/user":{"uid":5000,"gid":0}})), "process.user.uid"),
        ],
    );
}

/// crun 1.8.1 takes no newer version.
fn as_of_old(bundle: &mut Bundle) {
    bundle.set("/ociVersion", json!("1.0.2"));
}

#[test]
fn the_hosts_name() {
    check([
        same("given", json!({"/hostname":"inside.example"}), "hostname"),
        same("none", json!({"/hostname":null}), "[ $(hostname) = $(cat /proc/sys/kernel/hostname) ] && echo same"),
        refused("without its namespace", json!({"/linux/namespaces/-uts":null}), "hostname"),
        refused("too long", json!({"/hostname":"x".repeat(65)}), "hostname"),
    ]);
    // runc 1.1.5 knows no such field.
    check_with(
        Kind::Crun,
        as_of_old,
        [
            same("domain", json!({"/domainname":"example.org"}), "cat /proc/sys/kernel/domainname"),
            same("both", json!({"/hostname":"inside","/domainname":"example.org"}), "cat /proc/sys/kernel/domainname; hostname"),
        ],
    );
}

#[test]
fn personality() {
    // runc 1.1.5 does not look at the field.
    check_with(
        Kind::Crun,
        as_of_old,
        ["LINUX", "LINUX32"]
            .map(|domain| same(domain, json!({"/linux/personality":{"domain":domain}}), "busybox uname -m; cat /proc/self/personality")),
    );
}

#[test]
fn devices() {
    let device = |device: Value| json!({"/linux/devices":[device]});
    let look = "stat -c '%n %F %t:%T %a %u:%g' /dev/own /dev/deep/own /dev/null 2>/dev/null";
    let own = |kind: &str| json!({"path":"/dev/own","type":kind,"major":10,"minor":200,"fileMode":0o640,"uid":7,"gid":8});
    check([
        same("characters", device(own("c")), look),
        same("characters, unbuffered", device(own("u")), look),
        same("blocks", device(own("b")), look),
        same("a pipe", device(json!({"path":"/dev/own","type":"p","fileMode":0o600,"uid":7,"gid":8})), look),
        same("no mode", device(json!({"path":"/dev/own","type":"c","major":1,"minor":5})), look),
        same("a mode beside the umask's", device(json!({"path":"/dev/own","type":"c","major":1,"minor":5,"fileMode":0o777})), look),
        same("in a directory", device(json!({"path":"/dev/deep/own","type":"c","major":1,"minor":5,"fileMode":0o600})), look),
        refused("an unknown kind", device(own("x")), "linux.devices[0].type"),
    ]);
}

/// What the program may, tried with FUSE's device, which anybody may open in either way.
#[test]
fn device_rules() {
    let rule = |allow: bool, minor: u32, access: &str| json!({"allow":allow,"type":"c","major":10,"minor":minor,"access":access});
    let tried = "(: < /dev/own) 2>/dev/null && echo read; (: > /dev/own) 2>/dev/null && echo written; \
        mknod /dev/made c 10 229 2>/dev/null && echo made; head -c 1 /dev/null | wc -c; head -c 1 /dev/zero | wc -c";
    let rules = |rules: Value| json!({"/linux/devices":[{"path":"/dev/own","type":"c","major":10,"minor":229,"fileMode":0o666}],"/linux/resources/devices":rules});
    let none = json!({"allow":false,"access":"rwm"});
    check([
        same("nothing", rules(json!([none])), tried),
        same("reading", rules(json!([none, rule(true, 229, "r")])), tried),
        same("writing", rules(json!([none, rule(true, 229, "w")])), tried),
        same("making", rules(json!([none, rule(true, 229, "m")])), tried),
        same("all", rules(json!([none, rule(true, 229, "rwm")])), tried),
        same("taken back in part", rules(json!([none, rule(true, 229, "rwm"), rule(false, 229, "w")])), tried),
        same("every one", rules(json!([{"allow":true,"access":"rwm"}])), tried),
        same(
            "every one but this",
            json!({"/linux/resources/devices":[{"allow":true,"access":"rwm"}, rule(false, 229, "rwm")]}),
            "mknod /dev/made c 10 229 2>&1; mknod /dev/disk b 7 99 && echo made",
        ),
        same("a whole major", rules(json!([none, {"allow":true,"type":"c","major":10,"access":"r"}])), tried),
        same("no rules", rules(json!([])), tried),
        refused("an unknown kind", rules(json!([{"allow":true,"type":"x","access":"r"}])), "linux.resources.devices[0]"),
    ]);
}

#[test]
fn masked_and_readonly_paths() {
    let look = "cat /secret/file /hidden 2>/dev/null | wc -c; ls -A /secret | wc -l; echo x 2>/dev/null > /kept/new || echo ro; \
        echo x 2>/dev/null > /open && echo rw; stat -c %F /secret /hidden /kept; \
        grep -E ' (/secret|/hidden|/kept|/proc/sys) ' /proc/self/mounts | busybox cut -d' ' -f2; echo 1 2>/dev/null > /proc/sys/vm/drop_caches || echo ro";
    check_prepared(
        |bundle| {
            for dir in ["secret", "kept"] {
                fs::create_dir(bundle.rootfs(dir)).unwrap();
                fs::write(bundle.rootfs(dir).join("file"), "file\n").unwrap();
            }
            fs::write(bundle.rootfs("hidden"), "hidden\n").unwrap();
            bundle.set("/root/readonly", json!(false));
        },
        [
            same("none", json!({"/linux/maskedPaths":[],"/linux/readonlyPaths":["/proc/sys"]}), look),
            same("masked", json!({"/linux/maskedPaths":["/secret","/hidden","/not/there"]}), look),
            same("read-only", json!({"/linux/readonlyPaths":["/proc/sys","/kept","/not/there"]}), look),
            same("both", json!({"/linux/maskedPaths":["/secret"],"/linux/readonlyPaths":["/secret","/proc/sys"]}), look),
        ],
    );
}

#[test]
fn kernel_settings() {
    let set = |name: &str, value: &str| json!({"/linux/sysctl":{name:value}});
    check([
        same("network", set("net.ipv4.ip_unprivileged_port_start", "80"), "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        same("by slashes", set("net/ipv4/ip_forward", "1"), "cat /proc/sys/net/ipv4/ip_forward"),
        same("of an interface", set("net.ipv4.conf.lo.rp_filter", "1"), "cat /proc/sys/net/ipv4/conf/lo/rp_filter"),
        same("messages", set("kernel.msgmax", "4242"), "cat /proc/sys/kernel/msgmax"),
        same("semaphores", set("kernel.sem", "1 2 3 4"), "cat /proc/sys/kernel/sem"),
        same("queues", set("fs.mqueue.msg_max", "7"), "cat /proc/sys/fs/mqueue/msg_max"),
        refused("the host's", set("vm.swappiness", "7"), "linux.sysctl[vm.swappiness]"),
        refused("the kernel's", set("kernel.pid_max", "70000"), "linux.sysctl[kernel.pid_max]"),
        refused("no such", set("net.no.such", "1"), "linux.sysctl[net.no.such]"),
        refused("a bad value", set("net.ipv4.ip_forward", "much"), "linux.sysctl[net.ipv4.ip_forward]"),
        refused(
            "of the host's network",
            json!({"/linux/namespaces/-network":null,"/linux/sysctl":{"net.ipv4.ip_unprivileged_port_start":"80"}}),
            "linux.sysctl[net.ipv4.ip_unprivileged_port_start]",
        ),
        refused(
            "of the host's messages",
            json!({"/linux/namespaces/-ipc":null,"/mounts/-/dev/mqueue":null,"/linux/sysctl":{"kernel.msgmax":"4242"}}),
            "linux.sysctl[kernel.msgmax]",
        ),
    ]);
}

/// Seen without a cgroup namespace, which would hide the path.
#[test]
fn paths_of_cgroups() {
    let look = "cat /proc/self/cgroup | sort";
    let at = |path: Value| json!({"/linux/namespaces/-cgroup":null,"/linux/cgroupsPath":path});
    let own = format!("rt-test-path-{}", std::process::id());
    check([
        same("in its namespace", json!({}), look),
        same("absolute", at(json!(format!("/{own}"))), look),
        same("deep", at(json!(format!("/{own}/deep/down"))), look),
        same("with a dot", at(json!(format!("/{own}/./x"))), look),
    ]);
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(" - cgroup")) {
        let parent = std::path::Path::new(line.split(' ').nth(4).unwrap()).join(&own);
        // Both leave what they made above a container's own cgroup.
        for below in ["deep", "x", ""] {
            let _ = fs::remove_dir(parent.join(below));
        }
        assert!(!parent.exists(), "{} is left", parent.display());
    }
}

#[test]
fn what_a_seccomp_profile_cannot_say() {
    let with = |seccomp: Value| json!({"/linux/seccomp": seccomp});
    let rule = |rule: Value| json!({"/linux/seccomp":{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[rule]}});
    let cases: Vec<Case> = vec![
        same("calls nobody knows", rule(json!({"names":["fly","swim"],"action":"SCMP_ACT_ERRNO"})), "grep Seccomp: /proc/self/status"),
        same("no rules", with(json!({"defaultAction":"SCMP_ACT_ALLOW"})), "grep Seccomp: /proc/self/status"),
        same("none", with(Value::Null), "grep Seccomp: /proc/self/status"),
        refused("an unknown default", with(json!({"defaultAction":"SCMP_ACT_DENY"})), "linux.seccomp.defaultAction"),
        refused("an unknown action", rule(json!({"names":["mkdir"],"action":"SCMP_ACT_DENY"})), "linux.seccomp.syscalls[0].action"),
        refused(
            "an unknown operator",
            rule(json!({"names":["mkdir"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP_NEAR"}]})),
            "linux.seccomp.syscalls[0].args[0].op",
        ),
        refused(
            "a seventh argument",
            rule(json!({"names":["mkdir"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]})),
            "linux.seccomp.syscalls[0].args[0].index",
        ),
        refused(
            "an unknown architecture",
            with(
                json!({"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_VAX"],"syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}),
            ),
            "linux.seccomp.architectures[0]",
        ),
        refused("notified without a listener", rule(json!({"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"})), "linux.seccomp.listenerPath"),
        refused("write notified", rule(json!({"names":["write"],"action":"SCMP_ACT_NOTIFY"})), "linux.seccomp"),
    ];
    check(cases);
}
