//! `exec`: each field of a process of its own, and each option, in the same container under ours and under runc. Not the umask, which
//! runc's `exec` takes neither from the process nor from the container, nor the score, which it takes from the container alone.

use std::fs;

use serde_json::{Value, json};

use crate::common::Bundle;
use crate::engine::{Engine, Kind};

const LOOK: &str = "id; umask; pwd; hostname; env | sort; cat /proc/self/limits /proc/self/oom_score_adj; \
    grep -E '^(Cap|NoNew|Uid|Gid|Groups|Seccomp:|Sig(Blk|Cgt))' /proc/self/status; cat /proc/self/cgroup; \
    cat /proc/self/uid_map; ls /dev/pts /proc/self/fd; exit 9";

/// A process file: the fields given, and what makes it complete. Without limits ours has the container's, and runc none.
fn process(fields: &Value) -> Value {
    let mut process = json!({"cwd":"/","args":["sh","-c",LOOK],"env":["PATH=/bin"],"user":{"uid":0,"gid":0},
        "rlimits":[{"type":"RLIMIT_NOFILE","soft":80,"hard":80}]});
    process.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    process
}

fn agree(edits: &Value, processes: &[(&str, Value)], calls: &[(&[&str], &[&str])]) {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.set("/process/args", json!(["sleep", "1000"]));
    crate::engine::edit(&mut bundle, edits);
    // runc reaches the root as the mapped user.
    fs::set_permissions(bundle.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for dir in ["proc", "dev", "sys"] {
        fs::create_dir_all(bundle.rootfs(dir)).unwrap();
    }
    bundle.write();
    let file = bundle.path("process.json");
    let seen = [Kind::Ours, Kind::Runc].map(|kind| {
        let engine = Engine::new(kind, &bundle)?;
        engine.started();
        let mut seen = Vec::new();
        for (name, fields) in processes {
            fs::write(&file, process(fields).to_string()).unwrap();
            seen.push(((*name).to_owned(), engine.call(&["exec", "--process", file.to_str().unwrap(), &bundle.id])));
        }
        for (options, command) in calls {
            let args: Vec<&str> =
                ["exec"].into_iter().chain(options.iter().copied()).chain([bundle.id.as_str()]).chain(command.iter().copied()).collect();
            seen.push((format!("{options:?} {command:?}"), engine.call(&args)));
        }
        engine.delete();
        Some(seen)
    });
    let [Some(ours), Some(theirs)] = seen else { return };
    for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        let differ: Vec<_> = ours.stdout.lines().zip(theirs.stdout.lines()).filter(|(ours, theirs)| ours != theirs).collect();
        assert!(
            ours.stdout == theirs.stdout && ours.code == theirs.code,
            "{name}: ours and runc's: {} {}: {differ:#?}\n{}\n{}",
            ours.code,
            theirs.code,
            ours.stderr,
            theirs.stderr
        );
    }
}

#[test]
fn each_field_of_a_process_file() {
    let set = json!(["CAP_KILL", "CAP_CHOWN"]);
    let processes = [
        ("plain", json!({})),
        ("a user", json!({"user":{"uid":5,"gid":6,"additionalGids":[7,8]}})),
        ("a directory", json!({"cwd":"/bin"})),
        ("environment", json!({"env":["PATH=/bin","A=b=c","HOME=/here","E="]})),
        ("capabilities", json!({"capabilities":{"bounding":set,"effective":set,"permitted":set}})),
        (
            "all sets",
            json!({"capabilities":{"bounding":set,"effective":set,"permitted":set,"inheritable":set,"ambient":set},"user":{"uid":5,"gid":6}}),
        ),
        ("privileges", json!({"noNewPrivileges":false})),
        ("no new ones", json!({"noNewPrivileges":true})),
        ("limits", json!({"rlimits":[{"type":"RLIMIT_NOFILE","soft":60,"hard":60},{"type":"RLIMIT_CORE","soft":0,"hard":0}]})),
        ("no program", json!({"args":["nosuch"]})),
        ("no arguments", json!({"args":[]})),
        ("a relative directory", json!({"cwd":"bin"})),
    ];
    agree(&json!({"/process/user":{"uid":1,"gid":2,"additionalGids":[3]},"/process/oomScoreAdj":100}), &processes, &[]);
}

#[test]
fn each_option() {
    let look: &[&str] = &["sh", "-c", LOOK];
    let calls: [(&[&str], &[&str]); 15] = [
        (&[], look),
        (&["--user", "8:9"], look),
        (&["--user", "8"], look),
        (&["-u", "0:0", "--cwd", "/bin"], look),
        (&["-g", "10", "-g", "11"], look),
        (&["-e", "A=1", "-e", "B=2", "-e", "PATH=/bin"], look),
        (&["--cap", "CAP_LINUX_IMMUTABLE", "-u", "0:0"], look),
        (&["--cap", "CAP_KILL"], look),
        (&["--cap", "CAP_FLY"], &["echo", "ran"]),
        (&["--no-new-privs"], look),
        (&["--cwd", "/no/such"], &["pwd"]),
        (&[], &["nosuch"]),
        (&[], &["/bin"]),
        (&[], &["sh", "-c", "kill -9 $$"]),
        (&["--detach=false"], &["sh", "-c", "exit 200"]),
    ];
    agree(&json!({"/process/user":{"uid":1,"gid":2,"additionalGids":[3]},"/process/noNewPrivileges":false}), &[], &calls);
}

#[test]
fn in_containers_of_every_kind() {
    let ids = json!([{"containerID":0,"hostID":100_000,"size":1000}]);
    let filter = json!({"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]});
    let kinds = [
        json!({"/linux/namespaces/+":[{"type":"user"}],"/linux/uidMappings":ids,"/linux/gidMappings":ids}),
        json!({"/linux/namespaces/-pid":null,"/linux/namespaces/-cgroup":null}),
        json!({"/linux/namespaces/-uts":null,"/hostname":null,"/linux/namespaces/-network":null}),
        json!({"/linux/seccomp":filter}),
        json!({"/process/capabilities":null,"/process/rlimits":[{"type":"RLIMIT_NOFILE","soft":60,"hard":60}]}),
    ];
    let mkdir: &[&str] = &[
        "sh",
        "-c",
        "mkdir /dev/shm/x 2>&1; id; hostname; cat /proc/self/cgroup /proc/self/limits; \
        grep -E '^(Cap|Seccomp:|NoNew)' /proc/self/status",
    ];
    for kind in kinds {
        agree(&kind, &[], &[(&[], mkdir), (&["--user", "7:7"], mkdir)]);
    }
}
