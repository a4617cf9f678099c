//! What a service may ask for its containers.

use std::process::Stdio;
use std::time::Duration;

use rcluster_api::health::Health;
use rcluster_tests::lab::{bin_dir, wait_for};

use crate::{Turn, web};

const SOON: Duration = Duration::from_secs(20);

/// The manifest with a check of each container's health.
fn checked(manifest: &str, check: &str) -> String {
    manifest.replace("    - image:", &format!("    - healthcheck: {check}\n      image:"))
}

#[test]
fn only_what_is_healthy_is_named_and_what_stays_unhealthy_is_replaced() {
    let turn = Turn::new("health", 1, 2);
    let lab = turn.lab();
    lab.deploy(&checked(&web("lab", "web", 2), "{http: {port: 8080, path: /health}, interval: 200ms}")).unwrap();
    let healthy = lab.wait_running("web", 2, SOON).unwrap();
    assert!(healthy.iter().all(|task| task.health == Health::Healthy), "deploy waits for health: {healthy:?}");
    assert_eq!(lab.resolve(&healthy[0], "web").unwrap().len(), 2);

    // Nothing listens there, and it has an hour to begin.
    let slow = checked(&web("lab", "slow", 1), "{tcp: {port: 81}, start_period: 1h, start_interval: 100ms}");
    lab.ctl(&["deploy", "--detach", &lab.write(slow.split_once("---\n").unwrap().1).unwrap()]).unwrap();
    let slow = lab.wait_running("slow", 1, SOON).unwrap();
    wait_for("its health is known", SOON, || Ok((lab.running("slow")?[0].health == Health::Starting).then_some(()))).unwrap();
    let unknown = lab.exec(&healthy[0], &["/probe", "resolve", "slow", "--count", "1"]).unwrap_or_else(|error| error.to_string());
    assert!(unknown.contains("NODATA"), "the name is there and has no address: {unknown}");

    let sick = checked(&web("lab", "sick", 1), "{http: {port: 8080, path: /nowhere}, interval: 100ms, retries: 2}");
    let refused = lab.deploy(sick.split_once("---\n").unwrap().1).unwrap_err().to_string();
    assert!(refused.contains("container sick is unhealthy: GET /nowhere: 404"), "{refused}");
    assert_eq!(lab.running("slow").unwrap()[0].id, slow[0].id);
    turn.finish();
}

#[test]
fn what_a_node_does_not_grant_is_said_before_anything_runs() {
    let turn = Turn::new("policy", 1, 1);
    let lab = turn.lab();
    let manifest = web("lab", "web", 1).replace("    - image:", "    - mounts: [{type: bind, source: /srv, target: /t}]\n      image:");
    lab.ctl(&["deploy", "--detach", &lab.write(&manifest).unwrap()]).unwrap();
    let expected = "0/1 nodes fit web.1: 1 does not allow /srv to be mounted";
    wait_for("the reason", SOON, || Ok(lab.all_tasks()?.iter().any(|task| task.message == expected).then_some(()))).unwrap();
    turn.finish();
}

#[test]
fn followed_logs_go_on_over_new_tasks_and_a_restarted_agent_and_no_reader_waits_for_a_dead_one() {
    let turn = Turn::with("follow", 1, 1, &["--image", &bin_dir().unwrap().join("busybox.tar").to_string_lossy()]);
    let lab = turn.lab();
    let script = "i=0; while true; do i=$((i+1)); echo line $i of $RCLUSTER_TASK_ID; /bin/busybox sleep 0.1; done";
    let manifest = format!(
        "kind: Service\nname: box\nspec:\n  stop_grace: 0s\n  restart: {{delay: 0s}}\n  containers:\n    - image: rcluster/busybox:test\n      \
         command: [/bin/busybox, sh, -c, \"{script}\"]\n"
    );
    lab.deploy(&manifest).unwrap();
    let first = lab.wait_running("box", 1, SOON).unwrap().remove(0);
    let file = tempfile::tempdir().unwrap();
    let path = file.path().join("followed");
    let output = std::fs::File::create(&path).unwrap();
    let mut follower = lab.command(&["logs", "-f", "box"]).stdin(Stdio::null()).stdout(output).spawn().unwrap();
    let seen = |what: &str, of: &str, least: usize| {
        wait_for(what, SOON, || {
            let text = std::fs::read_to_string(&path)?;
            Ok((text.lines().filter(|line| line.contains(of)).count() >= least).then_some(text))
        })
        .unwrap()
    };
    seen("the first task's lines", &first.id, 5);

    lab.host("kill", &["n1/agent"]).unwrap();
    lab.host("start", &["n1/agent"]).unwrap();
    let before = std::fs::read_to_string(&path).unwrap().lines().count();
    let text = seen("lines from after the agent's restart", &first.id, before + 10);
    let numbers: Vec<u32> = text
        .lines()
        .filter(|line| line.contains(&first.id))
        .filter_map(|line| line.split("line ").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    assert_eq!(
        numbers,
        (numbers[0]..=numbers[0] + u32::try_from(numbers.len()).unwrap() - 1).collect::<Vec<_>>(),
        "none is lost or told twice"
    );

    lab.deploy(&manifest.replace("delay: 0s", "delay: 1s").replace("stop_grace: 0s", "stop_grace: 1s")).unwrap();
    let second = lab.wait_running("box", 1, SOON).unwrap().remove(0);
    assert_ne!(second.id, first.id);
    seen("the next task's lines", &second.id, 5);

    lab.host("kill", &["n1"]).unwrap();
    let refused = lab.ctl(&["logs", "box"]).unwrap_or_else(|error| error.to_string());
    assert!(refused.is_empty() || refused.contains("n1"), "{refused}");
    follower.kill().unwrap();
    follower.wait().unwrap();
    turn.finish();
}

#[test]
fn a_container_has_the_mounts_limits_and_capabilities_it_asks_for() {
    let turn = Turn::with("options", 1, 1, &["--image", &bin_dir().unwrap().join("busybox.tar").to_string_lossy()]);
    let lab = turn.lab();
    let manifest = "kind: Service
name: box
spec:
  stop_grace: 0s
  containers:
    - image: rcluster/busybox:test
      command: [/bin/busybox, sleep, \"100000\"]
      healthcheck: {command: [/bin/busybox, test, -d, /data], interval: 1s}
      mounts:
        - {type: volume, source: data, target: /data}
        - {type: tmpfs, target: /scratch, size: 1MiB, mode: \"0700\"}
      ulimits: {nofile: {soft: 100, hard: 200}}
      cap_drop: [ALL]
      cap_add: [CHOWN]
      no_new_privileges: true
      sysctls: {net.ipv4.ip_unprivileged_port_start: \"80\"}
      shm_size: 2MiB
      env: {ROUND: one}
";
    lab.deploy(manifest).unwrap();
    let inside = |script: &str| lab.ctl(&["exec", "box.1", "--", "/bin/busybox", "sh", "-c", script]).unwrap().trim().to_owned();
    assert_eq!(inside("ulimit -Sn; ulimit -Hn"), "100\n200");
    assert_eq!(inside("/bin/busybox grep CapBnd /proc/1/status"), "CapBnd:\t0000000000000001");
    assert_eq!(inside("/bin/busybox grep NoNewPrivs /proc/1/status"), "NoNewPrivs:\t1");
    assert_eq!(
        inside("/bin/busybox stat -c '%a %F' /scratch; /bin/busybox cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "700 directory\n80"
    );
    let size = |path: &str| inside(&format!("/bin/busybox df -k {path} | /bin/busybox tail -1 | /bin/busybox awk '{{print $2}}'"));
    assert_eq!((size("/scratch"), size("/dev/shm")), ("1024".to_owned(), "2048".to_owned()));
    assert_eq!(lab.running("box").unwrap()[0].health, Health::Healthy);

    inside("echo kept > /data/file; echo gone > /scratch/file");
    lab.deploy(&manifest.replace("ROUND: one", "ROUND: two")).unwrap();
    assert_eq!(inside("/bin/busybox cat /data/file; /bin/busybox ls /scratch"), "kept");
    turn.finish();
}

#[test]
fn a_check_that_never_ends_leaves_nothing_in_the_container_and_one_that_floods_does_no_harm() {
    let turn = Turn::with("checks", 1, 1, &["--image", &bin_dir().unwrap().join("busybox.tar").to_string_lossy()]);
    let lab = turn.lab();
    let manifest = |check: &str| {
        format!(
            "kind: Service\nname: box\nspec:\n  stop_grace: 0s\n  containers:\n    - image: rcluster/busybox:test\n      command: \
             [/bin/busybox, sleep, \"100000\"]\n      healthcheck: {{command: [/bin/busybox, {check}], timeout: 300ms, interval: 100ms, \
             start_interval: 100ms, start_period: 1h}}\n"
        )
    };
    lab.ctl(&["deploy", "--detach", &lab.write(&manifest("sleep, \"77777\"")).unwrap()]).unwrap();
    let task = lab.wait_running("box", 1, SOON).unwrap().remove(0);
    let inside = |script: &str| lab.ctl(&["exec", &task.id, "--", "/bin/busybox", "sh", "-c", script]);
    let count =
        || inside("/bin/busybox ps | /bin/busybox grep '[s]leep 77777' | /bin/busybox wc -l").unwrap().trim().parse::<u32>().unwrap();
    let pid = || inside("echo $$").unwrap().trim().parse::<u32>().unwrap();
    wait_for("a check runs", SOON, || Ok((count() > 0).then_some(()))).unwrap();
    // Numbers are given in turn, and each check takes one.
    let first = pid();
    wait_for("some checks were cut off", SOON, || Ok((pid() > first + 40).then_some(()))).unwrap();
    assert!(count() <= 1, "{} checks are still there", count());

    lab.ctl(&["deploy", "--detach", &lab.write(&manifest("yes")).unwrap()]).unwrap();
    let flooded = wait_for("the new task is checked", SOON, || {
        Ok(lab.running("box")?.into_iter().find(|new| new.id != task.id && new.health == Health::Starting))
    })
    .unwrap();
    let pid = || lab.ctl(&["exec", &flooded.id, "--", "/bin/busybox", "sh", "-c", "echo $$"]).unwrap().trim().parse::<u32>().unwrap();
    let first = pid();
    let mut largest = 0;
    let largest = wait_for("some checks have flooded", SOON, || {
        largest = largest.max(resident_mib(lab.name(), "rcluster-agent")?);
        Ok((pid() > first + 20).then_some(largest))
    })
    .unwrap();
    assert!(largest < 64, "the agent grew to {largest} MiB");
    turn.finish();
}

/// The resident memory of a lab's program.
fn resident_mib(lab: &str, program: &str) -> anyhow::Result<u64> {
    for entry in std::fs::read_dir("/proc")? {
        let dir = entry?.path();
        // A process may end while it is being looked at.
        let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        if read("comm").trim() == program && read("cgroup").contains(&format!("rcluster-lab-{lab}/")) {
            let status = read("status");
            let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).and_then(|rest| rest.split_whitespace().next());
            return Ok(kib.unwrap_or_default().parse::<u64>()? / 1024);
        }
    }
    anyhow::bail!("no {program} runs in lab {lab}")
}
