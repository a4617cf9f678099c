//! `exec`: one more process in a container, with the container's limits and rights and no way out of it; compared with runc's.

mod common;

use std::fs;
use std::process::{Command, Output, Stdio};

use common::{Bundle, alive, copy_program, eventually, libraries, namespace, tool, write_program};
use serde_json::json;

fn running(script: &str) -> Bundle {
    let bundle = Bundle::new(script);
    started(bundle)
}

fn started(bundle: Bundle) -> Bundle {
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    bundle
}

/// What a program executed in the container printed, what its call said, and its exit code.
fn exec(bundle: &Bundle, options: &[&str], command: &[&str]) -> (String, String, i32) {
    let mut args = vec!["exec"];
    args.extend(options);
    args.push(&bundle.id);
    args.extend(command);
    let output = bundle.call(&args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim_end().to_owned();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

fn prints(bundle: &Bundle, options: &[&str], script: &str) -> String {
    let (stdout, stderr, code) = exec(bundle, options, &["sh", "-c", script]);
    assert_eq!(code, 0, "{stdout}\n{stderr}");
    stdout
}

#[test]
fn a_program_runs_in_the_containers_namespaces_and_cgroups() {
    let bundle = running("exec sleep 1000");
    let pid = bundle.pid().to_string();
    let links = prints(&bundle, &[], "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done");
    let expected: Vec<String> = ["cgroup", "ipc", "mnt", "net", "pid", "uts"].iter().map(|kind| namespace(&pid, kind)).collect();
    assert_eq!(links.lines().collect::<Vec<_>>(), expected);
    let groups = prints(&bundle, &[], "cat /proc/self/cgroup");
    assert!(groups.lines().count() > 1 && groups.lines().all(|line| line.ends_with(":/")), "{groups}");
    eventually("the first process", || (prints(&bundle, &[], "cat /proc/1/cmdline") == "sleep\x001000\0").then_some(()));
}

#[test]
fn every_cgroup_of_the_container_holds_the_program() {
    let bundle = running("exec sleep 1000");
    let pid_file = bundle.path("exec.pid");
    // Without a pipe: the program would hold it.
    let mut call = bundle.command(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), &bundle.id, "sleep", "1000"]);
    assert!(call.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let pid = fs::read_to_string(&pid_file).unwrap();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(groups.lines().all(|line| line.ends_with(&format!(":/{}", bundle.id))), "{groups}");
    assert_eq!(groups.lines().count(), bundle.cgroups().len());
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!alive(pid.parse().unwrap()));
    bundle.assert_nothing_is_left();
}

#[test]
fn exit_codes_and_signals() {
    let bundle = running("exec sleep 1000");
    for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
        assert_eq!(exec(&bundle, &[], &["sh", "-c", script]).2, expected, "{script}");
    }
    let (_, stderr, code) = exec(&bundle, &[], &["nosuch"]);
    assert_eq!(code, 255);
    assert!(stderr.contains("exec failed: process.args[0]: find \"nosuch\""), "{stderr}");
    let (_, stderr, code) = exec(&bundle, &[], &["/no/such"]);
    assert_eq!(code, 255);
    assert!(stderr.contains("no such file or directory"), "{stderr}");
    write_program(&bundle.rootfs("bin/broken"), "\u{7f}ELF");
    let (_, stderr, code) = exec(&bundle, &[], &["broken"]);
    assert_eq!(code, 255);
    assert!(stderr.contains("process.args[0]: execute") && stderr.contains("exec format error"), "{stderr}");
    assert_eq!(bundle.status(), "running");
}

#[test]
fn signals_are_passed_on() {
    let bundle = running("exec sleep 1000");
    let script = "trap 'exit 3' TERM; touch /dev/shm/ready; while :; do sleep 0.05; done";
    let mut call = bundle.command(&["exec", &bundle.id, "sh", "-c", script]).spawn().unwrap();
    let ready = format!("/proc/{}/root/dev/shm/ready", bundle.pid());
    eventually("the trap", || fs::metadata(&ready).ok());
    rustix::process::kill_process(rustix::process::Pid::from_child(&call), rustix::process::Signal::TERM).unwrap();
    assert_eq!(call.wait().unwrap().code(), Some(3));
}

#[test]
fn options_change_what_the_container_says() {
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.set("/process/user", json!({"uid":5,"gid":6,"additionalGids":[7],"umask":0o77}));
    bundle.set("/process/env", json!(["PATH=/bin", "A=1"]));
    let bundle = started(bundle);
    let look = "id -u; id -g; id -G; umask; pwd; echo $A $B $HOME";
    assert_eq!(prints(&bundle, &[], look), "5\n6\n6 7\n0077\n/\n1 /");
    let options = ["--user", "8", "-g", "9", "--cwd", "/bin", "-e", "B=2", "-e", "A=3"];
    assert_eq!(prints(&bundle, &options, look), "8\n6\n6 7 9\n0077\n/bin\n3 2 /");
    assert_eq!(prints(&bundle, &["-u", "0:0"], "id -u; id -g"), "0\n0");
}

#[test]
fn a_process_file_tells_all() {
    let bundle = running("exec sleep 1000");
    let file = bundle.path("process.json");
    let process = json!({"cwd":"/bin","args":["sh","-c","pwd; echo $X; id -u; grep NoNewPrivs /proc/self/status"],"env":["PATH=/bin","X=y"],
        "user":{"uid":3,"gid":4},"noNewPrivileges":true});
    fs::write(&file, process.to_string()).unwrap();
    let (stdout, stderr, code) = exec(&bundle, &["--process", file.to_str().unwrap()], &[]);
    assert_eq!((stdout.as_str(), code), ("/bin\ny\n3\nNoNewPrivs:\t1", 0), "{stderr}");
    fs::write(&file, r#"{"cwd":"/","args":["id"],"user":{"uid":"x"}}"#).unwrap();
    let (_, stderr, code) = exec(&bundle, &["-p", file.to_str().unwrap()], &[]);
    assert_eq!(code, 255);
    assert!(stderr.contains("user.uid: invalid type"), "{stderr}");
    fs::write(&file, r#"{"cwd":"relative","args":[]}"#).unwrap();
    let (_, stderr, _) = exec(&bundle, &["-p", file.to_str().unwrap()], &[]);
    assert!(stderr.contains("process.args: empty") && stderr.contains("process.cwd: \"relative\""), "{stderr}");
}

#[test]
fn rights_are_the_containers_and_those_asked_for() {
    let bundle = running("exec sleep 1000");
    let sets = "grep -E '^(Cap|NoNew)' /proc/self/status";
    let own = prints(&bundle, &[], sets);
    let container = fs::read_to_string(format!("/proc/{}/status", bundle.pid())).unwrap();
    let container: Vec<&str> = container.lines().filter(|line| line.starts_with("Cap") || line.starts_with("NoNew")).collect();
    assert_eq!(own.lines().collect::<Vec<_>>(), container);
    let more = prints(&bundle, &["--cap", "CAP_LINUX_IMMUTABLE"], "grep -E '^Cap(Inh|Bnd|Eff|Amb)' /proc/self/status");
    let bit = |name: &str, text: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap() >> 9 & 1
    };
    assert_eq!(["CapInh", "CapBnd", "CapEff", "CapAmb"].map(|set| bit(set, &more)), [0, 1, 1, 0], "{more}");
    assert_eq!(bit("CapBnd", &own), 0, "the container already had it: {own}");
    let (_, stderr, code) = exec(&bundle, &["--cap", "CAP_FLY"], &["id"]);
    assert!(code == 0 && stderr.contains("\"CAP_FLY\" is none this runtime knows"), "{stderr}");
}

#[test]
fn it_is_refused_where_it_cannot_be() {
    let bundle = running("exec sleep 1000");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    eventually("stopped", || (bundle.status() == "stopped").then_some(()));
    let (_, stderr, code) = exec(&bundle, &[], &["true"]);
    assert_eq!(code, 255);
    assert!(stderr.contains("is stopped"), "{stderr}");
    let output = bundle.call(&["exec", "nosuch", "true"]);
    assert_eq!(output.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&output.stderr).contains("container nosuch does not exist"));
}

#[test]
fn a_created_container_takes_a_program() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    assert_eq!(prints(&bundle, &[], "echo in"), "in");
    assert_eq!(bundle.status(), "created");
}

/// CVE-2024-21626: a working directory by way of a descriptor that leads to the host.
#[test]
fn no_working_directory_leads_out() {
    let bundle = running("exec sleep 1000");
    for fd in 3..10 {
        let at = format!("/proc/self/fd/{fd}");
        let output = leaking(&bundle, &format!("{fd}</"), &["exec", "--cwd", &at, &bundle.id, "ls", "-a"]);
        assert!(!output.status.success(), "fd {fd}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn no_descriptor_is_passed_on_but_those_asked_for() {
    let bundle = running("exec sleep 1000");
    let list = |options: &[&str]| {
        let mut args = vec!["exec"];
        args.extend(options);
        args.extend([bundle.id.as_str(), "sh", "-c", "exec ls /proc/self/fd"]);
        let output = leaking(&bundle, "3</etc/hostname 4</etc/hostname", &args);
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    // The last is the directory that `ls` itself has open.
    assert_eq!(list(&[]), "0 1 2 3");
    assert_eq!(list(&["--preserve-fds", "1"]), "0 1 2 3 4");
    assert_eq!(list(&["--preserve-fds", "2"]), "0 1 2 3 4 5");
}

/// A call by a shell that has more open than it should.
fn leaking(bundle: &Bundle, redirections: &str, args: &[&str]) -> Output {
    let command = bundle.command(args);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" \"$@\" {redirections}")]).arg(command.get_program()).args(command.get_args());
    shell.stdin(Stdio::null()).output().unwrap()
}

/// CVE-2019-5736: the container must not get hold of the host's binary, which runs as `/proc/PID/exe` until the program is executed, and
/// again where the program's first line asks for it.
#[test]
fn the_hosts_binary_cannot_be_written_to() {
    let mut bundle = Bundle::new("exec sleep 1000");
    let program = bundle.copy_program();
    let before = fs::read(&program).unwrap();
    write_program(&bundle.rootfs("bin/trap"), "#!/proc/self/exe\n");
    // It runs in the image only with its libraries.
    for library in libraries(&program) {
        let inside = bundle.rootfs(library.strip_prefix("/").unwrap().to_str().unwrap());
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        copy_program(&library, &inside);
    }
    let bundle = started(bundle);
    // Holds what runs and is not the image's, and writes to it once it runs no more.
    let script = "while :; do for p in /proc/[0-9]*; do {
        if ! [ /proc/self/fd/9 -ef /bin/busybox ]; then
            i=0; while [ $i -lt 20000 ]; do echo broken > /proc/self/fd/9 && break; i=$((i+1)); done
            touch /dev/shm/tried
        fi; } 9<$p/exe; done; done 2>/dev/null";
    let mut attack = bundle.command(&["exec", &bundle.id, "sh", "-c", script]).spawn().unwrap();
    let tried = format!("/proc/{}/root/dev/shm/tried", bundle.pid());
    eventually("the attack got hold of it", || {
        // Once it is damaged it cannot be called, which is told below.
        let _ = bundle.command(&["exec", &bundle.id, "trap"]).stdin(Stdio::null()).output();
        fs::metadata(&tried).ok()
    });
    attack.kill().unwrap();
    attack.wait().unwrap();
    assert!(fs::read(program).unwrap() == before, "the host's binary was overwritten");
}

#[test]
fn a_cgroup_below_the_containers_own() {
    let bundle = running("exec sleep 1000");
    let pids = bundle.cgroups().into_iter().find(|group| group.join("pids.max").exists()).expect("a pids cgroup");
    fs::create_dir(pids.join("below")).unwrap();
    let groups = prints(&bundle, &["--cgroup", "pids:below"], "cat /proc/self/cgroup");
    let pids_line = groups.lines().find(|line| line.contains(":pids:"));
    assert!(pids_line.is_none_or(|line| line.ends_with(":/below")), "{groups}");
    let (_, stderr, code) = exec(&bundle, &["--cgroup", "pids:nosuch"], &["true"]);
    assert_eq!(code, 255);
    assert!(stderr.contains("nosuch: No such file"), "{stderr}");
    let (_, stderr, _) = exec(&bundle, &["--cgroup", "nosuch:x"], &["true"]);
    assert!(stderr.contains("no cgroup of the controller \"nosuch\""), "{stderr}");
}

/// The same container under runc, the same programs in it: output and exit code must agree.
#[test]
fn as_under_runc() {
    let Some(runc) = tool("runc") else {
        std::io::Write::write_all(&mut std::io::stderr().lock(), b"SKIPPED: runc is not installed: apt-get install runc\n").unwrap();
        return;
    };
    let mut bundle = Bundle::new("exec sleep 1000");
    bundle.set("/process/user", json!({"uid":5,"gid":6,"additionalGids":[7]}));
    let look = "id; umask; pwd; hostname; env | sort; ls /dev/pts /proc/self/fd; cat /proc/self/limits; \
                grep -E '^(Cap|NoNew|Uid|Gid|Groups|Sig(Blk|Pnd|Cgt))' /proc/self/status; cat /proc/self/oom_score_adj; exit 9";
    let cases: [&[&str]; 8] = [
        &[],
        &["--user", "8:9"],
        &["--user", "8"],
        &["-g", "10", "-g", "11"],
        &["--cwd", "/bin", "-e", "A=1", "-e", "B=2"],
        &["--cap", "CAP_LINUX_IMMUTABLE", "-u", "0:0"],
        &["--no-new-privs"],
        &["--tty=false"],
    ];
    let bundle = started(bundle);
    let ours: Vec<_> = cases.iter().map(|options| exec(&bundle, options, &["sh", "-c", look])).collect();
    let ours_missing = exec(&bundle, &[], &["nosuch"]).2;
    bundle.ok(&["delete", "--force", &bundle.id]);
    let call = |args: &[&str]| Command::new(&runc).arg("--root").arg(bundle.path("runc")).args(args).stdin(Stdio::null()).output().unwrap();
    let mut run = Command::new(&runc);
    run.arg("--root").arg(bundle.path("runc")).args(["run", "-d", "--bundle"]).arg(bundle.path("")).arg(&bundle.id);
    assert!(run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    let theirs: Vec<_> = cases
        .iter()
        .map(|options| {
            let mut args = vec!["exec"];
            args.extend(*options);
            args.extend([bundle.id.as_str(), "sh", "-c", look]);
            let output = call(&args);
            (String::from_utf8(output.stdout).unwrap().trim_end().to_owned(), output.status.code().unwrap())
        })
        .collect();
    let theirs_missing = call(&["exec", &bundle.id, "nosuch"]).status.code().unwrap();
    call(&["delete", "--force", &bundle.id]);
    for ((options, ours), theirs) in cases.iter().zip(&ours).zip(&theirs) {
        assert_eq!((&ours.0, ours.2), (&theirs.0, theirs.1), "{options:?}: {}", ours.1);
        assert!(!ours.0.is_empty());
    }
    assert_eq!(ours_missing, theirs_missing);
}

/// A container that keeps its processes in cgroups below its own, as systemd and Docker do inside of one.
#[test]
fn a_cgroup_that_takes_no_process_itself_is_not_joined() {
    let bundle = running("exec sleep 1000");
    let unified = bundle.cgroups().into_iter().find(|group| group.join("cgroup.controllers").exists());
    let controllers = unified.as_ref().and_then(|group| fs::read_to_string(group.join("cgroup.controllers")).ok()).unwrap_or_default();
    let (Some(group), Some(controller)) = (unified, controllers.split_whitespace().next()) else {
        std::io::Write::write_all(&mut std::io::stderr().lock(), b"SKIPPED: no controller of cgroup version 2 in the container's\n")
            .unwrap();
        return;
    };
    let below = group.join("below");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), bundle.pid().to_string()).unwrap();
    fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let groups = prints(&bundle, &[], "cat /proc/self/cgroup");
    assert!(groups.lines().any(|line| line == "0::/below"), "{groups}");
    bundle.ok(&["delete", "--force", &bundle.id]);
    bundle.assert_nothing_is_left();
}
