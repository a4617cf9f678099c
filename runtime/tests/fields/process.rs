//! `process`: program, user, capabilities, limits.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::common::write_program;
use crate::engine::{Case, check, check_prepared, refused, same};

#[test]
fn arguments_environment_and_directory() {
    let shown = "for a in \"$0\" \"$@\"; do echo \"<$a>\"; done; pwd; env | sort";
    let args = |args: &[&str]| json!({"/process/args": args});
    check_prepared(
        |bundle| {
            write_program(&bundle.rootfs("bin/show"), format!("#!/bin/sh\n{shown}\n"));
            write_program(&bundle.rootfs("bin/plain"), "no program");
            fs::set_permissions(bundle.rootfs("bin/plain"), fs::Permissions::from_mode(0o644)).unwrap();
            write_program(&bundle.rootfs("bin/broken"), "\u{7f}ELF");
            fs::create_dir(bundle.rootfs("etc")).unwrap();
            fs::write(bundle.rootfs("etc/passwd"), "root:x:0:0::/root:/bin/sh\nother:x:33:34::/home/other:/bin/sh\n").unwrap();
        },
        [
            same("by name", args(&["show", "a b", "", "ü", "*", "$HOME"]), ""),
            same("by path", args(&["/bin/show", "x"]), ""),
            same("by relative path", json!({"/process/args":["./show"],"/process/cwd":"/bin"}), ""),
            same("environment", json!({"/process/env":["PATH=/bin","A=","B=b=c","D=ü x","A=again"]}), shown),
            same("its own HOME", json!({"/process/env":["PATH=/bin","HOME=/here"]}), shown),
            same("the user's HOME", json!({"/process/user":{"uid":33,"gid":34}}), shown),
            same("an unknown user's HOME", json!({"/process/user":{"uid":77,"gid":77}}), shown),
            same("a directory that is there", json!({"/process/cwd":"/bin"}), shown),
            same("a directory that is made", json!({"/process/cwd":"/srv/app"}), "pwd; stat -c '%a %u:%g' . .."),
            same(
                "a directory that is made, another user",
                json!({"/process/cwd":"/srv/app","/process/user":{"uid":33,"gid":34}}),
                "pwd; stat -c '%a %u:%g' . ..",
            ),
            refused("no such program", args(&["nosuch"]), "process.args[0]"),
            refused("no such path", args(&["/bin/nosuch"]), "process.args[0]"),
            refused("not executable", args(&["/bin/plain"]), "process.args[0]"),
            refused("a directory", args(&["/bin"]), "process.args[0]"),
            refused("no format", args(&["/bin/broken"]), "process.args[0]"),
            refused("no arguments", args(&[]), "process.args"),
            refused("a variable without a value", json!({"/process/env":["PATH=/bin","A"]}), "process.env[1]"),
            refused("a variable without a name", json!({"/process/env":["=x","PATH=/bin"]}), "process.env[0]"),
            refused("a relative directory", json!({"/process/cwd":"bin"}), "process.cwd"),
            refused("a file as the directory", json!({"/process/cwd":"/bin/busybox"}), "process.cwd"),
        ],
    );
}

const IDENTITY: &str =
    "id; umask; grep -E '^(Uid|Gid|Groups|Cap|NoNew)' /proc/self/status; touch /dev/shm/x; stat -c '%a %u:%g' /dev/shm/x";

#[test]
fn user_groups_and_umask() {
    let user = |user: Value| json!({"/process/user": user});
    check([
        same("root", user(json!({"uid":0,"gid":0})), IDENTITY),
        same("another", user(json!({"uid":33,"gid":34})), IDENTITY),
        same("groups", user(json!({"uid":33,"gid":34,"additionalGids":[5,6,34,0]})), IDENTITY),
        same("root with groups", user(json!({"uid":0,"gid":7,"additionalGids":[8]})), IDENTITY),
        same("the highest that runc takes", user(json!({"uid":i32::MAX,"gid":i32::MAX})), "grep -E '^(Uid|Gid)' /proc/self/status"),
        same("umask", user(json!({"uid":33,"gid":34,"umask":0o27})), IDENTITY),
        same("umask of none", user(json!({"uid":0,"gid":0,"umask":0})), IDENTITY),
        refused("a negative one", user(json!({"uid":-1,"gid":0})), "process.user.uid"),
        refused("a word", user(json!({"uid":"root","gid":0})), "process.user.uid"),
    ]);
}

#[test]
fn each_set_of_capabilities() {
    let some = json!(["CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"]);
    let sets = |names: &[&str]| Value::Object(names.iter().map(|name| ((*name).to_owned(), some.clone())).collect());
    let all = ["bounding", "effective", "permitted", "inheritable", "ambient"];
    let mut cases = Vec::<Case>::new();
    for uid in [0, 33] {
        for privileges in [true, false] {
            let with = |sets: Value| json!({"/process/capabilities":sets,"/process/user":{"uid":uid,"gid":uid},"/process/noNewPrivileges":privileges});
            cases.extend([
                same("all five", with(sets(&all)), IDENTITY),
                same("without ambient", with(sets(&all[..4])), IDENTITY),
                same("the three of old", with(sets(&all[..3])), IDENTITY),
                same("bounding alone", with(sets(&all[..1])), IDENTITY),
                same("bounding and inheritable", with(sets(&["bounding", "inheritable"])), IDENTITY),
                same("none", with(json!({})), IDENTITY),
            ]);
        }
    }
    check(cases);
    check([
        same("no capabilities", json!({"/process/capabilities":null}), IDENTITY),
        same("an unknown one", json!({"/process/capabilities":{"bounding":["CAP_KILL","CAP_FLY"]}}), IDENTITY),
        same(
            "ambient but not inheritable",
            json!({"/process/capabilities":{"bounding":some,"permitted":some,"effective":some,"ambient":some}}),
            IDENTITY,
        ),
    ]);
}

/// A program that is to run as root does so without the flag alone; it tells its effective user by the number.
#[test]
#[cfg(target_arch = "x86_64")]
fn no_new_privileges() {
    let geteuid = u32::try_from(libc::SYS_geteuid).unwrap();
    let with = |privileges: bool| json!({"/process/user":{"uid":33,"gid":34},"/process/noNewPrivileges":privileges,"/process/args":["/bin/raised"]});
    check_prepared(
        |bundle| {
            crate::common::probe::Probe::default().call(geteuid, &[]).write(&bundle.rootfs("bin/raised"));
            fs::set_permissions(bundle.rootfs("bin/raised"), fs::Permissions::from_mode(0o4755)).unwrap();
        },
        [same("with the flag", with(true), ""), same("without it", with(false), "")],
    );
}

#[test]
fn limits() {
    let kinds = [
        "AS",
        "CORE",
        "CPU",
        "DATA",
        "FSIZE",
        "LOCKS",
        "MEMLOCK",
        "MSGQUEUE",
        "NICE",
        "NOFILE",
        "NPROC",
        "RSS",
        "RTPRIO",
        "RTTIME",
        "SIGPENDING",
        "STACK",
    ];
    // What every host lets a process have that may not raise its limits: the least of all.
    let each: Vec<Value> = kinds
        .iter()
        .map(|kind| {
            let hard: u64 = match *kind {
                "NICE" | "RTPRIO" => 0,
                "NPROC" | "SIGPENDING" => 300,
                "LOCKS" | "NOFILE" => 64,
                "MEMLOCK" | "MSGQUEUE" | "CORE" => 8192,
                _ => 1 << 30,
            };
            // What runc is written in raises its own at some moment of its start, and so now and then the container's.
            let soft = if *kind == "NOFILE" { hard } else { hard / 2 };
            json!({"type":format!("RLIMIT_{kind}"),"soft":soft,"hard":hard})
        })
        .collect();
    let limits = |limits: Value| json!({"/process/rlimits": limits});
    let nofile = |soft: Value, hard: Value| json!([{"type":"RLIMIT_NOFILE","soft":soft,"hard":hard}]);
    check([
        same("each", limits(json!(each)), "cat /proc/self/limits"),
        same("each, another user", json!({"/process/rlimits":each,"/process/user":{"uid":33,"gid":34}}), "cat /proc/self/limits"),
        same("none", limits(json!([])), "cat /proc/self/limits"),
        same("without an end", limits(json!([{"type":"RLIMIT_CPU","soft":u64::MAX,"hard":u64::MAX}])), "cat /proc/self/limits"),
        refused("soft above hard", limits(nofile(json!(9), json!(8))), "process.rlimits[0]"),
        refused("an unknown one", limits(json!([{"type":"RLIMIT_FLY","soft":1,"hard":1}])), "process.rlimits[0]"),
        refused("a negative one", limits(nofile(json!(-1), json!(8))), "process.rlimits[0]"),
    ]);
}

#[test]
fn scores_for_the_oom_killer() {
    let look = "cat /proc/self/oom_score_adj";
    check([
        same("given", json!({"/process/oomScoreAdj":321}), look),
        same("the highest", json!({"/process/oomScoreAdj":1000}), look),
        same("none", json!({}), look),
        same("another user", json!({"/process/oomScoreAdj":500,"/process/user":{"uid":33,"gid":34}}), look),
        refused("too high", json!({"/process/oomScoreAdj":1001}), "process.oomScoreAdj"),
    ]);
}

/// Without a security module both refuse its labels, and an empty one asks for nothing.
#[test]
fn labels() {
    check([same("empty", json!({"/process/apparmorProfile":"","/process/selinuxLabel":"","/linux/mountLabel":""}), "echo ran")]);
    for (module, case) in [
        (
            "/sys/module/apparmor/parameters/enabled",
            refused("a profile", json!({"/process/apparmorProfile":"none"}), "process.apparmorProfile"),
        ),
        ("/sys/fs/selinux/enforce", refused("a label", json!({"/process/selinuxLabel":"u:r:t:s0"}), "process.selinuxLabel")),
        ("/sys/fs/selinux/enforce", refused("a mount's", json!({"/linux/mountLabel":"u:r:t:s0"}), "linux.mountLabel")),
    ] {
        if !std::path::Path::new(module).exists() {
            check([case]);
        }
    }
}
