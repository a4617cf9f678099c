//! Decides what `exec` runs in a container, and how a process gets there.
//!
//! In: the container's configuration, what the command line asks for or a `process` of its own. Out: the configuration of the process,
//! for `check` to pass, and a [`Plan`] whose end is the one of the container's first process. Never asks the machine anything.
//!
//! What is not said is the container's own, as under runc: with options the whole `process` but its arguments and its terminal; with a
//! `process` of its own the capabilities, resource limits, umask and badness for the OOM killer.

use std::path::PathBuf;

use super::check::{Container, NamespaceKind};
use super::plan::{self, Plan, Privileges, Step};
use super::spec::{self, Process};

/// What the command line asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    pub args: Vec<String>,
    pub cwd: Option<String>,
    /// `NAME=value` each, after the container's own.
    pub env: Vec<String>,
    pub user: Option<User>,
    pub additional_gids: Vec<u32>,
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub terminal: bool,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
}

/// `--user`: without a group the container's stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: Option<u32>,
}

/// Reads `UID[:GID]`: decimal digits and nothing else, each below the number that means "leave it" to the kernel.
pub fn parse_user(text: &str) -> Option<User> {
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    Some(User { uid: parse_id(uid)?, gid: gid.map(parse_id).map_or(Some(None), |gid| gid.map(Some))? })
}

/// Reads one id.
pub fn parse_id(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

/// The process that options ask for, on top of the container's own.
pub fn with_options(own: &Process, asked: &Asked) -> Process {
    let mut process = own.clone();
    process.args.clone_from(&asked.args);
    process.terminal = asked.terminal;
    process.console_size = None;
    if let Some(cwd) = &asked.cwd {
        process.cwd.clone_from(cwd);
    }
    process.env.extend(asked.env.iter().cloned());
    if let Some(User { uid, gid }) = asked.user {
        process.user.uid = uid;
        process.user.gid = gid.unwrap_or(process.user.gid);
    }
    process.user.additional_gids.extend(&asked.additional_gids);
    if !asked.capabilities.is_empty() {
        let sets = process.capabilities.get_or_insert_default();
        // Not inheritable, and so not ambient: a program without file capabilities would gain nothing by it (CVE-2022-29162).
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.extend(asked.capabilities.iter().cloned());
        }
    }
    process.no_new_privileges |= asked.no_new_privileges;
    if let Some(profile) = &asked.apparmor_profile {
        process.apparmor_profile = Some(profile.clone());
    }
    if let Some(label) = &asked.selinux_label {
        process.selinux_label = Some(label.clone());
    }
    process
}

/// A process of its own, completed by what only the container says.
pub fn completed(own: &Process, given: Process) -> Process {
    let user = spec::User { umask: given.user.umask.or(own.user.umask), ..given.user };
    Process {
        user,
        rlimits: if given.rlimits.is_empty() { own.rlimits.clone() } else { given.rlimits },
        capabilities: given.capabilities.or_else(|| own.capabilities.clone()),
        oom_score_adj: given.oom_score_adj.or(own.oom_score_adj),
        ..given
    }
}

/// Decides the plan. The container's `process` is the one to run. Handles are the cgroups in their order, and last the container's first
/// process; its pid namespace is not joined by the child, as a process joins one only by being born there: the parent does, or, for a
/// user without privileges over the host, an usher. `shared`: the kinds
/// of which the caller and the container have the same, which such a user could not join.
pub fn plan(container: &Container, cgroups: &[PathBuf], privileges: Privileges, shared: &[NamespaceKind]) -> Plan {
    let mut steps = Vec::new();
    let mut notes = Vec::new();
    let process = cgroups.len();
    let user = container.namespace(NamespaceKind::User).is_some();
    if user && !privileges.over_mounts() {
        usher(container, process, shared, &mut steps);
        join_cgroups(container, cgroups, &mut steps);
        let others = joined(container).into_iter().filter(|kind| *kind != NamespaceKind::User && !shared.contains(kind)).collect();
        steps.push(Step::JoinProcess { kinds: others, handle: process });
    } else {
        join_cgroups(container, cgroups, &mut steps);
        steps.extend(before_user_namespace(container, user));
        steps.push(Step::JoinProcess { kinds: joined(container), handle: process });
        if user {
            steps.push(Step::BecomeRoot);
        }
    }
    steps.push(Step::NewSession);
    if container.process.terminal {
        steps.push(Step::Terminal { size: container.process.console_size, bind: false, relayed: false });
    }
    let granted = plan::grant(&container.process, plan::available(container, privileges), &mut notes);
    plan::process(&container.process, container.seccomp.as_ref(), &granted, &mut steps);
    Plan { clone_namespaces: Vec::new(), trees: Vec::new(), steps, notes }
}

/// A user has privileges over the container's namespaces only in its user namespace, which is the caller's own, made by itself
/// (user_namespaces(7), "Capabilities"): that one is entered first. From then on the container's root could trace the process.
fn usher(container: &Container, process: usize, shared: &[NamespaceKind], steps: &mut Vec<Step>) {
    steps.extend(before_user_namespace(container, true));
    let has_pid = container.namespace(NamespaceKind::Pid).is_some() && !shared.contains(&NamespaceKind::Pid);
    let kinds = [NamespaceKind::User].into_iter().chain(has_pid.then_some(NamespaceKind::Pid)).collect();
    // Another user id may make it visible again (prctl(2), PR_SET_DUMPABLE).
    steps.extend([Step::Undumpable, Step::JoinProcess { kinds, handle: process }, Step::BecomeRoot, Step::Undumpable]);
    steps.push(Step::Bear(Vec::new()));
}

/// As long as it is the host's to allow.
fn before_user_namespace(container: &Container, user: bool) -> impl Iterator<Item = Step> {
    let limits = container.process.rlimits.iter().filter(move |_| user).cloned().map(Step::RaiseLimit);
    container.process.oom_score_adj.map(Step::OomScoreAdj).into_iter().chain(limits)
}

fn join_cgroups(container: &Container, cgroups: &[PathBuf], steps: &mut Vec<Step>) {
    let affinity = |field, processors: &[u32]| {
        let step = Step::Affinity { field, processors: processors.to_vec() };
        (!processors.is_empty()).then_some(step)
    };
    steps.extend(affinity("initial", &container.process.exec_cpu_affinity.initial));
    for (handle, directory) in cgroups.iter().enumerate() {
        steps.push(Step::JoinCgroup { directory: directory.clone(), handle });
    }
    steps.extend(affinity("final", &container.process.exec_cpu_affinity.last));
}

/// Also the kinds the container shares with whoever created it: the caller of `exec` may live in others.
fn joined(container: &Container) -> Vec<NamespaceKind> {
    let mut kinds = vec![NamespaceKind::Mount, NamespaceKind::Network, NamespaceKind::Ipc, NamespaceKind::Uts, NamespaceKind::Cgroup];
    let more = container.namespaces.iter().map(|namespace| namespace.kind);
    let more: Vec<_> = more.filter(|kind| !kinds.contains(kind) && *kind != NamespaceKind::Pid).collect();
    kinds.extend(more);
    kinds
}

/// A cgroup below the container's own, as `--cgroup [CONTROLLER[,CONTROLLER…]:]PATH` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubCgroup {
    /// Empty: version 2, or every hierarchy.
    pub controllers: Vec<String>,
    /// Relative, without `..`.
    pub path: PathBuf,
}

/// Reads `--cgroup`.
pub fn parse_sub_cgroup(text: &str) -> Option<SubCgroup> {
    let (controllers, path) = match text.split_once(':') {
        Some((controllers, path)) => (controllers.split(',').map(str::to_owned).collect(), path),
        None => (Vec::new(), text),
    };
    let plain = |part: &str| part != "..";
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let whole = controllers.iter().all(|name| !name.is_empty()) && parts.iter().all(|part| plain(part));
    (whole && !path.is_empty()).then(|| SubCgroup { controllers, path: parts.into_iter().collect() })
}

/// The cgroups to join: the container's own, or those below that are asked for. `group`: a directory and the controllers of its
/// hierarchy, none for version 2. The error names what no hierarchy has.
pub fn cgroups(groups: &[(PathBuf, Vec<String>)], asked: &[SubCgroup]) -> Result<Vec<PathBuf>, String> {
    for SubCgroup { controllers, .. } in asked {
        if let Some(unknown) = controllers.iter().find(|name| !groups.iter().any(|(_, held)| held.contains(name))) {
            return Err(format!("the container is in no cgroup of the controller {unknown:?}"));
        }
    }
    let below = |directory: &PathBuf, held: &Vec<String>| {
        let meant = |sub: &&SubCgroup| sub.controllers.is_empty() || sub.controllers.iter().any(|name| held.contains(name));
        asked.iter().rev().find(meant).map_or_else(|| directory.clone(), |sub| directory.join(&sub.path))
    };
    Ok(groups.iter().map(|(directory, held)| below(directory, held)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::capability::CapabilitySet;
    use std::path::Path;

    use super::super::{check, spec};
    use super::*;

    const EVERYTHING: Privileges = Privileges { held: CapabilitySet::ALL, bounding: CapabilitySet::ALL };
    const CONFIG: &str = r#"{"ociVersion":"1.2.0","root":{"path":"/r"},
        "process":{"terminal":true,"cwd":"/","args":["sh"],"env":["A=1"],"user":{"uid":1,"gid":2,"additionalGids":[3],"umask":63},
          "oomScoreAdj":5,"rlimits":[{"type":"RLIMIT_NOFILE","soft":10,"hard":20}],
          "capabilities":{"bounding":["CAP_KILL"],"permitted":["CAP_KILL"],"effective":["CAP_KILL"]}},
        "linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}"#;

    fn own() -> spec::Spec {
        spec::parse(CONFIG.as_bytes()).unwrap()
    }

    fn plan_of(process: Process, cgroups: &[PathBuf]) -> String {
        let spec = spec::Spec { process: Some(process), ..own() };
        let container = check::check(Path::new("/b"), &spec).unwrap();
        plan(&container, cgroups, EVERYTHING, &[]).steps.iter().map(|step| format!("{step}\n")).collect()
    }

    #[test]
    fn options_change_the_containers_own_process() {
        let asked = Asked {
            args: vec!["id".into()],
            cwd: Some("/tmp".into()),
            env: vec!["B=2".into()],
            user: Some(User { uid: 9, gid: None }),
            additional_gids: vec![4],
            capabilities: vec!["CAP_CHOWN".into()],
            no_new_privileges: true,
            ..Asked::default()
        };
        let own = own().process.unwrap();
        let process = with_options(&own, &asked);
        assert_eq!((process.terminal, process.env.as_slice()), (false, ["A=1".to_owned(), "B=2".to_owned()].as_slice()));
        let expected = "\
linux.cgroupsPath: join /sys/fs/cgroup/pids/x
process.oomScoreAdj: set 5
join the container's mount network ipc uts cgroup namespaces
begin a session
process.rlimits: set RLIMIT_NOFILE to 10 of at most 20
process.user.uid: give standard input and outputs to user 9
process.capabilities.bounding: keep CAP_CHOWN CAP_KILL
process.cwd: change to /tmp
process.user.umask: set 077
close all but the standard descriptors at exec
process.user: become user 9, group 2, additional groups [3, 4]
process.capabilities: set effective CAP_CHOWN CAP_KILL; permitted CAP_CHOWN CAP_KILL; inheritable none
process.noNewPrivileges: set it
process.args[0]: find \"id\"
";
        assert_eq!(plan_of(process, &["/sys/fs/cgroup/pids/x".into()]), expected);
    }

    /// The user namespace before all else that is the container's, and hidden from it before that.
    #[test]
    fn a_user_without_privileges_enters_its_user_namespace_first() {
        let text = CONFIG.replace(
            r#""namespaces":[{"type":"mount"},{"type":"pid"}]"#,
            r#""namespaces":[{"type":"mount"},{"type":"pid"},{"type":"uts"},{"type":"user"}],
               "uidMappings":[{"containerID":0,"hostID":5,"size":9}],"gidMappings":[{"containerID":0,"hostID":5,"size":9}]"#,
        );
        let container = check::check(Path::new("/b"), &spec::parse(text.as_bytes()).unwrap()).unwrap();
        let nothing = Privileges { held: CapabilitySet::default(), bounding: CapabilitySet::ALL };
        let shared = [NamespaceKind::Network, NamespaceKind::Ipc, NamespaceKind::Cgroup];
        let plan = plan(&container, &["/c/x".into()], nothing, &shared);
        let steps: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
        let expected = [
            "process.oomScoreAdj: set 5",
            "process.rlimits: raise RLIMIT_NOFILE to at most 20",
            "hide from the container until the program is executed",
            "join the container's user pid namespaces",
            "linux.uidMappings: become root of the user namespace",
            "hide from the container until the program is executed",
            "linux.namespaces: begin a process",
            "linux.cgroupsPath: join /c/x",
            "join the container's mount uts namespaces",
            "begin a session",
        ];
        assert_eq!(steps[..expected.len()], expected);
        assert!(plan.has_usher() && plan.notes.is_empty(), "{:?}", plan.notes);
    }

    #[test]
    fn a_process_of_its_own_is_completed_by_the_container() {
        let own = own().process.unwrap();
        let given = spec::parse_process(br#"{"cwd":"/","args":["id"],"user":{"uid":7,"gid":8}}"#).unwrap();
        let process = completed(&own, given);
        assert_eq!((process.user.uid, process.user.umask, process.oom_score_adj), (7, Some(63), Some(5)));
        assert_eq!((process.rlimits.len(), process.env.len(), process.user.additional_gids.len()), (1, 0, 0));
        assert_eq!(process.capabilities.unwrap().bounding, ["CAP_KILL"]);
    }

    #[test]
    fn users_are_numbers_and_nothing_else() {
        assert_eq!(parse_user("0"), Some(User { uid: 0, gid: None }));
        assert_eq!(parse_user("7:8"), Some(User { uid: 7, gid: Some(8) }));
        for text in ["", ":", "0:", ":0", "+1", "-1", "1:2:3", "root", "4294967295", "4294967296", "1 ", "0x1", "١"] {
            assert_eq!(parse_user(text), None, "{text:?}");
        }
    }

    #[test]
    fn cgroups_below_the_containers_own() {
        let groups = [("/c/pids/x".into(), vec!["pids".to_owned()]), ("/c/memory/x".into(), vec!["memory".to_owned()])];
        let read = |texts: &[&str]| {
            let asked: Vec<_> = texts.iter().map(|text| parse_sub_cgroup(text).unwrap()).collect();
            cgroups(&groups, &asked).map(|found| found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(read(&[]).unwrap(), "/c/pids/x /c/memory/x");
        assert_eq!(read(&["pids:a/b"]).unwrap(), "/c/pids/x/a/b /c/memory/x");
        assert_eq!(read(&["/a"]).unwrap(), "/c/pids/x/a /c/memory/x/a");
        assert!(read(&["cpu:a"]).unwrap_err().contains("\"cpu\""));
        for text in ["", "pids:", "../x", "pids:a/../../x", ",:a"] {
            assert_eq!(parse_sub_cgroup(text), None, "{text:?}");
        }
    }
}
