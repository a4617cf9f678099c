use super::super::cgroup::Group;
use super::super::{check, spec};
use super::*;

const EVERYTHING: Privileges = Privileges { held: CapabilitySet::ALL, bounding: CapabilitySet::ALL };

fn container(text: &str) -> Container {
    check::check(Path::new("/b"), &spec::parse(text.as_bytes()).unwrap()).unwrap()
}

fn groups(version: Version, names: &[&str]) -> CgroupPlan {
    let group = |name: &&str| Group {
        hierarchy: Hierarchy {
            version,
            mount_point: Path::new("/sys/fs/cgroup").join(name),
            controllers: vec![(*name).to_owned()],
            own: PathBuf::new(),
            writable: true,
        },
        directory: Path::new("/sys/fs/cgroup").join(name).join("x"),
        enable: Vec::new(),
        writes: Vec::new(),
        device_filter: Vec::new(),
    };
    CgroupPlan { groups: names.iter().map(group).collect(), others: Vec::new() }
}

fn text(plan: &Plan) -> String {
    let lines = plan.steps.iter().map(|step| format!("{step}\n"));
    lines.chain(plan.notes.iter().map(|note| format!("note: {note}\n"))).collect()
}

#[test]
fn every_step_in_order() {
    let container = container(
        r#"{"ociVersion":"1.2.0","hostname":"web","domainname":"lan","root":{"path":"rootfs","readonly":true},
        "process":{"cwd":"/srv","args":["sh","-c","true"],"user":{"uid":7,"gid":8,"additionalGids":[9],"umask":63},
          "noNewPrivileges":true,"oomScoreAdj":100,"rlimits":[{"type":"RLIMIT_NOFILE","soft":10,"hard":20}],
          "capabilities":{"bounding":["CAP_KILL","CAP_SYS_RESOURCE","CAP_FLY"],"permitted":["CAP_KILL"],"effective":["CAP_KILL"],
            "inheritable":["CAP_KILL"],"ambient":["CAP_KILL","CAP_CHOWN"]}},
        "mounts":[{"destination":"/proc","type":"proc","source":"proc","options":["nosuid"]},
          {"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755"]},
          {"destination":"/sys/fs/cgroup","type":"cgroup","options":["ro"]},
          {"destination":"/data","source":"/srv/data","options":["rbind","rro","rprivate"]}],
        "linux":{"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"uts"},{"type":"network"},{"type":"cgroup"},
            {"type":"ipc","path":"/proc/7/ns/ipc"}],
          "sysctl":{"net.ipv4.ip_forward":"1"},"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"},"maskedPaths":["/proc/kcore"],"readonlyPaths":["/proc/sys"]}}"#,
    );
    let held = CapabilitySet(!(1 << 24));
    let plan = plan(&container, &groups(Version::V1, &["memory", "pids"]), Privileges { held, bounding: held });
    let filter = container.seccomp.as_ref().unwrap().program.len();
    let expected = format!(
        "\
linux.cgroupsPath: join /sys/fs/cgroup/memory/x
linux.cgroupsPath: join /sys/fs/cgroup/pids/x
linux.namespaces: join the ipc namespace /proc/7/ns/ipc
linux.namespaces: make a cgroup namespace
begin a session
linux.namespaces: bring the loopback interface up
hostname: set \"web\"
domainname: set \"lan\"
linux.rootfsPropagation: make the host's mounts slave
root.path: attach /b/rootfs
mounts[0]: mount proc at /proc nosuid
mounts[1]: mount tmpfs at /dev nosuid mode=755
mounts[2]: mount cgroups memory pids at /sys/fs/cgroup ro
mounts[3]: bind /srv/data and what is below at /data recursively ro rprivate
linux.devices: make /dev/null c 1:3 0666
linux.devices: make /dev/zero c 1:5 0666
linux.devices: make /dev/full c 1:7 0666
linux.devices: make /dev/random c 1:8 0666
linux.devices: make /dev/urandom c 1:9 0666
linux.devices: make /dev/tty c 5:0 0666
default devices: link /dev/fd to /proc/self/fd
default devices: link /dev/stdin to /proc/self/fd/0
default devices: link /dev/stdout to /proc/self/fd/1
default devices: link /dev/stderr to /proc/self/fd/2
default devices: link /dev/core to /proc/kcore
default devices: link /dev/ptmx to pts/ptmx
process.cwd: make /srv
linux.sysctl[net.ipv4.ip_forward]: write \"1\"
linux.readonlyPaths[0]: make /proc/sys read-only
linux.maskedPaths[0]: mask /proc/kcore
process.oomScoreAdj: set 100
root.path: make it the root
root.readonly: make the root read-only
process.rlimits: set RLIMIT_NOFILE to 10 of at most 20
process.user.uid: give standard input and outputs to user 7
process.capabilities.bounding: keep CAP_KILL
process.cwd: change to /srv
process.user.umask: set 077
close all but the standard descriptors at exec
process.user: become user 7, group 8, additional groups [9]
process.capabilities: set effective CAP_KILL; permitted CAP_KILL; inheritable CAP_KILL
process.capabilities.ambient: raise CAP_KILL
process.noNewPrivileges: set it
process.args[0]: find \"sh\"
linux.seccomp: install a filter of {filter} instructions
note: process.capabilities: \"CAP_FLY\" is none this runtime knows: left out
note: process.capabilities: CAP_SYS_RESOURCE not granted: this runtime does not hold it itself
note: process.capabilities.ambient: CAP_CHOWN not raised: it must be permitted and inheritable as well
"
    );
    assert_eq!(text(&plan), expected);
    use NamespaceKind::{Mount, Network, Pid, Uts};
    assert_eq!(plan.clone_namespaces, [Mount, Pid, Network, Uts]);
}

const MAPPED: &str = r#"{"ociVersion":"1.2.0","root":{"path":"/r"},
    "process":{"cwd":"/","args":["sh"],"oomScoreAdj":5,"rlimits":[{"type":"RLIMIT_NOFILE","soft":10,"hard":20}]},
    "mounts":[{"destination":"/b","source":"/b","options":["bind"]}],
    "linux":{"namespaces":[{"type":"mount"},{"type":"pid"},{"type":"user"},{"type":"time"},{"type":"network","path":"/n"}],
      "timeOffsets":{"boottime":{"secs":1}},"uidMappings":[{"containerID":0,"hostID":9,"size":2}],
      "gidMappings":[{"containerID":0,"hostID":8,"size":2}]}}"#;

/// The first steps, up to the birth of the child.
fn usher_of(privileges: Privileges) -> (String, Plan) {
    let plan = plan(&container(MAPPED), &groups(Version::V1, &["pids"]), privileges);
    let text = text(&plan);
    let (before, _) = text.split_once("linux.cgroupsPath: join").unwrap();
    (before.to_owned(), plan)
}

#[test]
fn a_user_namespace_comes_after_what_the_host_owns() {
    let (before, plan) = usher_of(EVERYTHING);
    let expected = "\
process.rlimits: raise RLIMIT_NOFILE to at most 20
process.oomScoreAdj: set 5
linux.namespaces: join the network namespace /n
linux.timeOffsets: make a time namespace boottime=1.000000000
linux.uidMappings, linux.gidMappings: make a user namespace of users 0 9 2 and groups 0 8 2
linux.uidMappings: become root of the user namespace
linux.namespaces: begin a process in new namespaces mount pid
";
    assert_eq!(before, expected);
    assert!(plan.clone_namespaces.is_empty() && plan.has_usher());
    let trees: Vec<_> = plan.trees.iter().map(|tree| tree.field.as_str()).collect();
    assert_eq!(trees, ["root.path", "mounts[0].source"]);
    assert!(plan.steps.contains(&Step::AttachRoot { path: "/r".into(), handle: Some(2), below: None }));
    assert!(text(&plan).contains("linux.devices: bind the host's /dev/null\n"));
}

#[test]
fn without_privileges_a_user_namespace_comes_first() {
    let none = CapabilitySet::default();
    let (before, plan) = usher_of(Privileges { held: none, bounding: none });
    let expected = "\
process.rlimits: raise RLIMIT_NOFILE to at most 20
process.oomScoreAdj: set 5
linux.uidMappings, linux.gidMappings: make a user namespace of users 0 9 2 and groups 0 8 2
linux.uidMappings: become root of the user namespace
linux.namespaces: join the network namespace /n
linux.timeOffsets: make a time namespace boottime=1.000000000
linux.namespaces: begin a process in new namespaces mount pid
";
    assert_eq!(before, expected);
    assert!(plan.trees.is_empty());
}

#[test]
fn with_privileges_to_gain_the_filter_comes_before_they_are_given_up() {
    let container = container(
        r#"{"ociVersion":"1.2.0","root":{"path":"/r"},"process":{"cwd":"/","args":["sh"]},"linux":{"namespaces":[{"type":"mount"}],
        "seccomp":{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"],"listenerPath":"/run/agent.sock",
          "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}}}"#,
    );
    let text = text(&plan(&container, &CgroupPlan::default(), EVERYTHING));
    let (_, after) = text.split_once("close all but the standard descriptors at exec\nlinux.seccomp: install a filter of ").unwrap();
    let (_, after) = after.split_once(" instructions with flags LOG NEW_LISTENER, notifying /run/agent.sock\n").unwrap();
    assert!(after.starts_with("process.user: become user 0"), "{text}");
}

#[test]
fn nothing_is_made_in_a_bound_dev() {
    let container = container(
        r#"{"ociVersion":"1.2.0","root":{"path":"/r"},"process":{"cwd":"/","args":["sh"]},
        "mounts":[{"destination":"/dev","source":"/dev","options":["rbind"]}],"linux":{"namespaces":[{"type":"mount"}]}}"#,
    );
    let text = text(&plan(&container, &CgroupPlan::default(), EVERYTHING));
    assert!(!text.contains("default devices") && !text.contains("linux.devices"), "{text}");
}

#[test]
fn without_a_cgroup_namespace_only_the_own_cgroup_is_bound() {
    let container = container(
        r#"{"ociVersion":"1.2.0","root":{"path":"/r"},"process":{"cwd":"/","args":["sh"]},
        "mounts":[{"destination":"/sys/fs/cgroup","type":"cgroup"}],"linux":{"namespaces":[{"type":"mount"}]}}"#,
    );
    let plan = plan(&container, &groups(Version::V2, &["unified"]), EVERYTHING);
    let Some(Step::Mount(mount)) = plan.steps.iter().find(|step| matches!(step, Step::Mount(_))) else { panic!("no mount") };
    let MountSource::Cgroups { views, layout } = &mount.what else { panic!("no cgroup mount") };
    assert_eq!(*layout, CgroupLayout::Unified);
    assert_eq!(views[0].bind.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/x")));
}
