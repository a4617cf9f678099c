//! The container's first process (config.md "Process").

use std::path::PathBuf;

use super::Refusals;
use crate::core::capability::CapabilitySet;
use crate::core::spec;

/// `process`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub args: Vec<String>,
    pub env: Vec<String>,
    /// Absolute, in the container.
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub umask: u32,
    /// Without `process.capabilities` the process has none, as under runc and crun.
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: Option<i32>,
}

/// `process.capabilities`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub bounding: CapabilitySet,
    pub effective: CapabilitySet,
    pub inheritable: CapabilitySet,
    pub permitted: CapabilitySet,
    pub ambient: CapabilitySet,
}

/// One of `process.rlimits[]`, by the kernel's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    pub name: String,
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

const RLIMITS: [(&str, u32); 16] = [
    ("RLIMIT_CPU", 0),
    ("RLIMIT_FSIZE", 1),
    ("RLIMIT_DATA", 2),
    ("RLIMIT_STACK", 3),
    ("RLIMIT_CORE", 4),
    ("RLIMIT_RSS", 5),
    ("RLIMIT_NPROC", 6),
    ("RLIMIT_NOFILE", 7),
    ("RLIMIT_MEMLOCK", 8),
    ("RLIMIT_AS", 9),
    ("RLIMIT_LOCKS", 10),
    ("RLIMIT_SIGPENDING", 11),
    ("RLIMIT_MSGQUEUE", 12),
    ("RLIMIT_NICE", 13),
    ("RLIMIT_RTPRIO", 14),
    ("RLIMIT_RTTIME", 15),
];

impl Refusals {
    pub(super) fn process(&mut self, given: Option<&spec::Process>) -> Process {
        let Some(given) = given else {
            self.refuse("process", "missing: say what the container runs");
            return self.process(Some(&spec::Process { cwd: "/".into(), args: vec!["none".into()], ..spec::Process::default() }));
        };
        if given.args.first().is_none_or(String::is_empty) {
            self.refuse("process.args", "empty: name a program");
        }
        if !given.cwd.starts_with('/') {
            self.refuse("process.cwd", format!("{:?} is not an absolute path", given.cwd));
        }
        for (field, list) in [("process.args", &given.args), ("process.env", &given.env)] {
            if let Some(index) = list.iter().position(|text| text.contains('\0')) {
                self.refuse(format!("{field}[{index}]"), "holds a NUL byte");
            }
        }
        let umask = given.user.umask.unwrap_or(0o022);
        if umask > 0o777 {
            self.refuse("process.user.umask", format!("{umask} is above 511 (0777)"));
        }
        for (field, id) in [("process.user.uid", given.user.uid), ("process.user.gid", given.user.gid)] {
            if id == u32::MAX {
                self.refuse(field, "4294967295 means \"leave it\" to the kernel and is no id");
            }
        }
        if let Some(adjustment) = given.oom_score_adj.filter(|value| !(-1000..=1000).contains(value)) {
            self.refuse("process.oomScoreAdj", format!("{adjustment} is not between -1000 and 1000"));
        }
        Process {
            args: given.args.clone(),
            env: given.env.clone(),
            cwd: PathBuf::from(&given.cwd),
            uid: given.user.uid,
            gid: given.user.gid,
            additional_gids: given.user.additional_gids.clone(),
            umask,
            capabilities: given.capabilities.as_ref().map(|sets| self.capabilities(sets)).unwrap_or_default(),
            no_new_privileges: given.no_new_privileges,
            rlimits: self.rlimits(&given.rlimits),
            oom_score_adj: given.oom_score_adj,
        }
    }

    pub(super) fn capabilities(&mut self, given: &spec::Capabilities) -> Capabilities {
        let mut read = |set: &str, names: &[String]| {
            CapabilitySet::parse(names).unwrap_or_else(|name| {
                self.refuse(format!("process.capabilities.{set}"), format!("{name:?} is no capability this runtime knows"));
                CapabilitySet::default()
            })
        };
        let sets = Capabilities {
            bounding: read("bounding", &given.bounding),
            effective: read("effective", &given.effective),
            inheritable: read("inheritable", &given.inheritable),
            permitted: read("permitted", &given.permitted),
            ambient: read("ambient", &given.ambient),
        };
        let beyond = sets.effective.difference(sets.permitted);
        if !beyond.is_empty() {
            self.refuse("process.capabilities.effective", format!("{beyond} is not in permitted, and the kernel allows no such set"));
        }
        sets
    }

    pub(super) fn rlimits(&mut self, given: &[spec::Rlimit]) -> Vec<Rlimit> {
        let mut limits: Vec<Rlimit> = Vec::new();
        for (index, limit) in given.iter().enumerate() {
            let field = format!("process.rlimits[{index}]");
            let Some((name, resource)) = RLIMITS.iter().find(|(name, _)| *name == limit.kind) else {
                self.refuse(format!("{field}.type"), format!("{:?} is no resource limit", limit.kind));
                continue;
            };
            if limit.soft > limit.hard {
                self.refuse(format!("{field}.soft"), format!("{} is above the hard limit {}", limit.soft, limit.hard));
            }
            if limits.iter().any(|other| other.resource == *resource) {
                self.refuse(format!("{field}.type"), format!("{name} is listed twice"));
            }
            limits.push(Rlimit { name: (*name).to_owned(), resource: *resource, soft: limit.soft, hard: limit.hard });
        }
        limits
    }
}
