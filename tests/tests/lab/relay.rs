//! What users do in running containers by way of the managers: `exec` and its kin.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use rcluster_api::rest::TaskJson;
use rcluster_tests::lab::{Lab, bin_dir, wait_for};

use crate::Turn;

pub const SOON: Duration = Duration::from_secs(20);

/// A lab with one pod of two containers: `main`, in which there is a shell, and `side`.
pub fn pod(name: &str, managers: usize) -> (Turn, TaskJson) {
    let image = bin_dir().unwrap().join("busybox.tar").to_string_lossy().into_owned();
    let turn = Turn::with(name, managers, 1, &["--image", &image]);
    let lab = turn.lab();
    lab.deploy(
        "kind: Service\nname: box\nspec:\n  stop_grace: 0s\n  containers:\n    - name: main\n      image: rcluster/busybox:test\n      \
         env: {PATH: /bin, OWN: mine}\n      command: [/bin/busybox, sleep, \"100000\"]\n    - name: side\n      image: \
         rcluster/busybox:test\n      command: [/bin/busybox, sh, -c, \"i=0; while true; do i=$((i+1)); echo line $i; /bin/busybox sleep \
         0.2; done\"]\n",
    )
    .unwrap();
    let task = lab.wait_running("box", 1, SOON).unwrap().remove(0);
    assert!(lab.ctl(&["exec", "box.1", "/bin/busybox", "--install", "-s", "/bin"]).is_ok_and(|said| said.is_empty()));
    (turn, task)
}

pub fn run(lab: &Lab, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = lab.command(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that does not read its input closes it: what it answers is what counts.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn exec_passes_output_input_and_exit_codes_on() {
    let (turn, task) = pod("exec", 3);
    let lab = turn.lab();
    let output = run(lab, &["exec", "box.1", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], b"");
    assert_eq!((text(&output.stdout), text(&output.stderr), output.status.code()), ("out\n".into(), "err\n".into(), Some(7)));
    let output =
        run(lab, &["exec", "box", "-e", "A=b c", "-w", "/tmp", "-u", "app", "sh", "-c", "echo $A $OWN; pwd; id -u; echo $HOME"], b"");
    assert_eq!(text(&output.stdout), "b c mine\n/tmp\n1000\n/\n");
    assert_eq!(text(&output.stderr), format!("box.1 on {}\n", task.node), "a service's name stands for a task, and it is said which");
    let output = run(lab, &["exec", "-i", &task.id, "--", "sh", "-c", "read line; echo got $line; cat | wc -c"], b"hello\n12345");
    assert_eq!(text(&output.stdout), "got hello\n5\n");
    let output = run(lab, &["exec", "box.1", "cat"], b"nobody reads this");
    assert_eq!((text(&output.stdout), output.status.code()), (String::new(), Some(0)), "without -i the input is empty");
    let output = run(lab, &["exec", "-c", "side", "box.1", "/bin/busybox", "hostname"], b"");
    assert_eq!(text(&output.stdout), "box-1\n");
    let output = run(lab, &["exec", "box.1", "sh", "-c", "kill -TERM $$"], b"");
    assert_eq!(output.status.code(), Some(143), "128 and the signal");
    turn.finish();
}

/// The command line of the parent of the process that sleeps for so long, which no other test uses.
fn parent_of_sleeper(seconds: &str) -> Option<String> {
    let read = |pid: &str, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let is_it = |pid: &String| read(pid, "cmdline").is_some_and(|line| line == format!("sleep\0{seconds}\0"));
    let stat = pids.into_iter().find(is_it).and_then(|pid| read(&pid, "stat"))?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned();
    read(&parent, "cmdline").map(|line| line.replace('\0', " "))
}

#[test]
fn a_command_is_run_by_its_containers_monitor_and_ends_with_its_user() {
    let (turn, _) = pod("exec-monitor", 1);
    let lab = turn.lab();
    let sleeps = |seconds: &'static str, arguments: &[&str]| {
        let mut command = lab.command(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        (child, wait_for("it sleeps", SOON, || Ok(parent_of_sleeper(seconds))).unwrap())
    };
    let gone = |seconds: &'static str| wait_for("it has gone", SOON, || Ok(parent_of_sleeper(seconds).is_none().then_some(()))).unwrap();
    let (mut user, parent) = sleeps("6004", &["exec", "-i", "box.1", "sleep", "6004"]);
    assert!(parent.contains(" monitor "), "{parent}");
    user.kill().unwrap();
    user.wait().unwrap();
    gone("6004");
    // With the agent too.
    let (mut user, _) = sleeps("6005", &["exec", "box.1", "sleep", "6005"]);
    lab.host("kill", &["n1/agent"]).unwrap();
    gone("6005");
    assert_eq!(user.wait().unwrap().code(), Some(1));
    lab.host("start", &["n1/agent"]).unwrap();
    agent_is_back(lab);
    // More than a monitor may run for users are left to the runtime.
    let mut users: Vec<_> = (0..30)
        .map(|number| {
            let mut command = lab.command(&["exec", "-i", "box.1", "--", "sh", "-c", &format!("read line; exit {number}")]);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let count = "n=0; for f in /proc/[0-9]*/cmdline; do grep -q '[r]ead line; exit' $f && n=$((n+1)); done; echo $n";
    let all = || Ok((lab.ctl(&["exec", "box.1", "sh", "-c", count])? == "30\n").then_some(()));
    wait_for("all thirty run", Duration::from_secs(60), all).unwrap();
    for (number, user) in users.iter_mut().enumerate() {
        user.stdin.take().unwrap().write_all(b"go\n").unwrap();
        assert_eq!(user.wait().unwrap().code(), i32::try_from(number).ok());
    }
    turn.finish();
}

/// Away for three seconds, its node was down, and the container is another, without its commands.
fn agent_is_back(lab: &Lab) {
    let install = ["exec", "box.1", "/bin/busybox", "--install", "-s", "/bin"];
    wait_for("the agent is back", SOON, || lab.ctl(&install).map(Some)).unwrap();
}

#[test]
fn what_cannot_be_executed_says_why() {
    let (turn, _) = pod("exec-no", 1);
    let lab = turn.lab();
    for (arguments, code, expected) in [
        (&["exec", "box.1", "no-such"][..], 127, "exec: no-such: not found in container main (its PATH: /bin)"),
        (&["exec", "box.1", "/no/such"], 127, "exec: /no/such: there is no such file in container main"),
        (&["exec", "box.1", "/etc/passwd"], 126, "exec: /etc/passwd in container main is not an executable file"),
        (&["exec", "box.1", "-w", "/nowhere", "ls"], 1, "working directory /nowhere: No such file"),
        (&["exec", "box.1", "-u", "nobody", "ls"], 1, "user \"nobody\" is not in the image's /etc/passwd"),
        (&["exec", "box.1", "-c", "third", "ls"], 1, "task box.1 has no container \"third\"\nhint: its containers: main, side"),
        (&["exec", "box.2", "ls"], 1, "there is no service or task box.2\nhint: rclusterctl ps lists the tasks"),
        (&["exec", "box.1"], 2, "<COMMAND>"),
        (&["exec", "-it", "box.1", "sh"], 2, "-t needs a terminal on standard input"),
    ] {
        let output = run(lab, arguments, b"");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
    lab.host("kill", &["n1/agent"]).unwrap();
    let unconnected =
        || Ok(Some(run(lab, &["exec", "box.1", "ls"], b"")).filter(|output| text(&output.stderr).contains("is not connected")));
    let output = wait_for("the leader has noticed", SOON, unconnected).unwrap();
    assert!(text(&output.stderr).contains("hint: wait until it is back"), "{}", text(&output.stderr));
    lab.host("start", &["n1/agent"]).unwrap();
    agent_is_back(lab);
    lab.ctl(&["scale", "box=0"]).unwrap();
    let output = run(lab, &["exec", "box", "ls"], b"");
    let expected = "error: no task of service box runs\nhint: rclusterctl ps box shows its tasks";
    assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    turn.finish();
}

/// Bytes that no compression or accident repeats.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[test]
fn fifty_megabytes_go_in_and_come_out_as_they_were_through_every_manager() {
    let (turn, _) = pod("exec-big", 3);
    let lab = turn.lab();
    let input = noise(50 << 20);
    for manager in lab.cluster().unwrap().managers {
        // From the manager's own host: what is told with --managers is sought where the caller stands.
        let ctl = bin_dir().unwrap().join("rclusterctl").to_string_lossy().into_owned();
        let on_host = ["lab", "exec", "--lab", lab.name(), &manager.name, "--", &ctl, "--managers", &manager.addr];
        let output = run(lab, &[&on_host[..], &["exec", "-i", "box.1", "cat"]].concat(), &input);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "through {}", manager.name);
        assert!(output.stdout == input, "through {}: {} bytes came back", manager.name, output.stdout.len());
    }
    turn.finish();
}

#[test]
fn a_reader_that_pauses_loses_nothing_and_holds_nobody_up() {
    let (turn, _) = pod("exec-slow", 1);
    let lab = turn.lab();
    let mut command = lab.command(&["exec", "box.1", "sh", "-c", "seq 1 3000000"]);
    let mut slow = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    // The session and other relays go on while this one is full: three of the node's session timeouts pass.
    let before = lab.nodes().unwrap().remove(0);
    for _ in 0..30 {
        assert_eq!(lab.ctl(&["exec", "box.1", "echo", "hi"]).unwrap(), "hi\n");
        thread::sleep(Duration::from_millis(200));
    }
    let after = lab.nodes().unwrap().remove(0);
    assert_eq!((before.status, before.since), (after.status, after.since));
    let mut output = String::new();
    slow.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(slow.wait().unwrap().success());
    let numbers: Vec<u64> = output.lines().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.iter().copied().eq(1..=3_000_000), "{} lines", numbers.len());
    turn.finish();
}

#[test]
fn a_command_goes_with_its_user_with_the_leader_and_with_the_agent() {
    let (turn, task) = pod("exec-gone", 3);
    let lab = turn.lab();
    let begin = |seconds: &str| {
        let mut command = lab.command(&["exec", "-i", "box.1", "sh", "-c", &format!("trap '' HUP; sleep {seconds}; true")]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the command runs", SOON, || Ok((count_of(lab, seconds)? >= 1).then_some(()))).unwrap();
        child
    };
    fn count_of(lab: &Lab, seconds: &str) -> anyhow::Result<usize> {
        let found =
            lab.ctl(&["exec", "box.1", "sh", "-c", &format!("ps -o args | grep -c '^sh -c trap.*sleep {seconds}; tru[e]'; true")])?;
        Ok(found.trim().parse()?)
    }
    let gone = |seconds: &str| wait_for("the command has gone", SOON, || Ok((count_of(lab, seconds)? == 0).then_some(()))).unwrap();

    let mut user = begin("5001");
    user.kill().unwrap();
    user.wait().unwrap();
    gone("5001");

    let user = begin("5002");
    let leader = lab.wait_leader("", SOON).unwrap();
    lab.host("kill", &[&leader]).unwrap();
    let output = user.wait_with_output().unwrap();
    assert!(text(&output.stderr).contains("error: the connection with box.1 broke"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(3));
    lab.wait_leader(&leader, SOON).unwrap();
    gone("5002");

    let user = begin("5003");
    lab.host("kill", &[&format!("{}/agent", task.node)]).unwrap();
    lab.host("start", &[&format!("{}/agent", task.node)]).unwrap();
    let output = user.wait_with_output().unwrap();
    assert!(text(&output.stderr).contains(&format!("the connection to node {} broke", task.node)), "{}", text(&output.stderr));
    agent_is_back(lab);
    gone("5003");

    let user = begin("5004");
    lab.ctl(&["rm", "service", "box"]).unwrap();
    let output = user.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137), "it ends with its container: {}", text(&output.stderr));
    turn.finish();
}

#[test]
fn stats_and_top_show_what_a_busy_container_does() {
    let (turn, task) = pod("stats", 1);
    let lab = turn.lab();
    // Half a minute of one processor and 32 MiB: ended with its user at the end of the test.
    let mut command = lab.command(&["exec", "box.1", "sh", "-c", "x=$(head -c 33554432 /dev/zero | tr '\\0' a); while true; do :; done"]);
    let mut busy = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let number = |row: &serde_json::Value, key: &str| row[key].as_f64().unwrap_or(-1.0);
    let rows = wait_for("the busy container shows", Duration::from_secs(60), || {
        let rows: Vec<serde_json::Value> = lab.json(&["stats", "box", "--no-stream"])?;
        let busy =
            rows.iter().any(|row| row["container"] == "main" && number(row, "cpu_percent") > 20.0 && number(row, "memory_bytes") > 3e7);
        Ok(busy.then_some(rows))
    })
    .unwrap();
    assert_eq!(rows.len(), 2);
    let of = |name: &str| rows.iter().find(|row| row["container"] == name).unwrap();
    assert!(number(of("main"), "cpu_percent") < 150.0, "one process has one processor: {rows:?}");
    assert!(number(of("side"), "cpu_percent") < number(of("main"), "cpu_percent"), "{rows:?}");
    assert!(number(of("main"), "pids") >= 2.0 && number(of("side"), "pids") >= 1.0, "{rows:?}");
    assert_eq!((&of("main")["task"], &of("main")["node"]), (&"box.1".into(), &task.node.clone().into()));
    let table = lab.ctl(&["stats", "box.1", "--no-stream"]).unwrap();
    assert!(table.starts_with("TASK    NODE   CONTAINER   CPU"), "{table}");
    let top: Vec<serde_json::Value> = lab.json(&["top", "box.1"]).unwrap();
    let first = top.iter().find(|one| one["container"] == "main" && one["pid_in_container"] == 1).unwrap();
    assert_eq!(first["command"], "/bin/busybox sleep 100000");
    let busiest = top.iter().max_by_key(|one| one["cpu_ms"].as_u64()).unwrap();
    assert!(busiest["command"].as_str().unwrap().starts_with("sh -c x="), "{busiest}");
    let refused = lab.ctl(&["stats", "none", "--no-stream"]).unwrap_err().to_string();
    assert!(refused.contains("no task of none runs"), "{refused}");
    busy.kill().unwrap();
    busy.wait().unwrap();
    turn.finish();
}

#[test]
fn attach_shows_what_is_written_from_now_on_and_ends_as_the_container_does() {
    let (turn, _) = pod("attach", 1);
    let lab = turn.lab();
    let lines = || lab.ctl(&["logs", "box"]).map(|logs| logs.lines().filter(|line| line.contains("line ")).count());
    wait_for("something is in the past", SOON, || Ok((lines()? > 3).then_some(()))).unwrap();
    let mut command = lab.command(&["attach", "box.1", "-c", "side"]);
    let dir = tempfile::tempdir().unwrap();
    let seen = dir.path().join("seen");
    let child = command.stdin(Stdio::null()).stdout(fs::File::create(&seen).unwrap()).stderr(Stdio::piped()).spawn().unwrap();
    let said = || fs::read_to_string(&seen).unwrap();
    wait_for("it shows more", SOON, || Ok((said().lines().count() > 6).then_some(()))).unwrap();
    lab.ctl(&["exec", "box.1", "-c", "side", "/bin/busybox", "kill", "-9", "1"]).unwrap_or_default();
    lab.ctl(&["rm", "service", "box"]).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = said();
    assert!(said.starts_with("line ") && !said.contains("line 1\n"), "{said}");
    assert_eq!(output.status.code(), Some(137), "{}", text(&output.stderr));
    turn.finish();
}

#[test]
fn attach_writes_to_a_standard_input_that_stays_open() {
    let turn = Turn::with("stdin", 1, 1, &["--image", &bin_dir().unwrap().join("busybox.tar").to_string_lossy()]);
    let lab = turn.lab();
    let manifest = "kind: Service\nname: echo\nspec:\n  stop_grace: 0s\n  restart: {condition: none}\n  containers:\n    \
         - image: rcluster/busybox:test\n      stdin: true\n      command: [/bin/busybox, sh, -c, 'while read line; do echo got $line; \
         [ $line = end ] && exit 7; done; echo closed']\n";
    lab.deploy(manifest).unwrap();
    let attach = |args: &[&str]| {
        let mut command = lab.command(&[&["attach", "echo.1"], args].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    // Leaving it does not end the container's input.
    let mut first = attach(&[]);
    first.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    let mut line = String::new();
    BufReader::new(first.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "got one\n");
    first.kill().unwrap();
    first.wait().unwrap();
    let mut quiet = attach(&["--no-stdin"]);
    quiet.stdin.as_mut().unwrap().write_all(b"unheard\n").unwrap();
    let mut second = attach(&[]);
    second.stdin.take().unwrap().write_all(b"two\nend\n").unwrap();
    let output = second.wait_with_output().unwrap();
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("got two\ngot end\n", Some(7)), "{}", text(&output.stderr));
    quiet.wait().unwrap();
    assert!(!lab.ctl(&["logs", "echo"]).unwrap().contains("unheard"));
    turn.finish();
}

#[test]
fn a_paused_task_stands_still_and_can_be_removed() {
    let (turn, _) = pod("freeze", 1);
    let lab = turn.lab();
    let lines = || lab.ctl(&["logs", "box.1"]).map(|logs| logs.lines().filter(|line| line.contains("line ")).count());
    wait_for("it writes", SOON, || Ok((lines()? > 2).then_some(()))).unwrap();
    lab.ctl(&["pause", "box.1"]).unwrap();
    let refused = lab.ctl(&["exec", "box.1", "true"]).unwrap_err().to_string();
    assert!(refused.contains("is paused"), "{refused}");
    let before = lines().unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(lines().unwrap(), before, "five lines would have come");
    lab.ctl(&["unpause", "box"]).unwrap();
    wait_for("it writes again", SOON, || Ok((lines()? > before).then_some(()))).unwrap();
    // Checks of health do not end a task that a person has paused: neither what would fail now nor what is under way as the pause comes.
    lab.deploy(
        "kind: Service\nname: well\nspec:\n  stop_grace: 0s\n  containers:\n    - image: rcluster/busybox:test\n      command: [/bin/busybox, \
         sleep, \"100000\"]\n      healthcheck: {command: [/bin/busybox, sleep, \"0.5\"], interval: 100ms, timeout: 2500ms, retries: 1}\n",
    )
    .unwrap();
    let well = lab.wait_running("well", 1, SOON).unwrap();
    lab.ctl(&["pause", "box", "well"]).unwrap();
    thread::sleep(Duration::from_secs(4));
    lab.ctl(&["unpause", "well"]).unwrap();
    let after = lab.wait_running("well", 1, SOON).unwrap();
    assert_eq!((&after[0].id, after[0].health), (&well[0].id, rcluster_api::health::Health::Healthy));
    lab.ctl(&["rm", "service", "well"]).unwrap();
    // It goes while it is paused, and so does the host with it in a power cut.
    lab.ctl(&["rm", "service", "box"]).unwrap();
    lab.deploy(&crate::web("lab", "web", 1)).unwrap();
    lab.wait_running("web", 1, SOON).unwrap();
    lab.ctl(&["pause", "web"]).unwrap();
    turn.finish();
}

#[test]
fn files_are_copied_both_ways_as_docker_does() {
    let (turn, _) = pod("cp", 1);
    let lab = turn.lab();
    let dir = tempfile::tempdir().unwrap();
    let local = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let big = noise(5 << 20);
    std::fs::create_dir_all(dir.path().join("tree/deep/er")).unwrap();
    std::fs::write(dir.path().join("tree/big"), &big).unwrap();
    std::fs::write(dir.path().join("tree/deep/er/run.sh"), "#!/bin/sh\necho ran\n").unwrap();
    std::fs::set_permissions(dir.path().join("tree/deep/er/run.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    std::os::unix::fs::symlink("deep/er", dir.path().join("tree/link")).unwrap();
    let copy = |from: &str, to: &str| lab.ctl(&["cp", from, to]);
    let inside = |script: &str| lab.ctl(&["exec", "box.1", "sh", "-c", script]).unwrap();

    copy(&local("tree"), "box.1:/tmp").unwrap();
    assert_eq!(
        inside("cd /tmp/tree; find . | sort; readlink link; stat -c '%a %u %g' deep/er/run.sh; ./link/run.sh"),
        ".\n./big\n./deep\n./deep/er\n./deep/er/run.sh\n./link\ndeep/er\n751 0 0\nran\n"
    );
    copy(&local("tree"), "box.1:/tmp/named").unwrap();
    copy(&local("tree/."), "box.1:/tmp/named").unwrap();
    assert_eq!(inside("cd /tmp/named; find . | wc -l"), "6\n", "a second copy of the contents changes nothing");
    copy(&local("tree/deep/er/run.sh"), "box.1:/tmp/other.sh").unwrap();
    copy(&local("tree/deep/er/run.sh"), "box.1:tmp/").unwrap();
    assert_eq!(inside("/tmp/other.sh; /tmp/run.sh"), "ran\nran\n");

    copy("box.1:/tmp/tree", &local("back")).unwrap();
    assert!(std::fs::read(local("back/big")).unwrap() == big);
    assert_eq!(std::fs::read_link(local("back/link")).unwrap().to_string_lossy(), "deep/er");
    assert_eq!(std::fs::read_to_string(local("back/link/run.sh")).unwrap(), "#!/bin/sh\necho ran\n");
    std::fs::create_dir(local("into")).unwrap();
    copy("box.1:/tmp/tree", &local("into")).unwrap();
    copy("box.1:/tmp/tree/.", &local("into")).unwrap();
    copy("box.1:/tmp/tree/deep/er/run.sh", &local("into")).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(local("into")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["big", "deep", "link", "run.sh", "tree"]);

    let archive = run(lab, &["cp", "box.1:/tmp/tree", "-"], b"");
    assert!(archive.status.success() && archive.stdout.len() > 5 << 20);
    inside("mkdir /tmp/piped");
    let output = run(lab, &["cp", "-", "box.1:/tmp/piped"], &archive.stdout);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    assert_eq!(inside("cmp /tmp/piped/tree/big /tmp/tree/big && echo same"), "same\n");
    for (from, to, expected) in [
        ("box.1:/nowhere", local("x"), "/nowhere in container main: there is no such file"),
        ("box.1:/tmp/tree/big", local("no/"), "there is no directory"),
        ("box.1:/tmp/tree", local("tree/big"), "is a file, and a directory cannot be copied onto it"),
        ("box.1:/tmp/tree", local("no/way"), "there is no directory"),
        ("a", "b".to_owned(), "neither end is in a container"),
        ("box.1:/a", "box.1:/b".to_owned(), "both ends are in containers"),
        (&local("nothing"), "box.1:/tmp".to_owned(), "No such file"),
        (&local("tree/big"), "box.1:/tmp/no/".to_owned(), "there is no directory /tmp/no/"),
        (&local("tree/big"), "box.1:/no/way".to_owned(), "there is no directory /no"),
        (&local("tree"), "box.1:/etc/passwd".to_owned(), "/etc/passwd is a file, and a directory cannot be copied onto it"),
        (&local("tree/big"), "box.1:/proc/version".to_owned(), "copy to container main"),
    ] {
        let refused = copy(from, &to).unwrap_err().to_string();
        assert!(refused.contains(expected), "{from} to {to}: {refused}");
    }
    turn.finish();
}

#[test]
fn no_link_of_a_container_leads_a_copy_out_of_it() {
    let (turn, _) = pod("cp-escape", 1);
    let lab = turn.lab();
    let dir = tempfile::tempdir().unwrap();
    let local = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    std::fs::write(dir.path().join("mine"), "from outside\n").unwrap();
    // The host has this file and the container has not; no copy may find it, and none may change it.
    let witness = dir.path().join("witness");
    std::fs::write(&witness, "the host's\n").unwrap();
    let host_dir = dir.path().to_string_lossy().into_owned();
    let inside = |script: &str| lab.ctl(&["exec", "box.1", "sh", "-c", script]).unwrap();
    let escapes = [
        host_dir.clone(),
        format!("../../../../../../../../../..{host_dir}"),
        format!("/proc/1/root{host_dir}"),
        format!("/proc/self/root{host_dir}"),
    ];
    for (number, escape) in escapes.iter().enumerate() {
        inside(&format!("ln -s {escape} /tmp/out{number}; ln -s {escape}/witness /tmp/file{number}"));
        for from in [format!("box.1:/tmp/out{number}/witness"), format!("box.1:{escape}/witness")] {
            lab.ctl(&["cp", &from, &local("stolen")]).unwrap_err();
        }
        lab.ctl(&["cp", "-L", &format!("box.1:/tmp/file{number}"), &local("stolen")]).unwrap_err();
        for to in [format!("box.1:/tmp/out{number}/witness"), format!("box.1:/tmp/file{number}"), format!("box.1:/tmp/out{number}/new")] {
            // It may be refused, or land on a path of the container itself; the host's files tell.
            drop(lab.ctl(&["cp", &local("mine"), &to]));
        }
    }
    // An archive that goes through a link it brings along, one that goes upwards, and one with a hard link to the host's file.
    for (name, kind, link, then) in [
        ("l", tar::EntryType::Symlink, host_dir.as_str(), "l/witness"),
        ("l2", tar::EntryType::Symlink, "../../../../../../../..", "l2/witness"),
        ("h", tar::EntryType::Link, "../../witness", "h"),
        ("up", tar::EntryType::Symlink, "x", "../../witness"),
    ] {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o777);
        archive.append_link(&mut header, name, link).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        header.as_gnu_mut().unwrap().name[..then.len()].copy_from_slice(then.as_bytes());
        header.set_cksum();
        archive.append(&header, &b"evil\n"[..]).unwrap();
        drop(run(lab, &["cp", "-", "box.1:/tmp"], &archive.into_inner().unwrap()));
    }
    assert_eq!(std::fs::read_to_string(&witness).unwrap(), "the host's\n");
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["mine", "witness"], "nothing came out, and nothing was made outside");
    turn.finish();
}
