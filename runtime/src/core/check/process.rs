//! The container's first process (config.md "Process").

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::Refusals;
use crate::core::capability::CapabilitySet;
use crate::core::cpu_list;
use crate::core::spec::{self, ConsoleSize};

/// `process`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Whether a pseudo-terminal of its own is its standard input and outputs, and how large it is at first.
    pub terminal: bool,
    pub console_size: Option<ConsoleSize>,
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
    /// Names in `process.capabilities` that are none this runtime knows: left out with a warning, as the specification asks.
    pub unknown_capabilities: BTreeSet<String>,
    pub no_new_privileges: bool,
    pub rlimits: Vec<Rlimit>,
    pub oom_score_adj: Option<i32>,
    pub scheduler: Option<Scheduler>,
    /// As ioprio_set(2) takes it.
    pub io_priority: Option<u16>,
    /// As personality(2) takes it.
    pub personality: Option<u32>,
    pub memory_policy: Option<MemoryPolicy>,
    pub apparmor_profile: Option<String>,
    pub selinux_label: Option<String>,
    pub exec_cpu_affinity: CpuAffinity,
}

/// `process.execCPUAffinity`: processors for what is executed later, before it joins the container's cgroups and after; empty: any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuAffinity {
    pub initial: Vec<u32>,
    pub last: Vec<u32>,
}

/// `process.scheduler`, by the kernel's numbers (sched_setattr(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduler {
    pub name: String,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime_ns: u64,
    pub deadline_ns: u64,
    pub period_ns: u64,
}

/// `linux.memoryPolicy`, by the kernel's numbers (set_mempolicy(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPolicy {
    pub name: String,
    /// The mode and its flags.
    pub mode: i32,
    pub nodes: Vec<u32>,
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
        if let Some(index) = given.env.iter().position(|pair| !pair.contains('=') || pair.starts_with('=')) {
            self.refuse(format!("process.env[{index}]"), format!("{:?} is not of the form NAME=value", given.env[index]));
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
        let (capabilities, unknown_capabilities) = given.capabilities.as_ref().map(|sets| self.capabilities(sets)).unwrap_or_default();
        Process {
            terminal: given.terminal,
            console_size: given.console_size,
            args: given.args.clone(),
            env: given.env.clone(),
            cwd: PathBuf::from(&given.cwd),
            uid: given.user.uid,
            gid: given.user.gid,
            additional_gids: given.user.additional_gids.clone(),
            umask,
            capabilities,
            unknown_capabilities,
            no_new_privileges: given.no_new_privileges,
            rlimits: self.rlimits(&given.rlimits),
            oom_score_adj: given.oom_score_adj,
            scheduler: given.scheduler.as_ref().and_then(|scheduler| self.scheduler(scheduler)),
            io_priority: given.io_priority.as_ref().and_then(|priority| self.io_priority(priority)),
            personality: None,
            memory_policy: None,
            apparmor_profile: self.text("process.apparmorProfile", given.apparmor_profile.as_deref()),
            exec_cpu_affinity: self.exec_cpu_affinity(given.exec_cpu_affinity.as_ref()),
            selinux_label: self.text("process.selinuxLabel", given.selinux_label.as_deref()),
        }
    }

    pub(super) fn capabilities(&mut self, given: &spec::Capabilities) -> (Capabilities, BTreeSet<String>) {
        let mut all_unknown = BTreeSet::new();
        let mut read = |names: &[String]| {
            let (set, unknown) = CapabilitySet::parse(names);
            all_unknown.extend(unknown);
            set
        };
        let sets = Capabilities {
            bounding: read(&given.bounding),
            effective: read(&given.effective),
            inheritable: read(&given.inheritable),
            permitted: read(&given.permitted),
            ambient: read(&given.ambient),
        };
        let beyond = sets.effective.difference(sets.permitted);
        if !beyond.is_empty() {
            self.refuse("process.capabilities.effective", format!("{beyond} is not in permitted, and the kernel allows no such set"));
        }
        (sets, all_unknown)
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

    fn scheduler(&mut self, given: &spec::Scheduler) -> Option<Scheduler> {
        const POLICIES: [(&str, u32); 6] =
            [("SCHED_OTHER", 0), ("SCHED_FIFO", 1), ("SCHED_RR", 2), ("SCHED_BATCH", 3), ("SCHED_IDLE", 5), ("SCHED_DEADLINE", 6)];
        const FLAGS: [(&str, u64); 7] = [
            ("SCHED_FLAG_RESET_ON_FORK", 0x01),
            ("SCHED_FLAG_RECLAIM", 0x02),
            ("SCHED_FLAG_DL_OVERRUN", 0x04),
            ("SCHED_FLAG_KEEP_POLICY", 0x08),
            ("SCHED_FLAG_KEEP_PARAMS", 0x10),
            ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
            ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
        ];
        let Some((name, policy)) = POLICIES.iter().find(|(name, _)| *name == given.policy) else {
            let why = match given.policy.as_str() {
                "SCHED_ISO" => "SCHED_ISO is reserved and in no kernel".to_owned(),
                other => format!("{other:?} is no scheduling policy"),
            };
            self.refuse("process.scheduler.policy", why);
            return None;
        };
        let mut flags = 0;
        for (index, flag) in given.flags.iter().enumerate() {
            match FLAGS.iter().find(|(name, _)| name == flag) {
                Some((_, bit)) => flags |= bit,
                None => self.refuse(format!("process.scheduler.flags[{index}]"), format!("{flag:?} is no flag of a scheduler")),
            }
        }
        let nice = given.nice.unwrap_or(0);
        if !(-20..=19).contains(&nice) {
            self.refuse("process.scheduler.nice", format!("{nice} is not between -20 and 19"));
        } else if nice != 0 && !matches!(*name, "SCHED_OTHER" | "SCHED_BATCH") {
            self.refuse("process.scheduler.nice", format!("{name} knows none: it belongs to SCHED_OTHER and SCHED_BATCH"));
        }
        let real_time = matches!(*name, "SCHED_FIFO" | "SCHED_RR");
        let priority = given.priority.unwrap_or(0);
        if real_time && !(1..=99).contains(&priority) {
            self.refuse("process.scheduler.priority", format!("{priority} is not between 1 and 99, as {name} needs it"));
        } else if !real_time && priority != 0 {
            self.refuse("process.scheduler.priority", format!("{name} knows none: it belongs to SCHED_FIFO and SCHED_RR"));
        }
        let times = [("runtime", given.runtime), ("deadline", given.deadline), ("period", given.period)];
        for (field, value) in times {
            if *name != "SCHED_DEADLINE" && value.is_some_and(|value| value != 0) {
                self.refuse(format!("process.scheduler.{field}"), format!("{name} knows none: it belongs to SCHED_DEADLINE"));
            }
        }
        let [runtime_ns, deadline_ns, period_ns] = times.map(|(_, value)| value.unwrap_or(0));
        if *name == "SCHED_DEADLINE" && (runtime_ns == 0 || runtime_ns > deadline_ns || period_ns != 0 && deadline_ns > period_ns) {
            self.refuse("process.scheduler.runtime", "0 < runtime <= deadline <= period must hold (sched(7))");
        }
        let priority = u32::try_from(priority).unwrap_or(0);
        Some(Scheduler { name: (*name).to_owned(), policy: *policy, flags, nice, priority, runtime_ns, deadline_ns, period_ns })
    }

    fn io_priority(&mut self, given: &spec::IoPriority) -> Option<u16> {
        const CLASS_SHIFT: u16 = 13;
        let class: u16 = match given.class.as_str() {
            "IOPRIO_CLASS_RT" => 1,
            "IOPRIO_CLASS_BE" => 2,
            "IOPRIO_CLASS_IDLE" => 3,
            other => {
                self.refuse(
                    "process.ioPriority.class",
                    format!("{other:?} is none of IOPRIO_CLASS_RT, IOPRIO_CLASS_BE, IOPRIO_CLASS_IDLE"),
                );
                return None;
            }
        };
        let Some(priority) = u16::try_from(given.priority).ok().filter(|priority| *priority < 8) else {
            self.refuse("process.ioPriority.priority", format!("{} is not between 0 and 7", given.priority));
            return None;
        };
        Some(class << CLASS_SHIFT | priority)
    }

    fn exec_cpu_affinity(&mut self, given: Option<&spec::ExecCpuAffinity>) -> CpuAffinity {
        let given = given.cloned().unwrap_or_default();
        let mut list = |name: &str, text: Option<String>| {
            let read = text.filter(|text| !text.is_empty()).map(|text| cpu_list::parse(&text));
            read.unwrap_or(Ok(Vec::new())).unwrap_or_else(|why| {
                self.refuse(format!("process.execCPUAffinity.{name}"), why);
                Vec::new()
            })
        };
        CpuAffinity { initial: list("initial", given.initial), last: list("final", given.last) }
    }

    pub(super) fn personality(&mut self, given: Option<&spec::Personality>) -> Option<u32> {
        let given = given?;
        if let Some(flag) = given.flags.first() {
            self.refuse("linux.personality.flags[0]", format!("{flag:?}: the specification knows no flag"));
        }
        match given.domain.as_str() {
            "LINUX" => Some(0),
            "LINUX32" => Some(8),
            other => {
                self.refuse("linux.personality.domain", format!("{other:?} is neither LINUX nor LINUX32"));
                None
            }
        }
    }

    pub(super) fn memory_policy(&mut self, given: Option<&spec::MemoryPolicy>) -> Option<MemoryPolicy> {
        const MODES: [(&str, i32); 7] = [
            ("MPOL_DEFAULT", 0),
            ("MPOL_PREFERRED", 1),
            ("MPOL_BIND", 2),
            ("MPOL_INTERLEAVE", 3),
            ("MPOL_LOCAL", 4),
            ("MPOL_PREFERRED_MANY", 5),
            ("MPOL_WEIGHTED_INTERLEAVE", 6),
        ];
        const FLAGS: [(&str, i32); 3] =
            [("MPOL_F_NUMA_BALANCING", 1 << 13), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_STATIC_NODES", 1 << 15)];
        let given = given?;
        let Some((name, mode)) = MODES.iter().find(|(name, _)| *name == given.mode) else {
            self.refuse("linux.memoryPolicy.mode", format!("{:?} is no memory policy", given.mode));
            return None;
        };
        let mut mode = *mode;
        for (index, flag) in given.flags.iter().enumerate() {
            match FLAGS.iter().find(|(name, _)| name == flag) {
                Some((_, bit)) => mode |= bit,
                None => self.refuse(format!("linux.memoryPolicy.flags[{index}]"), format!("{flag:?} is no flag of a memory policy")),
            }
        }
        let nodes = given.nodes.clone().unwrap_or_default();
        let nodes = if nodes.is_empty() { Ok(Vec::new()) } else { cpu_list::parse(&nodes) };
        let nodes = nodes.unwrap_or_else(|why| {
            self.refuse("linux.memoryPolicy.nodes", why);
            Vec::new()
        });
        match *name {
            "MPOL_DEFAULT" | "MPOL_LOCAL" if !nodes.is_empty() => {
                self.refuse("linux.memoryPolicy.nodes", format!("{name} takes none"));
            }
            "MPOL_DEFAULT" | "MPOL_LOCAL" | "MPOL_PREFERRED" => {}
            _ if nodes.is_empty() => self.refuse("linux.memoryPolicy.nodes", format!("missing: {name} needs one at least")),
            _ => {}
        }
        Some(MemoryPolicy { name: (*name).to_owned(), mode, nodes })
    }
}
