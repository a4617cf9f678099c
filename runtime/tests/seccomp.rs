//! `linux.seccomp` in real containers: what every action answers, which arguments and architectures it concerns, what calls that the
//! profile does not know get, and who is notified. Where runc can do the same, both must agree.
#![cfg(target_arch = "x86_64")]

mod common;

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};

use common::probe::{Probe, results};
use common::{Bundle, tool};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

/// x86_64's numbers.
mod number {
    pub const GETPID: u32 = 39;
    pub const MKDIR: u32 = 83;
    pub const RMDIR: u32 = 84;
    pub const GETUID: u32 = 102;
    pub const MOUNT: u32 = 165;
    pub const CLONE3: u32 = 435;
    pub const OPENAT2: u32 = 437;
}

const EPERM: i64 = -(libc::EPERM as i64);
const EFAULT: i64 = -(libc::EFAULT as i64);
const ENOSYS: i64 = -(libc::ENOSYS as i64);
/// 128 and SIGSYS, as a shell tells it.
const BAD_CALL: i32 = 159;

/// A bundle that runs a probe under a profile.
fn bundle(mut probe: Probe, profile: &Value) -> Bundle {
    let mut bundle = Bundle::new("");
    probe.write(&bundle.rootfs("bin/probe"));
    bundle.set("/process/args", json!(["/bin/probe"])).set("/linux/seccomp", profile.clone());
    bundle
}

fn ours(bundle: &Bundle) -> Output {
    bundle.write();
    bundle.call(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id])
}

/// The results and the exit code under ours.
fn outcome(bundle: &Bundle) -> (Vec<i64>, i32) {
    let output = ours(bundle);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (results(&output.stdout), output.status.code().unwrap())
}

/// The outcome under ours, after making sure that it is runc's too.
fn agreed(bundle: &Bundle) -> (Vec<i64>, i32) {
    let outcome = outcome(bundle);
    let Some(runc) = tool("runc") else {
        std::io::stderr().lock().write_all(b"SKIPPED: runc is not installed: apt-get install runc\n").unwrap();
        return outcome;
    };
    let mut command = Command::new(runc);
    command.arg("--root").arg(bundle.path("runc")).args(["run", "--bundle"]).arg(bundle.path("")).arg(&bundle.id);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let theirs = (results(&output.stdout), output.status.code().unwrap());
    assert_eq!(outcome, theirs, "ours and runc's; runc: {}", String::from_utf8_lossy(&output.stderr));
    outcome
}

fn rule(names: &[&str], action: &str) -> Value {
    json!({"names": names, "action": action})
}

fn profile(default: &str, rules: &[Value]) -> Value {
    json!({"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules})
}

fn probe(calls: &[(u32, &[u64])]) -> Probe {
    let mut probe = Probe::default();
    for (number, args) in calls {
        probe.call(*number, args);
    }
    probe
}

#[test]
fn each_action_that_answers() {
    let errno = json!({"names":["mkdir"],"action":"SCMP_ACT_ERRNO","errnoRet":7});
    let done = json!({"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":0});
    let rules = [errno, done, rule(&["rmdir"], "SCMP_ACT_ERRNO"), rule(&["getuid"], "SCMP_ACT_LOG"), rule(&["mount"], "SCMP_ACT_TRACE")];
    let calls: &[(u32, &[u64])] = &[
        (number::MKDIR, &[0]),
        (number::GETPID, &[]),
        (number::RMDIR, &[0]),
        (number::GETUID, &[]),
        (number::MOUNT, &[]),
        (number::OPENAT2, &[]),
    ];
    let bundle = bundle(probe(calls), &profile("SCMP_ACT_ALLOW", &rules));
    // TRACE without a tracer is no such call; what the default allows reaches the kernel.
    assert_eq!(agreed(&bundle), (vec![-7, 0, EPERM, 0, ENOSYS, -i64::from(libc::EINVAL)], 0));
}

#[test]
fn each_action_that_ends_the_process() {
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let bundle = bundle(probe(&[(number::MKDIR, &[0])]), &profile("SCMP_ACT_ALLOW", &[rule(&["mkdir"], action)]));
        assert_eq!(agreed(&bundle), (vec![], BAD_CALL), "{action}");
    }
}

#[test]
fn every_operator_on_64_bits() {
    let wide = 5 << 32 | 7;
    let values = [0, 6, 7, 8, 4 << 32 | 9, wide - 1, wide, wide + 1, 6 << 32, u64::MAX];
    type Holds = fn(u64, u64) -> bool;
    let operators: [(&str, Holds); 6] = [
        ("SCMP_CMP_NE", |arg, value| arg != value),
        ("SCMP_CMP_LT", |arg, value| arg < value),
        ("SCMP_CMP_LE", |arg, value| arg <= value),
        ("SCMP_CMP_EQ", |arg, value| arg == value),
        ("SCMP_CMP_GE", |arg, value| arg >= value),
        ("SCMP_CMP_GT", |arg, value| arg > value),
    ];
    for (op, holds) in operators {
        for (index, value) in [(0, wide), (5, 7)] {
            let denied = json!({"names":["getuid"],"action":"SCMP_ACT_ERRNO","args":[{"index":index,"value":value,"op":op}]});
            let calls = values.map(|arg| [0, 0, 0, 0, 0, 0].map(|_: u64| arg));
            let calls: Vec<(u32, &[u64])> = calls.iter().map(|args| (number::GETUID, args.as_slice())).collect();
            let expected: Vec<i64> = values.iter().map(|arg| if holds(*arg, value) { EPERM } else { 0 }).collect();
            assert_eq!(agreed(&bundle(probe(&calls), &profile("SCMP_ACT_ALLOW", &[denied]))), (expected, 0), "{op} {value}");
        }
    }
}

#[test]
fn masks_and_several_arguments() {
    let mask = 0xff_u64 << 32 | 0xf0;
    let masked = json!({"names":["getuid"],"action":"SCMP_ACT_ERRNO","errnoRet":11,
        "args":[{"index":0,"value":mask,"valueTwo":1u64 << 32 | 0x20,"op":"SCMP_CMP_MASKED_EQ"}]});
    // All of them.
    let both = json!({"names":["getuid"],"action":"SCMP_ACT_ERRNO","errnoRet":12,
        "args":[{"index":1,"value":1,"op":"SCMP_CMP_EQ"},{"index":2,"value":2,"op":"SCMP_CMP_GE"}]});
    // Two for one argument: any of them.
    let either = json!({"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":13,
        "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]});
    let calls: &[(u32, &[u64])] = &[
        (number::GETUID, &[1 << 32 | 0x2f, 0, 0]),
        (number::GETUID, &[0xf00_0000_0000 | 1 << 32 | 0x20, 0, 0]),
        (number::GETUID, &[0x2f, 0, 0]),
        (number::GETUID, &[1 << 32 | 0x30, 0, 0]),
        (number::GETUID, &[0, 1, 2]),
        (number::GETUID, &[0, 1, 1]),
        (number::GETUID, &[0, 2, 2]),
        (number::GETPID, &[1]),
        (number::GETPID, &[2]),
        (number::GETPID, &[3]),
    ];
    let bundle = bundle(probe(calls), &profile("SCMP_ACT_ALLOW", &[masked, both, either]));
    assert_eq!(agreed(&bundle), (vec![-11, -11, 0, 0, -12, 0, 0, -13, -13, 1], 0));
}

#[test]
fn a_rule_for_the_whole_call_wins_wherever_it_stands() {
    let of_arguments = json!({"names":["getuid"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]});
    let whole = json!({"names":["getuid"],"action":"SCMP_ACT_ERRNO","errnoRet":20});
    let later = json!({"names":["getuid"],"action":"SCMP_ACT_ERRNO","errnoRet":21});
    for rules in [[&of_arguments, &whole, &later], [&whole, &later, &of_arguments]] {
        let rules = rules.map(Value::clone);
        let bundle = bundle(probe(&[(number::GETUID, &[1]), (number::GETUID, &[2])]), &profile("SCMP_ACT_ALLOW", &rules));
        assert_eq!(agreed(&bundle), (vec![-20, -20], 0));
    }
    // One that says what the default says anyway does not count.
    let redundant = rule(&["getuid"], "SCMP_ACT_ALLOW");
    let bundle = bundle(probe(&[(number::GETUID, &[1]), (number::GETUID, &[2])]), &profile("SCMP_ACT_ALLOW", &[redundant, of_arguments]));
    assert_eq!(agreed(&bundle), (vec![EPERM, 0], 0));
}

/// What runc and a static program need, of calls that an old profile knew.
const OLD: [&str; 40] = [
    "arch_prctl",
    "brk",
    "capget",
    "capset",
    "chdir",
    "close",
    "epoll_ctl",
    "epoll_pwait",
    "execve",
    "exit",
    "exit_group",
    "fchdir",
    "fcntl",
    "fstat",
    "fstatfs",
    "futex",
    "getdents64",
    "getpid",
    "getppid",
    "getuid",
    "mmap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "openat",
    "prctl",
    "read",
    "readlinkat",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setuid",
    "sigaltstack",
    "tgkill",
    "write",
    "statx",
];

#[test]
fn calls_that_the_profile_cannot_know_are_unknown_and_not_forbidden() {
    let calls: &[(u32, &[u64])] =
        &[(number::CLONE3, &[0, 0]), (number::OPENAT2, &[0]), (9999, &[]), (number::MOUNT, &[]), (number::GETUID, &[]), (334, &[])];
    // faccessat2 is what runc itself looks for its program with.
    let old = profile("SCMP_ACT_ERRNO", &[rule(&OLD, "SCMP_ACT_ALLOW"), rule(&["no_such_call"], "SCMP_ACT_ALLOW")]);
    assert_eq!(agreed(&bundle(probe(calls), &old)), (vec![ENOSYS, ENOSYS, ENOSYS, EPERM, 0, ENOSYS], 0));
    // A profile that knows newer ones forbids what it leaves out.
    let new = profile("SCMP_ACT_ERRNO", &[rule(&OLD, "SCMP_ACT_ALLOW"), rule(&["openat2", "faccessat2"], "SCMP_ACT_ALLOW")]);
    assert_eq!(agreed(&bundle(probe(calls), &new)), (vec![EPERM, -i64::from(libc::EINVAL), ENOSYS, EPERM, 0, EPERM], 0));
}

#[test]
fn other_architectures() {
    let denied = json!({"names":["getuid"],"action":"SCMP_ACT_ERRNO","errnoRet":9});
    let with = |architectures: Value| json!({"defaultAction":"SCMP_ACT_ALLOW","architectures":architectures,"syscalls":[denied]});
    let x32 = 0x4000_0000;
    // 32-bit x86: getuid is 24, and getpid 20.
    let mut both = Probe::default();
    both.call_x86(24, &[]).call_x86(20, &[]).call(number::GETUID, &[]).call(number::GETPID, &[]);
    assert_eq!(agreed(&bundle(both, &with(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"])))), (vec![-9, 1, -9, 1], 0));
    let mut other = Probe::default();
    other.call_x86(20, &[]);
    assert_eq!(agreed(&bundle(other, &with(json!(["SCMP_ARCH_X86_64"])))), (vec![], BAD_CALL), "not listed");
    let listed = with(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_S390X"]));
    let listed = bundle(probe(&[(number::GETUID | x32, &[]), (number::GETUID, &[])]), &listed);
    // runc's library takes no architecture of the other byte order.
    assert_eq!(outcome(&listed), (vec![-9, -9], 0));
    let other = bundle(probe(&[(number::GETPID | x32, &[])]), &with(json!(["SCMP_ARCH_X86_64"])));
    assert_eq!(agreed(&other), (vec![], BAD_CALL), "not listed");
}

#[test]
fn calls_that_32_bit_x86_packs_into_others() {
    let rules = [rule(&["socket", "shmget"], "SCMP_ACT_ERRNO")];
    let denying = json!({"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":rules});
    let (socketcall, ipc, socket, shmget) = (102, 117, 359, 395);
    let mut probe = Probe::default();
    probe
        .call_x86(socketcall, &[1, 0])
        .call_x86(socketcall, &[2, 0])
        .call_x86(ipc, &[23])
        .call_x86(socket, &[99])
        .call_x86(shmget, &[0, 0, 0]);
    // 2 is bind, which is allowed and has no argument where it looks for it.
    assert_eq!(agreed(&bundle(probe, &denying)), (vec![EPERM, EFAULT, EPERM, EPERM, EPERM], 0));
    // The upper half of ipc's number is a version, and no way around the filter.
    let mut probe = Probe::default();
    probe.call_x86(ipc, &[1 << 16 | 23]);
    assert_eq!(outcome(&bundle(probe, &denying)), (vec![EPERM], 0));
}

#[test]
fn the_process_says_that_it_is_filtered() {
    let mut shell = Bundle::new("grep -E '^(Seccomp|NoNewPrivs|Cap|Uid)' /proc/self/status; id");
    shell.set("/linux/seccomp", profile("SCMP_ACT_ALLOW", &[rule(&["mkdir"], "SCMP_ACT_ERRNO")]));
    let lines = |bundle: &Bundle| {
        let text = bundle.prints();
        let runc = tool("runc").map(|runc| {
            let mut command = Command::new(runc);
            command.arg("--root").arg(bundle.path("runc")).args(["run", "--bundle"]).arg(bundle.path("")).arg(&bundle.id);
            String::from_utf8(command.output().unwrap().stdout).unwrap().trim_end().to_owned()
        });
        assert_eq!(runc.as_ref().unwrap_or(&text), &text);
        text
    };
    for (no_new_privileges, uid) in [(true, 0), (true, 1000), (false, 0), (false, 1000)] {
        shell.set("/process/noNewPrivileges", json!(no_new_privileges)).set("/process/user", json!({"uid":uid,"gid":uid}));
        let text = lines(&shell);
        assert!(text.contains("Seccomp:\t2\nSeccomp_filters:\t1"), "{text}");
        assert!(text.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privileges))), "{text}");
    }
}

#[test]
fn the_runtime_itself_needs_three_calls() {
    let rules = [rule(&["write", "read", "execve", "exit"], "SCMP_ACT_ALLOW")];
    let mut bundle = bundle(probe(&[(number::GETPID, &[])]), &profile("SCMP_ACT_ERRNO", &rules));
    bundle.set("/process/noNewPrivileges", json!(true));
    assert_eq!(outcome(&bundle), (vec![EPERM], 0));
}

#[test]
fn flags_are_taken() {
    let mut profile = profile("SCMP_ACT_ALLOW", &[rule(&["mkdir"], "SCMP_ACT_ERRNO")]);
    profile["flags"] = json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
    // runc 1.1.5 takes none.
    assert_eq!(outcome(&bundle(probe(&[(number::MKDIR, &[0])]), &profile)), (vec![EPERM], 0));
}

/// The agent's side of a notification: what the runtime sends it.
struct Introduction {
    state: Value,
    notifications: OwnedFd,
    stream: UnixStream,
}

fn introduction(listener: &UnixListener) -> Introduction {
    let stream = listener.accept().unwrap().0;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 1 << 16];
    let count = rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let mut descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(descriptors.len(), 1);
    bytes.truncate(count);
    // Not to its end: runc leaves its side open.
    while serde_json::from_slice::<Value>(&bytes).is_err() {
        let mut more = [0; 4096];
        let count = (&stream).read(&mut more).unwrap();
        assert!(count > 0, "cut off: {}", String::from_utf8_lossy(&bytes));
        bytes.extend(&more[..count]);
    }
    Introduction { state: serde_json::from_slice(&bytes).unwrap(), notifications: descriptors.remove(0), stream }
}

/// Takes one notification, answers it with an error number, and prints it (seccomp_unotify(2)). The descriptor is its standard input.
fn answering_agent(errno: i32) -> Probe {
    const IOCTL: u32 = 16;
    const RECEIVE: u64 = 0xc050_2100;
    const SEND: u64 = 0xc018_2101;
    let mut agent = Probe::default();
    let notification = agent.data(&[0; 80]);
    // id, value, error, flags.
    let mut response = vec![0; 16];
    response.extend((-errno).to_le_bytes());
    response.extend([0; 4]);
    let response = agent.data(&response);
    agent.call(IOCTL, &[0, RECEIVE, notification]).copy(notification, response).call(IOCTL, &[0, SEND, response]).print(notification, 80);
    agent
}

/// A listening socket for the agent, in the bundle.
fn listening(bundle: &mut Bundle) -> UnixListener {
    let path = bundle.path("agent.sock");
    bundle.set("/linux/seccomp/listenerPath", json!(path)).set("/linux/seccomp/listenerMetadata", json!("for=whom"));
    UnixListener::bind(path).unwrap()
}

#[test]
fn a_notified_call_is_answered_by_the_listener() {
    for (notified, flags) in [
        // sendmsg cannot carry the descriptor then, and write tells its number.
        (vec!["mkdir"], json!([])),
        (vec!["mkdir", "sendmsg"], json!([])),
        (vec!["mkdir"], json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])),
    ] {
        let mut profile = profile("SCMP_ACT_ALLOW", &[rule(&notified, "SCMP_ACT_NOTIFY")]);
        profile["flags"] = flags;
        let mut bundle = bundle(probe(&[(number::MKDIR, &[77]), (number::GETUID, &[])]), &profile);
        bundle.set("/annotations", json!({"org.example":"x"}));
        let listener = listening(&mut bundle);
        answering_agent(42).write(&bundle.path("agent"));
        bundle.write();
        let container = bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
        let mut container = reading(container);
        let Introduction { state, notifications, stream } = introduction(&listener);
        let pid = state["pid"].as_u64().unwrap();
        let expected = json!({"ociVersion":"1.2.1","fds":["seccompFd"],"pid":pid,"metadata":"for=whom","state":{
            "ociVersion":"1.2.1","id":bundle.id,"status":"creating","pid":pid,"bundle":bundle.dir.path(),"annotations":{"org.example":"x"}}});
        assert_eq!(state, expected);
        drop(stream);
        let mut agent = Command::new(bundle.path("agent"));
        let printed = agent.stdin(notifications).stderr(Stdio::null()).output().unwrap().stdout;
        // The notification (struct seccomp_notif): id, pid, flags, then number, architecture, instruction pointer, arguments.
        let number = u32::from_le_bytes(printed[16..20].try_into().unwrap());
        assert_eq!((number, printed[32]), (number::MKDIR, 77));
        assert_eq!(results(&printed[80..]), [0, 0], "both requests of the agent succeed");
        let output = finish(&mut container);
        assert_eq!(results(&output), [-42, 0]);
    }
}

fn reading(mut command: Command) -> std::process::Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

fn finish(child: &mut std::process::Child) -> Vec<u8> {
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    assert!(child.wait().unwrap().success());
    output
}

/// runc tells the listener the same, but for its version.
#[test]
fn the_listener_is_told_what_runc_tells() {
    let Some(runc) = tool("runc") else { return };
    let mut bundle = bundle(probe(&[(number::MKDIR, &[77])]), &profile("SCMP_ACT_ALLOW", &[rule(&["mkdir"], "SCMP_ACT_NOTIFY")]));
    bundle.set("/annotations", json!({"org.example":"x"}));
    let listener = listening(&mut bundle);
    bundle.write();
    let mut theirs = Command::new(runc);
    theirs.arg("--root").arg(bundle.path("runc"));
    let told = [bundle.command(&[]), theirs].map(|mut command| {
        command.args(["run", "--bundle"]).arg(bundle.path("")).arg(&bundle.id);
        let mut container = reading(command);
        let Introduction { mut state, notifications, stream } = introduction(&listener);
        drop((notifications, stream));
        assert_eq!(results(&finish(&mut container)), [ENOSYS]);
        assert_eq!(state["pid"], state["state"]["pid"]);
        for place in ["/pid", "/state/pid", "/ociVersion", "/state/ociVersion"] {
            *state.pointer_mut(place).unwrap() = json!("some");
        }
        state
    });
    assert_eq!(told[0], told[1]);
}

#[test]
fn without_its_listener_a_notified_call_is_unknown() {
    let mut bundle = bundle(probe(&[(number::MKDIR, &[0])]), &profile("SCMP_ACT_ALLOW", &[rule(&["mkdir"], "SCMP_ACT_NOTIFY")]));
    let listener = listening(&mut bundle);
    bundle.write();
    let mut container = reading(bundle.command(&["run", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]));
    drop(introduction(&listener));
    assert_eq!(results(&finish(&mut container)), [ENOSYS]);
}

#[test]
fn a_listener_that_is_not_there_fails_the_create() {
    let mut bundle = bundle(probe(&[]), &profile("SCMP_ACT_ALLOW", &[rule(&["mkdir"], "SCMP_ACT_NOTIFY")]));
    drop(listening(&mut bundle));
    let error = bundle.create_fails();
    assert!(error.contains("linux.seccomp.listenerPath: ") && error.contains("agent.sock: connect: is the listener there?"), "{error}");
}

#[test]
fn what_cannot_be_had_is_refused_and_leaves_nothing() {
    let cases = [
        (json!({"defaultAction":"SCMP_ACT_DENY"}), "linux.seccomp.defaultAction: \"SCMP_ACT_DENY\" is no action"),
        (json!({"defaultAction":1}), "linux.seccomp.defaultAction: invalid type: integer `1`, expected a string"),
        (
            profile("SCMP_ACT_ALLOW", &[json!({"names":["read"],"action":"SCMP_ACT_LOG","errnoRet":-1})]),
            "linux.seccomp.syscalls[0].errnoRet: invalid",
        ),
        (profile("SCMP_ACT_ALLOW", &[rule(&["mkdir"], "SCMP_ACT_NOTIFY")]), "linux.seccomp.listenerPath: missing"),
    ];
    for (profile, expected) in cases {
        let error = bundle(Probe::default(), &profile).create_fails();
        assert!(error.contains(expected), "{expected}\n{error}");
    }
}

#[test]
fn the_features_are_those_of_runc_and_more() {
    let bundle = Bundle::new("");
    let features: Value = serde_json::from_str(&bundle.ok(&["features"])).unwrap();
    let seccomp = &features["linux"]["seccomp"];
    assert_eq!(seccomp["enabled"], json!(true));
    assert_eq!(seccomp["actions"].as_array().unwrap().len(), 9);
    assert_eq!(seccomp["operators"].as_array().unwrap().len(), 7);
    assert!(seccomp["archs"].as_array().unwrap().contains(&json!("SCMP_ARCH_X32")));
    assert_eq!(seccomp["supportedFlags"], seccomp["knownFlags"], "on a kernel that this runtime's tests run on");
    assert!(seccomp["knownFlags"].as_array().unwrap().contains(&json!("SECCOMP_FILTER_FLAG_LOG")));
}

#[test]
fn a_process_of_exec_is_filtered_too() {
    let denied = rule(&["mkdir"], "SCMP_ACT_ERRNO");
    let mut bundle = bundle(probe(&[(number::MKDIR, &[0]), (number::RMDIR, &[1])]), &profile("SCMP_ACT_ALLOW", &[denied]));
    bundle.script("sleep 1000");
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    for options in [&[][..], &["--no-new-privs"], &["--user", "1000:1000"]] {
        let args: Vec<&str> = [&["exec"], options, &[bundle.id.as_str(), "/bin/probe"]].concat();
        assert_eq!(results(&bundle.call(&args).stdout), [EPERM, EFAULT], "{options:?}");
    }
}

#[test]
fn a_process_of_exec_notifies_on_its_own() {
    let notified = rule(&["rmdir"], "SCMP_ACT_NOTIFY");
    let mut bundle = bundle(probe(&[(number::RMDIR, &[1])]), &profile("SCMP_ACT_ALLOW", &[notified]));
    bundle.script("sleep 1000");
    let listener = listening(&mut bundle);
    bundle.create();
    let first = introduction(&listener).state;
    bundle.ok(&["start", &bundle.id]);
    let mut executed = reading(bundle.command(&["exec", &bundle.id, "/bin/probe"]));
    let Introduction { state, notifications, stream } = introduction(&listener);
    assert_eq!((&state["state"]["status"], &state["state"]["pid"]), (&json!("running"), &first["pid"]));
    assert_ne!(state["pid"], first["pid"]);
    drop((notifications, stream));
    assert_eq!(results(&finish(&mut executed)), [ENOSYS]);
}

/// The agent's profile for a container with the default capabilities.
const DEFAULT: &str = include_str!("../../agent/src/core/golden/seccomp.json");

#[test]
fn the_default_profile_holds_what_it_should() {
    let new_user = libc::CLONE_NEWUSER as u64;
    let domain = |domain: i32| domain as u64;
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let forbidden: [(libc::c_long, &[u64]); 20] = [
        (libc::SYS_unshare, &[new_user]),
        (libc::SYS_unshare, &[libc::CLONE_NEWNS as u64]),
        (libc::SYS_clone, &[new_user | libc::SIGCHLD as u64, 0]),
        (libc::SYS_setns, &[0, 0]),
        (libc::SYS_mount, &[0, 0, 0, 0, 0]),
        (libc::SYS_umount2, &[0, 0]),
        (libc::SYS_pivot_root, &[0, 0]),
        (libc::SYS_fsopen, &[0, 0]),
        (libc::SYS_keyctl, &[0, 0]),
        (libc::SYS_add_key, &[0, 0, 0, 0, 0]),
        (libc::SYS_bpf, &[0, 0, 0]),
        (libc::SYS_perf_event_open, &[0, 0, 0, 0, 0]),
        (libc::SYS_userfaultfd, &[0]),
        (libc::SYS_io_uring_setup, &[0, 0]),
        (libc::SYS_init_module, &[0, 0, 0]),
        (libc::SYS_kexec_load, &[0, 0, 0, 0]),
        (libc::SYS_personality, &[0x4_0000]),
        (libc::SYS_socket, &[domain(libc::AF_ALG), libc::SOCK_SEQPACKET as u64, 0]),
        (libc::SYS_socket, &[domain(libc::AF_VSOCK), libc::SOCK_STREAM as u64, 0]),
        // The kernel looks at the lower half alone, and so at AF_VSOCK.
        (libc::SYS_socket, &[1 << 32 | domain(libc::AF_VSOCK), libc::SOCK_STREAM as u64, 0]),
    ];
    let mut probes = [Probe::default(), Probe::default()];
    for probe in &mut probes {
        for (call, args) in forbidden {
            probe.call(number(call), args);
        }
        let (mount_x86, getpid_x86) = (21, 20);
        probe.call_x86(mount_x86, &[0, 0, 0, 0, 0]).call(number::CLONE3, &[0, 0]).call(999, &[]);
        // Allowed; the kernel makes nothing of the first two.
        probe.call(number::OPENAT2, &[0, 0, 0, 0]).call(number(libc::SYS_process_vm_readv), &[0, 0, 0, 0, 0, 1]);
        probe.call(number(libc::SYS_personality), &[0xffff_ffff]).call_x86(getpid_x86, &[]);
        probe.call(number(libc::SYS_socket), &[domain(libc::AF_INET), libc::SOCK_STREAM as u64, 0]);
        // Who asks to be traced stops at the next signal, and runc, which traces it then, does not see to it: it asks for memory instead.
        probe.call(number(libc::SYS_ptrace), &[libc::PTRACE_PEEKDATA as u64, 1, 0, 0]);
    }
    let einval = -i64::from(libc::EINVAL);
    let mut expected = vec![EPERM; forbidden.len() + 1];
    expected.extend([ENOSYS, ENOSYS, einval, einval, 0, 1, 3, -i64::from(libc::ESRCH)]);
    for (no_new_privileges, probe) in [false, true].into_iter().zip(probes) {
        let mut container = bundle(probe, &serde_json::from_str(DEFAULT).unwrap());
        container.set("/process/noNewPrivileges", json!(no_new_privileges));
        assert_eq!(agreed(&container), (expected.clone(), 0));
    }
}

#[test]
fn a_shell_runs_under_the_default_profile() {
    let mut bundle =
        Bundle::new("mkdir /tmp/x; echo y > /tmp/x/y; cat /tmp/x/y | head -1; (sleep 0.01; echo child) & wait; hostname; ls / | wc -l");
    bundle.set("/root/readonly", json!(false)).set("/linux/seccomp", serde_json::from_str(DEFAULT).unwrap());
    std::fs::create_dir(bundle.rootfs("tmp")).unwrap();
    assert!(bundle.prints().starts_with("y\nchild\n"));
}
