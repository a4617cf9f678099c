//! The verbs against a manager in memory: what they print, in which form, and how they end.

mod common;
#[path = "common/manager.rs"]
mod manager;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use common::{Ended, User};

const WEB: &str = "kind: Network\nname: lab\nspec: {}\n---\nkind: Service\nname: web\nspec:\n  replicas: 2\n  networks: [lab]\n  containers:\n  \
                   - image: probe:demo\n    args: [serve, '8080']\n";

/// A user of a cluster of their own, with a file for `text`.
fn user(text: &str) -> (User, String) {
    let mut user = User::new();
    user.managers = Some(manager::start());
    let file = user.file("web.yaml", text);
    (user, file)
}

fn ok(ended: Ended) -> Ended {
    assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
    ended
}

fn json(ended: Ended) -> serde_json::Value {
    serde_json::from_str(&ok(ended).stdout).unwrap()
}

/// Without the time that it took.
fn untimed(text: &str) -> String {
    text.split_once("converged in ").map_or(text, |(before, _)| before).to_owned()
}

#[test]
fn a_deploy_shows_its_plan_and_follows_the_tasks() {
    let (user, file) = user(WEB);
    let first = ok(user.run(&format!("deploy {file}")));
    assert_eq!(untimed(&first.stdout), "+ network lab\n+ service web\n    2 tasks of probe:demo\n2 to create, 0 to update, 0 unchanged\n");
    assert!(first.stderr.contains("  web.1 running on n1\n"), "{}", first.stderr);
    let again = ok(user.run(&format!("deploy {file} -o json")));
    let report: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(report["applied"][1]["outcome"], "unchanged");
    assert_eq!(report["plan"]["steps"][1]["action"], "unchanged");
    assert!(report["converged_ms"].is_u64());
    let planned = ok(user.run(&format!("plan {}", user.file("more.yaml", &WEB.replace("replicas: 2", "replicas: 4")))));
    assert_eq!(
        planned.stdout,
        "= network lab unchanged\n~ service web\n    spec.replicas: 2 -> 4\n0 to create, 1 to update, 1 unchanged\n"
    );
}

#[test]
fn a_failing_task_fails_the_deploy_with_its_reason_and_last_lines() {
    let (user, file) = user(&WEB.replace("probe:demo", "broken"));
    let ended = user.run(&format!("deploy {file}"));
    assert_eq!(ended.code, 1);
    let tail = &ended.stderr[ended.stderr.find("last log lines").unwrap()..];
    assert_eq!(
        tail,
        "last log lines of web.2:\n  a line of task-web-2-2\nerror: the deploy of web fails: task web.2 on n1 failed, 3 times: exit code 3\n\
         hint: see rclusterctl logs web.2 and rclusterctl ps web -a\n"
    );
}

#[test]
fn a_deploy_that_does_not_converge_says_what_it_waits_for() {
    let (user, file) = user(&WEB.replace("probe:demo", "slow"));
    let ended = user.run(&format!("deploy {file} --timeout 3s"));
    assert_eq!(ended.code, 4);
    let tail = &ended.stderr[ended.stderr.find("error:").unwrap()..];
    assert_eq!(
        tail,
        "error: the deploy has not converged within 3s: web 0/2\n  web.1 is pending: 0/3 nodes fit\n  web.2 is pending: 0/3 nodes fit\n\
         hint: it goes on in the cluster: see rclusterctl ps, or wait longer with --timeout\n"
    );
}

#[test]
fn objects_are_shown_in_every_form() {
    let (user, file) = user(WEB);
    ok(user.run(&format!("deploy {file}")));
    let tasks = json(user.run("ps -o json"));
    let task = &tasks[0];
    for field in ["id", "name", "service", "slot", "node", "state", "desired_state", "message", "since", "restarts", "networks"] {
        assert!(!task[field].is_null(), "{field} in {task}");
    }
    assert_eq!((task["networks"][0]["network"].as_str(), task["networks"][0]["ip"].as_str()), (Some("lab"), Some("10.128.0.2")));
    let service = json(user.run("get service web -o json"));
    assert_eq!(service["replicas"], serde_json::json!({"desired": 2, "running": 2}));
    assert_eq!(service["update"]["state"], "completed");
    assert_eq!(ok(user.run("get networks -o name")).stdout, "network/lab\n");
    let table = ok(user.run("ps web")).stdout;
    assert!(table.starts_with("ID             NAME    NODE   STATE     DESIRED   ADDRESS      SINCE"), "{table}");
    let described = ok(user.run("describe service web")).stdout;
    assert!(described.contains("\nTasks\n  ID ") && described.contains("Changed   2 tasks are wanted\n"), "{described}");
    let missing = user.run("get service nobody");
    assert_eq!((missing.code, missing.stderr.as_str()), (1, "error: there is no service nobody\nhint: see rclusterctl get services\n"));
}

#[test]
fn what_get_prints_can_be_deployed_again() {
    let (user, file) = user(WEB);
    ok(user.run(&format!("deploy {file}")));
    let printed = ok(user.run("get services -o yaml")).stdout + "---\n" + &ok(user.run("get network lab -o yaml")).stdout;
    let again = ok(user.run(&format!("deploy {}", user.file("printed.yaml", &printed))));
    assert_eq!(untimed(&again.stdout), "= service web unchanged\n= network lab unchanged\n0 to create, 0 to update, 2 unchanged\n");
    ok(user.run("scale web=3"));
    let stale = user.run(&format!("deploy {}", user.path("printed.yaml").display()));
    assert_eq!(stale.code, 1);
    assert!(stale.stderr.contains("service web has version 6, the file was made from version 2"), "{}", stale.stderr);
}

#[test]
fn scaling_and_removing_wait_for_the_end() {
    let (user, file) = user(WEB);
    ok(user.run(&format!("deploy {file}")));
    let scaled = ok(user.run("scale web=3"));
    assert!(scaled.stderr.starts_with("service web: 2 -> 3 replicas\n") && scaled.stdout.starts_with("converged in "), "{scaled:?}");
    assert_eq!(ok(user.run("get tasks -o name")).stdout, "task/web.1\ntask/web.2\ntask/web.3\n");
    let half = user.run("scale web=1 nobody=2");
    assert_eq!(
        (half.code, half.stderr.as_str()),
        (1, "error: there is no service nobody: nothing was scaled\nhint: see rclusterctl get services\n")
    );
    assert_eq!(json(user.run("get service web -o json"))["replicas"]["desired"], 3);
    assert!(ok(user.run("rm service web")).stderr.starts_with("service web: removed in "));
    assert_eq!(
        user.run("rm service web").stderr,
        "error: there is no service web: nothing was removed\nhint: see rclusterctl get services\n"
    );
    assert_eq!(ok(user.run("ps")).stderr, "no tasks (rclusterctl ps -a shows those that have ended)\n");
    assert_eq!(user.run("rm task web.1").code, 2);
}

#[test]
fn a_stack_is_pruned_only_when_that_was_agreed_to() {
    let (user, file) = user(WEB);
    ok(user.run(&format!("deploy {file} --stack shop")));
    let less = user.file("less.yaml", "kind: Network\nname: lab\nspec: {}\n");
    let unasked = user.run(&format!("deploy {less} --stack shop --prune"));
    assert_eq!((unasked.code, unasked.stderr.as_str()), (2, "error: 1 objects would be removed\nhint: say so with --yes\n"));
    ok(user.run(&format!("deploy {less} --stack shop --prune --yes")));
    assert_eq!(ok(user.run("get services")).stderr, "no services\n");
}

#[test]
fn logs_nodes_and_the_cluster() {
    let (user, file) = user(WEB);
    ok(user.run(&format!("deploy {file}")));
    assert_eq!(ok(user.run("logs web")).stdout, "web.1@n1 | a line of web\n");
    assert_eq!(ok(user.run("logs web.1 -t")).stdout, "2026-11-21T10:00:00.000000000Z a line of web.1\n");
    assert_eq!(json(user.run("logs web -o json"))["stream"], "stderr");
    assert_eq!(json(user.run("node ls -o json"))[0]["role"], "manager");
    assert_eq!(json(user.run("cluster status -o json"))["leader"], "m1");
    let drained = user.run("node drain n9");
    assert_eq!((drained.code, drained.stderr.as_str()), (1, "error: there is no node n9\n"));
}

#[test]
fn ctrl_c_leaves_the_deploy_to_the_cluster() {
    let (user, file) = user(&WEB.replace("probe:demo", "slow"));
    let mut child = user.command(&format!("deploy {file}")).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.ends_with("web.2 pending on n1: 0/3 nodes fit")).expect("the tasks are shown");
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(rest, ["error: no longer followed: the deploy goes on in the cluster", "hint: see rclusterctl ps"]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_watch_goes_on_with_each_change() {
    let (user, file) = user(WEB);
    ok(user.run(&format!("deploy {file}")));
    let mut child = user.command("get services -w -o json").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap()).unwrap()["replicas"]["running"].clone();
    assert_eq!(next(), 2);
    ok(user.run("scale web=3 -d"));
    assert_eq!(next(), 3);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn exec_prints_what_comes_and_ends_as_the_command_does() {
    let (user, _) = user(WEB);
    let ended = user.run("exec -e A=1 -w /srv -u app -c web web.1 -- ls -la");
    assert_eq!(ended.code, 7);
    for said in ["args: [\"ls\", \"-la\"]", "env: [\"A=1\"]", "workdir: \"/srv\"", "user: \"app\"", "tty: false", "stdin: false"] {
        assert!(ended.stdout.contains(said), "{said} in {}", ended.stdout);
    }
    assert_eq!(ended.stderr, "");
    let refused = user.run("exec web.2 ls");
    assert_eq!(refused.code, 1);
    assert_eq!(refused.stderr, "error: task web.2 is failed, not running\nhint: rclusterctl ps -a shows all tasks\n");
    let wrong = user.run("exec -e =1 web.1 ls");
    assert!(wrong.code == 2 && wrong.stderr.contains("is not KEY=VALUE"), "{}", wrong.stderr);
}

#[test]
fn a_backup_is_written_for_its_owner_and_read_to_its_end() {
    let (user, _) = user(WEB);
    let path = user.path("backup");
    let file = path.display();
    let written = ok(user.run(&format!("cluster backup {file}")));
    assert!(written.stdout.starts_with("cluster c1 at revision 7, made by manager m1 at 1970-01-01T00:00:00.000Z, "), "{}", written.stdout);
    assert!(written.stderr.contains("it holds every secret, and the authority's key, in the clear"), "{}", written.stderr);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777, 0o600);
    assert_eq!(ok(user.run(&format!("cluster backup --verify {file}"))).stdout, written.stdout);
    let view = json(user.run(&format!("cluster backup --verify {file} -o json")));
    assert_eq!((view["cluster"].as_str(), view["revision"].as_u64()), (Some("c1"), Some(7)));
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let ended = user.run(&format!("cluster backup --verify {file}"));
    assert_eq!(ended.code, 1);
    assert!(ended.stderr.starts_with(&format!("error: {file} cannot be restored: it is cut off: ")), "{}", ended.stderr);
    // A relative name stands in the current directory.
    let output = user.command("cluster backup here").current_dir(user.home.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let standard = user.command("cluster backup -").output().unwrap();
    assert_eq!(rcluster_api::backup::decode(&standard.stdout).unwrap().header.revision, 7);
}

#[test]
fn what_works_on_the_host_is_passed_on_to_its_manager() {
    let user = User::new();
    let program = user.path("rcluster-manager");
    std::fs::write(&program, "#!/bin/sh\necho \"$@\"; exit 7\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for line in ["restore --from f --yes", "init --help", "recover --state-dir d", "join --name -x"] {
        let output = user.command(&format!("cluster {line}")).env("RCLUSTER_BIN_DIR", user.home.path()).output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).trim()), (Some(7), line));
    }
}

#[test]
fn the_unlock_key_is_printed_for_scripts_and_never_given_as_an_argument() {
    let (user, _) = user(WEB);
    let on = ok(user.run("cluster autolock on"));
    assert!(on.stdout.starts_with("rckey-1-") && on.stderr.contains("Keep it outside of the cluster"), "{on:?}");
    assert_eq!(ok(user.run("cluster unlock-key")).stdout, on.stdout);
    assert!(ok(user.run("cluster unlock-key --rotate")).stderr.contains("Keep the one before"));
    let shown = json(user.run("cluster unlock-key -o json"));
    assert_eq!((shown["autolock"].as_bool(), shown["unlock_key"].as_str()), (Some(true), Some(on.stdout.trim())));
    let off = ok(user.run("cluster autolock off"));
    assert!(off.stdout.is_empty() && off.stderr.contains("autolock is off"), "{off:?}");
    assert_eq!(user.run(&format!("cluster unlock {}", on.stdout.trim())).code, 2);
    let wrong = user.run("cluster unlock --key-file /dev/null");
    assert!(wrong.stderr.contains("not an unlock key") && wrong.stderr.contains("cluster unlock-key"), "{wrong:?}");
}

#[test]
fn an_audit_tells_what_a_node_lacks_and_fails_for_it() {
    let (user, _) = user(WEB);
    let clean = ok(user.run("audit --node n1"));
    assert_eq!((clean.stdout.as_str(), clean.stderr.as_str()), ("", "as wanted: n1\n"));
    let clean = json(user.run("audit --node n1 -o json"));
    assert_eq!((&clean["nodes"][0]["revision"], &clean["differences"]), (&serde_json::json!(7), &serde_json::json!([])));
    let ended = user.run("audit");
    assert_eq!(ended.code, 1);
    assert_eq!(ended.stdout, "n2: route 10.128.0.7/32 is missing: via 10.90.0.102 on v100 (web.3 on n2)\n");
    let said = "error: 1 difference between what the managers want and what nodes hold\n";
    assert!(ended.stderr.starts_with(said), "{}", ended.stderr);
    assert_eq!(user.run("audit --node n9").stderr, "error: there is no node n9\nhint: rclusterctl get nodes lists them\n");
}

#[test]
fn a_trace_is_printed_step_by_step_and_a_check_tells_what_is_wrong() {
    let (user, _) = user(WEB);
    let traced = |target: &str, over: &str| format!("web.1 on n1 to {target}\n  a step\ndelivered to web:80 over PROTOCOL_{over}\n");
    assert_eq!(ok(user.run("trace web.1 web:80")).stdout, traced("web:80", "UNSPECIFIED"));
    assert_eq!(ok(user.run("trace web.1 web:80/udp")).stdout, traced("web:80/udp", "UDP"));
    let old = user.run("trace web.1 web:1/udp");
    assert!(old.code == 1 && old.stderr.starts_with("error: no trace of web:1/udp: the leader, or agent and netd of node n1, "), "{old:?}");
    let wrong = user.run("trace web.1 web:80/sctp");
    assert!(wrong.code == 2 && wrong.stderr.contains("\"sctp\" is neither tcp nor udp"), "{wrong:?}");
    assert_eq!(json(user.run("trace web.1 web:80 -o json"))["steps"][0], "a step");
    let ended = user.run("check");
    assert_eq!((ended.code, ended.stdout.as_str()), (1, "n2: the path to n1 is narrow\n"));
    assert!(ended.stderr.starts_with("error: 1 thing is wrong\n"), "{}", ended.stderr);
}

#[test]
fn a_network_is_made_shown_with_its_addresses_and_given_more_room() {
    let (user, file) = user(WEB);
    ok(user.run(&format!("deploy {file}")));
    let lab = json(user.run("network inspect lab"));
    assert_eq!(lab["usage"], serde_json::json!({"used": 2, "resting": 0, "size": 253}));
    assert_eq!((&lab["pool"], &lab["subnet"]), (&serde_json::json!("10.128.0.0/9"), &serde_json::json!("10.128.0.0/24")));
    let first = serde_json::json!(
        {"ip": "10.128.0.2", "kind": "task", "name": "web.1", "id": "task-web-1-0", "node": "n1", "state": "running"}
    );
    assert_eq!(lab["addresses"][0], first);
    let made = ok(user.run("network create back --subnet 10.9.0.0/24 --internal --encrypted --ipv6 --label tier=db"));
    assert_eq!(made.stdout, "network-back\n");
    let back = json(user.run("get network back -o json"));
    assert!(["internal", "encrypted", "ipv6"].iter().all(|field| back["spec"][field] == true), "{back}");
    let again = user.run("network create back");
    assert!(again.code == 1 && again.stderr.starts_with("error: network back exists: nothing was changed\n"), "{}", again.stderr);
    let wrong = user.run("network create more --subnet 10.9");
    assert!(wrong.code == 2 && wrong.stderr.contains("--subnet 10.9: not an IPv4 range"), "{}", wrong.stderr);
    assert_eq!(ok(user.run("network pool ls")).stdout, "POOL           PREFIX   SUBNETS   FREE\n10.128.0.0/9   /24      16        3\n");
    let added = json(user.run("network pool add 10.64.0.0/26 -o json"));
    assert_eq!((&added[1]["cidr"], &added[1]["prefix"]), (&serde_json::json!("10.64.0.0/26"), &serde_json::json!(26)));
}
