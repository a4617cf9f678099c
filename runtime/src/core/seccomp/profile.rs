//! `linux.seccomp` as written, and what it means.

use std::path::PathBuf;

use serde::Deserialize;

use super::super::check::Refusal;
use super::super::spec::nullable;
use super::{Architecture, flag};

/// `linux.seccomp`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    #[serde(default)]
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub flags: Vec<String>,
    pub listener_path: Option<PathBuf>,
    pub listener_metadata: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub syscalls: Vec<WrittenRule>,
}

/// `linux.seccomp.syscalls[]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WrittenRule {
    #[serde(default, deserialize_with = "nullable")]
    pub names: Vec<String>,
    pub action: String,
    pub errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<WrittenArg>,
}

/// `linux.seccomp.syscalls[].args[]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WrittenArg {
    pub index: u32,
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: String,
}

impl Written {
    /// Neither a default nor a rule is no filter, as runc has it.
    pub fn asks_for_nothing(&self) -> bool {
        self.default_action.is_empty() && self.syscalls.is_empty()
    }
}

/// What happens to a system call (seccomp(2) "Filters").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    KillProcess,
    KillThread,
    Trap,
    /// The call is not made and returns this.
    Errno(u16),
    Notify,
    /// A tracer gets this.
    Trace(u16),
    Log,
    Allow,
}

impl Action {
    /// `SECCOMP_RET_*` with its data (linux/seccomp.h).
    pub fn verdict(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Self::Notify => 0x7fc0_0000,
            Self::Trace(data) => 0x7ff0_0000 | u32::from(data),
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }
}

/// One of `args[]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub index: u8,
    pub test: Test,
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Equal(u64),
    GreaterOrEqual(u64),
    Greater(u64),
    /// The bits under the mask are these.
    MaskedEqual {
        mask: u64,
        value: u64,
    },
}

/// One of `syscalls[]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Names that no architecture knows among them.
    pub names: Vec<String>,
    pub action: Action,
    pub conditions: Vec<Condition>,
}

/// A checked profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub default: Action,
    /// The machine's own first, none twice.
    pub architectures: Vec<Architecture>,
    pub rules: Vec<Rule>,
    pub flags: u32,
}

/// What may be written for an action, an operator, an architecture and a flag (config-linux.md "Seccomp").
pub const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
pub const OPERATORS: [&str; 7] =
    ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"];
pub const ARCHITECTURES: [(&str, Architecture); 5] = [
    ("SCMP_ARCH_AARCH64", Architecture::Aarch64),
    ("SCMP_ARCH_ARM", Architecture::Arm),
    ("SCMP_ARCH_X32", Architecture::X32),
    ("SCMP_ARCH_X86", Architecture::X86),
    ("SCMP_ARCH_X86_64", Architecture::X86_64),
];
pub const PROFILE_FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", flag::LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", flag::SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_TSYNC", flag::TSYNC),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", flag::WAIT_KILLABLE_RECV),
];

const ARGUMENT_COUNT: u32 = 6;
const EPERM: u16 = 1;
/// The kernel cuts a larger one down to it (`MAX_ERRNO`).
const ERRNO_MAX: u32 = 4095;

/// The architectures of config-linux.md that this runtime runs on none of. A kernel never reports a call of one, so no filter code is
/// needed for them, and profiles that list everything stay portable.
const FOREIGN: [&str; 16] = [
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
];

/// Checks a profile, or says all that is wrong with it.
pub fn parse(native: Architecture, written: &Written) -> Result<Profile, Vec<Refusal>> {
    let mut refusals = Refusals::default();
    let profile = Profile {
        default: refusals.action("linux.seccomp.defaultAction", "defaultErrnoRet", &written.default_action, written.default_errno_ret),
        architectures: refusals.architectures(native, &written.architectures),
        rules: written.syscalls.iter().enumerate().map(|(index, rule)| refusals.rule(index, rule)).collect(),
        flags: refusals.flags(&written.flags),
    };
    let notifies = profile.default == Action::Notify || profile.rules.iter().any(|rule| rule.action == Action::Notify);
    if profile.flags & flag::WAIT_KILLABLE_RECV != 0 && !notifies {
        refusals.refuse("linux.seccomp.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY");
    }
    let empty = |path: &PathBuf| path.as_os_str().is_empty();
    let metadata = written.listener_metadata.as_ref().is_some_and(|metadata| !metadata.is_empty());
    if metadata && written.listener_path.as_ref().is_none_or(empty) {
        refusals.refuse("linux.seccomp.listenerMetadata", "must not be set without linux.seccomp.listenerPath");
    }
    if refusals.found.is_empty() { Ok(profile) } else { Err(refusals.found) }
}

#[derive(Default)]
struct Refusals {
    found: Vec<Refusal>,
}

impl Refusals {
    fn refuse(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.found.push(Refusal { field: field.into(), why: why.into() });
    }

    /// An action and its errno; `errno_field` is its name beside the action.
    fn action(&mut self, field: &str, errno_field: &str, name: &str, errno: Option<u32>) -> Action {
        let errno_path = || format!("{}.{errno_field}", field.rsplit_once('.').map_or("", |(parent, _)| parent));
        let action = match name {
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
            "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
            "SCMP_ACT_TRAP" => Action::Trap,
            "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE" => {
                let max = if name == "SCMP_ACT_ERRNO" { ERRNO_MAX } else { u32::from(u16::MAX) };
                let value = match errno {
                    Some(errno) if errno > max => {
                        self.refuse(errno_path(), format!("{errno} is above the kernel's {max} for {name}"));
                        EPERM
                    }
                    Some(errno) => u16::try_from(errno).unwrap_or(EPERM),
                    None => EPERM,
                };
                return if name == "SCMP_ACT_ERRNO" { Action::Errno(value) } else { Action::Trace(value) };
            }
            "SCMP_ACT_NOTIFY" => Action::Notify,
            "SCMP_ACT_LOG" => Action::Log,
            "SCMP_ACT_ALLOW" => Action::Allow,
            "" => {
                self.refuse(field, "missing: say what happens to a system call, such as SCMP_ACT_ERRNO");
                return Action::Allow;
            }
            other => {
                self.refuse(field, format!("{other:?} is no action; these are: {}", ACTIONS.join(", ")));
                return Action::Allow;
            }
        };
        if errno.is_some() {
            self.refuse(errno_path(), format!("{name} returns no error number: leave it out, or use SCMP_ACT_ERRNO or SCMP_ACT_TRACE"));
        }
        action
    }

    /// Those of the list that this machine can run, and its own whether it is listed or not, as libseccomp has it.
    fn architectures(&mut self, native: Architecture, names: &[String]) -> Vec<Architecture> {
        let arm = |architecture| matches!(architecture, Architecture::Aarch64 | Architecture::Arm);
        let mut architectures = vec![native];
        for (index, name) in names.iter().enumerate() {
            match ARCHITECTURES.iter().find(|(known, _)| known == name) {
                Some((_, listed)) if arm(*listed) == arm(native) && !architectures.contains(listed) => architectures.push(*listed),
                Some(_) => {}
                None if FOREIGN.contains(&name.as_str()) => {}
                None => {
                    let field = format!("linux.seccomp.architectures[{index}]");
                    self.refuse(field, format!("{name:?} is no architecture, such as SCMP_ARCH_X86_64"));
                }
            }
        }
        architectures
    }

    fn flags(&mut self, names: &[String]) -> u32 {
        let mut flags = 0;
        for (index, name) in names.iter().enumerate() {
            match PROFILE_FLAGS.iter().find(|(known, _)| known == name) {
                Some((_, bit)) => flags |= bit,
                None => {
                    let known = PROFILE_FLAGS.map(|(known, _)| known).join(", ");
                    self.refuse(format!("linux.seccomp.flags[{index}]"), format!("{name:?} is no flag of a profile; these are: {known}"));
                }
            }
        }
        flags
    }

    fn rule(&mut self, index: usize, rule: &WrittenRule) -> Rule {
        let field = format!("linux.seccomp.syscalls[{index}]");
        if rule.names.is_empty() {
            self.refuse(format!("{field}.names"), "empty: name at least one system call");
        }
        if rule.names.iter().any(String::is_empty) {
            self.refuse(format!("{field}.names"), "holds an empty name");
        }
        let action = self.action(&format!("{field}.action"), "errnoRet", &rule.action, rule.errno_ret);
        let conditions =
            rule.args.iter().enumerate().filter_map(|(place, arg)| self.condition(&format!("{field}.args[{place}]"), arg)).collect();
        Rule { names: rule.names.clone(), action, conditions }
    }

    fn condition(&mut self, field: &str, arg: &WrittenArg) -> Option<Condition> {
        let index = u8::try_from(arg.index).ok().filter(|_| arg.index < ARGUMENT_COUNT);
        if index.is_none() {
            self.refuse(
                format!("{field}.index"),
                format!("{} is not one of a system call's arguments 0 to {}", arg.index, ARGUMENT_COUNT - 1),
            );
        }
        let test = match arg.op.as_str() {
            "SCMP_CMP_NE" => Some(Test::NotEqual(arg.value)),
            "SCMP_CMP_LT" => Some(Test::Less(arg.value)),
            "SCMP_CMP_LE" => Some(Test::LessOrEqual(arg.value)),
            "SCMP_CMP_EQ" => Some(Test::Equal(arg.value)),
            "SCMP_CMP_GE" => Some(Test::GreaterOrEqual(arg.value)),
            "SCMP_CMP_GT" => Some(Test::Greater(arg.value)),
            "SCMP_CMP_MASKED_EQ" => Some(Test::MaskedEqual { mask: arg.value, value: arg.value_two }),
            other => {
                self.refuse(format!("{field}.op"), format!("{other:?} is no operator; these are: {}", OPERATORS.join(", ")));
                None
            }
        };
        Some(Condition { index: index?, test: test? })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::super::{HandOver, Seccomp, check};
    use super::*;

    fn checked(profile: &Value) -> Result<Option<Seccomp>, Vec<Refusal>> {
        check(Path::new("/bundle"), Some(Architecture::X86_64), &serde_json::from_value(profile.clone()).unwrap())
    }

    fn refused(profile: &Value) -> String {
        checked(profile).unwrap_err().iter().map(Refusal::to_string).collect::<Vec<_>>().join("\n")
    }

    fn with(field: &str, value: Value) -> Value {
        let mut profile = json!({"defaultAction":"SCMP_ACT_ALLOW"});
        profile[field] = value;
        profile
    }

    fn rule(rule: Value) -> Value {
        with("syscalls", json!([rule]))
    }

    #[test]
    fn everything_that_may_be_written_is_understood() {
        for action in ACTIONS {
            let agent = |profile: &mut Value| profile["listenerPath"] = json!("agent.sock");
            let mut profile = rule(json!({"names":["mkdir"],"action":action}));
            agent(&mut profile);
            assert!(checked(&profile).is_ok(), "{action}");
        }
        for op in OPERATORS {
            let args = json!([{"index":5,"value":u64::MAX,"valueTwo":1,"op":op}]);
            assert!(checked(&rule(json!({"names":["mkdir"],"action":"SCMP_ACT_ERRNO","args":args}))).is_ok(), "{op}");
        }
        let names: Vec<&str> = ARCHITECTURES.map(|(name, _)| name).into_iter().chain(FOREIGN).collect();
        assert!(checked(&with("architectures", json!(names))).is_ok());
    }

    #[test]
    fn nothing_is_asked_for() {
        for profile in [json!({}), json!({"defaultAction":"","architectures":null,"syscalls":null,"flags":null})] {
            assert_eq!(checked(&profile), Ok(None), "{profile}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let long: Vec<Value> = (0..700)
            .map(|value| {
                json!({"names":["mkdir"],"action":"SCMP_ACT_LOG","args":[
            {"index":0,"value":value,"op":"SCMP_CMP_GT"},{"index":1,"value":value,"op":"SCMP_CMP_GT"}]})
            })
            .collect();
        let cases = [
            (with("defaultAction", json!("ALLOW")), "linux.seccomp.defaultAction: \"ALLOW\" is no action; these are: SCMP_ACT_ALLOW"),
            (json!({"syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG"}]}), "linux.seccomp.defaultAction: missing"),
            (with("defaultErrnoRet", json!(1)), "linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW returns no error number"),
            (with("architectures", json!(["SCMP_ARCH_X86", "Z80"])), "linux.seccomp.architectures[1]: \"Z80\" is no architecture"),
            (
                with("flags", json!(["SECCOMP_FILTER_FLAG_NEW_LISTENER"])),
                "linux.seccomp.flags[0]: \"SECCOMP_FILTER_FLAG_NEW_LISTENER\" is no",
            ),
            (
                with("flags", json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])),
                "linux.seccomp.flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs",
            ),
            (with("listenerMetadata", json!("x")), "linux.seccomp.listenerMetadata: must not be set without"),
            (rule(json!({"names":[],"action":"SCMP_ACT_LOG"})), "linux.seccomp.syscalls[0].names: empty"),
            (rule(json!({"names":[""],"action":"SCMP_ACT_LOG"})), "linux.seccomp.syscalls[0].names: holds an empty name"),
            (rule(json!({"names":["read"],"action":""})), "linux.seccomp.syscalls[0].action: missing"),
            (
                rule(json!({"names":["read"],"action":"SCMP_ACT_KILL","errnoRet":1})),
                "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_KILL returns",
            ),
            (
                rule(json!({"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":4096})),
                "linux.seccomp.syscalls[0].errnoRet: 4096 is above",
            ),
            (
                rule(json!({"names":["read"],"action":"SCMP_ACT_TRACE","errnoRet":65536})),
                "linux.seccomp.syscalls[0].errnoRet: 65536 is above",
            ),
            (
                rule(json!({"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]})),
                "linux.seccomp.syscalls[0].args[0].index: 6 is not one of",
            ),
            (
                rule(json!({"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":0,"op":"=="}]})),
                "linux.seccomp.syscalls[0].args[0].op: \"==\" is no operator; these are: SCMP_CMP_EQ",
            ),
            (with("syscalls", json!(long)), "linux.seccomp.syscalls: come to"),
            (rule(json!({"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"})), "linux.seccomp.listenerPath: missing: SCMP_ACT_NOTIFY"),
            (
                json!({"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/a"}),
                "linux.seccomp.syscalls: the container's process itself must hand its notifications over",
            ),
        ];
        for (profile, expected) in cases {
            let text = refused(&profile);
            assert!(text.starts_with(expected), "{expected}\n{text}");
        }
        let both = json!({"defaultAction":"X","architectures":["Y"]});
        assert_eq!(checked(&both).unwrap_err().len(), 2, "every refusal is told at once");
    }

    #[test]
    fn notifications_are_handed_over_by_a_call_that_passes() {
        let way = |default: &str, rules: Value| {
            let profile = json!({"defaultAction":default,"listenerPath":"agent.sock","listenerMetadata":"m","syscalls":rules});
            let listener = checked(&profile).unwrap().unwrap().listener.unwrap();
            assert_eq!((listener.path.as_path(), listener.metadata.as_deref()), (Path::new("/bundle/agent.sock"), Some("m")));
            listener.hand_over
        };
        let notify = |name: &str| json!({"names":["mkdir", name],"action":"SCMP_ACT_NOTIFY"});
        let allow = |name: &str| json!({"names":[name],"action":"SCMP_ACT_ALLOW"});
        assert_eq!(way("SCMP_ACT_ALLOW", json!([notify("rmdir")])), HandOver::Message);
        assert_eq!(way("SCMP_ACT_ALLOW", json!([notify("sendmsg")])), HandOver::Number);
        assert_eq!(way("SCMP_ACT_ERRNO", json!([notify("rmdir"), allow("write")])), HandOver::Number);
        assert_eq!(way("SCMP_ACT_NOTIFY", json!([allow("sendmsg")])), HandOver::Message);
    }

    #[test]
    fn flags_of_the_call() {
        let flags = |names: &[&str], rules: Value| {
            let profile = json!({"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/a","flags":names,"syscalls":rules});
            checked(&profile).unwrap().unwrap().flags
        };
        let notify = json!([{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]);
        let unknown = json!([{"names":["no_such_call"],"action":"SCMP_ACT_NOTIFY"}]);
        let [log, spec_allow, tsync, killable] = PROFILE_FLAGS.map(|(name, _)| name);
        assert_eq!(flags(&[log, spec_allow], json!([])), flag::LOG | flag::SPEC_ALLOW);
        assert_eq!(flags(&[tsync], json!([])), flag::TSYNC);
        assert_eq!(flags(&[tsync, killable], notify), flag::TSYNC | flag::TSYNC_ESRCH | flag::NEW_LISTENER | flag::WAIT_KILLABLE_RECV);
        assert_eq!(flags(&[killable], unknown), 0);
    }
}
