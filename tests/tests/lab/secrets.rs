//! Secrets and configs: files in memory for those who use them, and nowhere else on their nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcluster_api::rest::{DataJson, TaskJson};
use rcluster_tests::lab::{Lab, bin_dir, wait_for};

use crate::Turn;

const SOON: Duration = Duration::from_secs(20);
/// What no file of a node may hold, and no answer.
const PLAIN: &str = "correct-horse-battery-1";
const CHANGED: &str = "correct-horse-battery-2";

/// `user`, which ends when `/stop` is there, with the secret in two places and the config, `other` without.
fn manifest() -> String {
    let service = |name: &str, uses: &str| {
        format!(
            "---\nkind: Service\nname: {name}\nspec:\n  stop_grace: 0s\n  containers:\n    - image: rcluster/busybox:test\n      \
             command: [/bin/busybox, sh, -c, \"while [ ! -e /stop ]; do /bin/busybox sleep 0.1; done\"]\n{uses}"
        )
    };
    let user = service(
        "user",
        "      secrets: [db, {source: db, target: /etc/app/key, uid: 1000, gid: 1001, mode: \"0400\"}]\n      configs: [app]\n",
    );
    format!("kind: Config\nname: app\nspec: {{text: \"port 80\\n\"}}\n{user}{}", service("other", ""))
}

/// Runs a script in which `@` stands for the path of busybox.
fn shell(lab: &Lab, task: &TaskJson, script: &str) -> String {
    lab.exec(task, &["/bin/busybox", "sh", "-c", &script.replace("@", "/bin/busybox ")]).unwrap()
}

fn refused(lab: &Lab, arguments: &[&str], expected: &str) {
    let error = lab.ctl(arguments).unwrap_err().to_string();
    assert!(error.contains(expected), "{arguments:?}: {error}");
    assert!(!error.contains("correct-horse"), "{error}");
}

/// The files under `dir` that hold `text`.
fn holding(dir: &Path, text: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let kind = fs::symlink_metadata(&path).map(|data| data.file_type());
        if kind.as_ref().is_ok_and(fs::FileType::is_dir) {
            found.extend(holding(&path, text));
        } else if kind.is_ok_and(|kind| kind.is_file())
            && fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// An agent of the lab: its process, and its directories as seen from here.
struct Agent {
    pid: String,
    state: PathBuf,
    run: PathBuf,
}

fn agents(lab: &Lab) -> Vec<Agent> {
    let read = |pid: String| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&str> = words.split('\0').collect();
        let flag = |name: &str| words.iter().position(|word| *word == name).and_then(|place| words.get(place + 1));
        let (state, run) = (flag("--state-dir")?, flag("--run-dir")?);
        let is_ours = words[0].ends_with("rcluster-agent") && state.contains(&format!("/{}/", lab.name()));
        let seen = |dir: &str| PathBuf::from(format!("/proc/{pid}/root{dir}"));
        is_ours.then(|| Agent { state: seen(state), run: seen(run), pid: pid.clone() })
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter_map(read).collect()
}

/// Nothing on the disks or in the run directories of nodes but the tasks' own tmpfs holds `text`; that does.
fn is_in_no_other_file_of_a_node(lab: &Lab, text: &str) {
    let mut in_memory = 0;
    for Agent { state, run, .. } in agents(lab) {
        assert!(state.join("node.json").exists(), "the disk is looked at");
        assert_eq!(holding(&state, text), Vec::<String>::new());
        let (own, other): (Vec<String>, Vec<String>) = holding(&run, text).into_iter().partition(|file| file.contains("/data/"));
        in_memory += own.len();
        // The root file systems show the mounts of nobody: what they hold would be on the disk.
        assert_eq!(other, Vec::<String>::new());
    }
    assert_eq!(in_memory, 2, "the files of one task");
}

#[test]
fn a_secret_is_a_file_in_memory_of_those_who_use_it() {
    let image = bin_dir().unwrap().join("busybox.tar").to_string_lossy().into_owned();
    let turn = Turn::with("secrets", 1, 2, &["--image", &image]);
    let lab = turn.lab();
    let file = lab.write(PLAIN).unwrap();
    refused(lab, &["deploy", &lab.write(&manifest().replace("[db,", "[dv,")).unwrap()], "uses secret dv, which neither exists");
    lab.write(PLAIN).unwrap();
    lab.ctl(&["secret", "create", "db", &file]).unwrap();
    refused(lab, &["secret", "create", "db", &file], "secret db exists");
    lab.deploy(&manifest()).unwrap();
    let user = lab.wait_running("user", 1, SOON).unwrap().remove(0);
    let other = lab.wait_running("other", 1, SOON).unwrap().remove(0);

    assert_eq!(shell(lab, &user, "@cat /run/secrets/db /etc/app/key /app"), format!("{PLAIN}{PLAIN}port 80\n"));
    let stat = shell(lab, &user, "@stat -c '%a %u %g' /run/secrets/db /etc/app/key /app");
    assert_eq!(stat, "444 0 0\n400 1000 1001\n444 0 0\n");
    let mounts = shell(lab, &user, "@grep -E ' (/run/secrets/db|/etc/app/key|/app) ' /proc/mounts");
    assert_eq!(mounts.lines().count(), 3, "{mounts}");
    assert!(mounts.lines().all(|line| line.starts_with("tmpfs ") && line.contains(" ro,nosuid,nodev,noexec")), "{mounts}");
    assert_eq!(shell(lab, &user, "echo x 2>/dev/null > /run/secrets/db || echo no"), "no\n");
    assert_eq!(shell(lab, &other, "@ls /run/secrets /app 2>/dev/null || echo none"), "none\n");

    // Neither an answer nor a file of a node holds it.
    for arguments in [
        &["get", "secrets", "-o", "yaml"][..],
        &["get", "secret", "db", "-o", "json"],
        &["secret", "inspect", "db"],
        &["describe", "secret", "db"],
        &["get", "services", "-o", "yaml"],
        &["events", "-o", "json"],
    ] {
        let text = lab.ctl(arguments).unwrap();
        assert!(!text.contains(PLAIN) && !text.contains("Y29ycmVjdC1ob3JzZ"), "{arguments:?}: {text}");
    }
    let config: DataJson = lab.json(&["config", "inspect", "app"]).unwrap();
    assert_eq!(config.spec.data.unwrap().0, b"port 80\n", "a config's bytes are given back");
    is_in_no_other_file_of_a_node(lab, PLAIN);

    // An agent that was started anew leaves the task alone, and can start it again.
    let agent = format!("{}/agent", user.node);
    lab.host("kill", &[&agent]).unwrap();
    lab.host("start", &[&agent]).unwrap();
    assert_eq!(shell(lab, &user, "@cat /run/secrets/db"), PLAIN);
    shell(lab, &user, ": > /stop");
    let again = wait_for("the task is started again", SOON, || Ok(lab.running("user")?.pop().filter(|task| task.id != user.id))).unwrap();
    assert_eq!(shell(lab, &again, "@cat /etc/app/key"), PLAIN);

    // Other bytes reach the tasks by the service's update policy.
    refused(lab, &["rm", "secret", "db"], "secret db is used by user");
    fs::write(&file, CHANGED).unwrap();
    lab.ctl(&["secret", "create", "--replace", "db", &file]).unwrap();
    let updated = wait_for("the task is replaced", SOON, || Ok(lab.running("user")?.pop().filter(|task| task.id != again.id))).unwrap();
    assert_eq!(shell(lab, &updated, "@cat /run/secrets/db"), CHANGED);
    assert_eq!(lab.running("other").unwrap()[0].id, other.id, "who does not use it is left alone");
    lab.deploy(&manifest()).unwrap();
    assert_eq!(lab.running("user").unwrap()[0].id, updated.id, "the same again replaces nothing");
    is_in_no_other_file_of_a_node(lab, CHANGED);

    lab.ctl(&["rm", "service", "user", "secret/db", "config/app"]).unwrap();
    assert_eq!(lab.ctl(&["secret", "ls", "-o", "name"]).unwrap(), "");
    wait_for("no tmpfs is left", SOON, || {
        let mounts =
            agents(lab).iter().map(|agent| fs::read_to_string(format!("/proc/{}/mounts", agent.pid))).collect::<Result<String, _>>()?;
        Ok((!mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|target| target.ends_with("/data")))).then_some(()))
    })
    .unwrap();
    turn.finish();
}
