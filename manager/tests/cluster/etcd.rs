//! Managers whose cluster keeps its state in an etcd.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rcluster_api::client;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::etcd_server::Server;
use crate::support::{Cluster, addr, run_program, start, until};

/// Longest wait for what must happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs the program, which must end soon: its exit code, and all it said.
async fn exited(arguments: &[&str]) -> (Option<i32>, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_rcluster-manager"));
    let output = program.args(arguments).env_remove("RCLUSTER_JOIN_TOKEN").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(DEADLINE, output).await.expect("it ends").unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
}

/// As [`exited`]: whether it did what it was asked.
async fn ended(arguments: &[&str]) -> (bool, String) {
    let (code, said) = exited(arguments).await;
    (code == Some(0), said)
}

/// What a manager that ended by itself logged.
async fn refused(cluster: &mut Cluster, name: &str) -> String {
    let manager = cluster.manager(name);
    assert_eq!(manager.end().await, 1);
    manager.log()
}

#[tokio::test]
async fn managers_share_a_state_in_etcd_and_replace_a_leader_that_is_killed() {
    let server = Server::start().await;
    let store = server.access().address.to_string();
    let mut cluster = Cluster::found_with(&["--store", &store, "--etcd-insecure"]).await;
    cluster.join("m2");
    cluster.join("m3");
    let before = cluster.settled(&["m1", "m2", "m3"]).await;
    assert_eq!(before.store, store);
    cluster.write("before").await;
    // Nobody votes.
    let request = v1::UpdateManagerRequest { manager: "m2".to_owned(), role: v1::ManagerRole::Standby.into(), addr: String::new() };
    let error = cluster.control(&cluster.admin).await.unwrap().update_manager(request).await.unwrap_err();
    assert!(error.message().contains("keeps its state in etcd: its managers do not vote"), "{error}");
    // Who would keep the state elsewhere is not let in, and does not start.
    let told = std::mem::take(&mut cluster.store);
    cluster.join("m4");
    assert!(refused(&mut cluster, "m4").await.contains("this cluster keeps its state in etcd://"));
    cluster.managers.pop();
    cluster.store = told;
    // Another leads when the leader is killed, and then it may be removed, whoever else there is.
    cluster.manager(&before.leader).kill();
    cluster.write("during").await;
    let other = |status: &v1::ClusterResponse| !status.leader.is_empty() && status.leader != before.leader;
    let after = until("another leads", || async { cluster.status().await.ok().filter(other) }).await;
    assert!(after.term > before.term && after.leader != before.leader);
    let dead = cluster.manager(&before.leader);
    let (dir, addr) = (dead.dir.clone(), dead.addr.clone());
    let program = run_program(&["run", "--state-dir", dir.to_str().unwrap(), "--listen", &addr]);
    let error = String::from_utf8(program.stderr).unwrap();
    assert!(error.contains("keeps its state in etcd: start with --store"), "{error}");
    let back = start(&before.leader, &dir, &addr, &["--store", &store, "--etcd-insecure"]);
    cluster.managers.push(back);
    cluster.settled(&["m1", "m2", "m3"]).await;
    assert_eq!(cluster.networks().await, 2);
}

#[tokio::test]
async fn a_leader_that_is_removed_ends_and_etcd_may_be_away_for_a_while() {
    let mut server = Server::start().await;
    let store = server.access().address.to_string();
    let mut cluster = Cluster::found_with(&["--insecure", "--store", &store, "--etcd-insecure"]).await;
    cluster.join("m2");
    let leader = cluster.settled(&["m1", "m2"]).await.leader;
    let kept = if leader == "m1" { "m2" } else { "m1" };
    let reference = v1::Ref { kind: v1::Kind::Manager.into(), name: leader.clone() };
    cluster.control(&cluster.admin).await.unwrap().remove(v1::RemoveRequest { refs: vec![reference] }).await.unwrap();
    cluster.settled(&[kept]).await;
    assert!(refused(&mut cluster, &leader).await.contains("this manager was removed from its cluster"));
    cluster.write("before").await;
    server.stop();
    until("nobody leads", || async { cluster.status().await.ok().filter(|status| status.leader.is_empty()) }).await;
    let error = cluster.try_write(&cluster.admin, "during").await.unwrap_err();
    assert!(error.hint.contains(&format!("{store} must answer")), "{error}");
    server.again().await;
    cluster.write("after").await;
    assert_eq!(cluster.networks().await, 2);
    // A cluster that is not there, or an etcd that was never told of, is refused.
    let dir = cluster.manager(kept).dir.clone();
    let elsewhere = store.replace("/test", "/elsewhere");
    let run = ["run", "--state-dir", dir.to_str().unwrap(), "--listen", "127.0.0.1:0", "--insecure"];
    let program = run_program(&[run.as_slice(), &["--store", &elsewhere, "--etcd-insecure"]].concat());
    let error = String::from_utf8(program.stderr).unwrap();
    assert!(error.contains("/elsewhere has no cluster"), "{error}");
}

#[tokio::test]
async fn a_cluster_is_not_made_in_an_etcd_that_does_not_answer() {
    let mut server = Server::start().await;
    server.stop();
    let (dir, store, at) = (tempfile::tempdir().unwrap(), server.access().address.to_string(), addr());
    let state = dir.path().join("m1");
    let arguments =
        ["init", "--name", "m1", "--state-dir", state.to_str().unwrap(), "--advertise", &at, "--store", &store, "--etcd-insecure"];
    let refused = async |why: &str| {
        let (done, said) = ended(&arguments).await;
        assert!(!done && said.contains(&format!("first state to {store} (does etcd run there")) && said.contains(why), "{said}");
    };
    refused("reach etcd: ").await;
    // Somebody is there and says nothing.
    let silent = TcpListener::bind(server.endpoint()).await.unwrap();
    refused("reach etcd: etcd did not answer within").await;
    drop(silent);
    // What was begun is in nobody's way.
    server.again().await;
    let (done, said) = ended(&arguments).await;
    assert!(done && said.contains(&format!("--store {store} --etcd-insecure")), "{said}");
}

#[tokio::test]
async fn plain_text_to_etcd_is_refused_unless_a_flag_says_so_and_nothing_is_written() {
    let server = Server::start().await;
    let (dir, store, at) = (tempfile::tempdir().unwrap(), server.access().address, addr());
    let (path, before) = (dir.path().join("m1"), server.held().await);
    let state = path.to_str().unwrap();
    let init = format!("init --name m1 --state-dir {state} --advertise {at}");
    for verb in [
        &init,
        &format!("join --join {at} --name m1 --state-dir {state} --advertise {at} --insecure"),
        &format!("run --join {at} --name m1 --state-dir {state} --listen {at} --insecure"),
        &format!("recover --state-dir {state} --yes"),
    ] {
        let line = format!("{verb} --store {store}");
        let (code, said) = exited(&line.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(code, Some(1), "{said}");
        for part in ["the cluster authority's key", "give --etcd-ca FILE", "or --etcd-insecure"] {
            assert!(said.contains(part), "{verb}: {said}");
        }
    }
    let line = format!("{init} --store {store} --etcd-insecure --etcd-ca ca.pem");
    let (code, said) = exited(&line.split(' ').collect::<Vec<_>>()).await;
    assert!(code == Some(2) && said.contains("cannot be used with"), "{said}");
    assert!(!path.exists() && server.held().await == before, "nothing was written");
}

#[tokio::test]
async fn what_a_later_version_has_written_in_etcd_ends_the_program_and_is_left_as_it_is() {
    let server = Server::start().await;
    let (dir, store, at) = (tempfile::tempdir().unwrap(), server.access().flags(), addr());
    let path = dir.path().join("m1");
    let state = path.to_str().unwrap();
    let line = format!("init --name m1 --state-dir {state} --advertise {at}{store}");
    let (done, said) = ended(&line.split(' ').collect::<Vec<_>>()).await;
    assert!(done, "{said}");
    let (_, keys) = server.held().await;
    let (format, _) = keys.into_iter().find(|(key, _)| key.ends_with(b"/live/format")).unwrap();
    server.client().await.put(format, r#"{"format":2}"#, None).await.unwrap();
    let before = server.held().await;
    let line = format!("run --state-dir {state} --listen {at}{store}");
    let (code, said) = exited(&line.split(' ').collect::<Vec<_>>()).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("says format 2, this version reads 1: upgrade this manager"), "{said}");
    let line = format!("recover --state-dir {state}{store} --yes");
    until("it is not recovered from", || async {
        // A slow machine: it says then that etcd did not answer.
        let (code, said) = exited(&line.split(' ').collect::<Vec<_>>()).await;
        assert!(code == Some(1) && said.contains("nothing was changed"), "{said}");
        said.contains("upgrade this manager").then_some(())
    })
    .await;
    assert!(server.held().await == before, "nothing was written");
}

/// The line in what a program said that begins the manager, as words.
fn run_line(said: &str) -> Vec<String> {
    let line = said.lines().find_map(|line| line.split_once("rcluster-manager run ")).expect("it says how to go on").1;
    line.split(' ').map(str::to_owned).collect()
}

#[tokio::test]
async fn what_init_and_join_say_starts_a_manager_whose_etcd_wants_certificates() {
    let server = Server::start_secured().await;
    let (store, dir) = (server.access().flags(), tempfile::tempdir().unwrap());
    let with_store = |arguments: &[&str]| -> Vec<String> {
        let words = arguments.iter().copied().chain(store.split(' ').skip(1));
        words.map(str::to_owned).collect()
    };
    let mut managers = Vec::new();
    let mut first = String::new();
    for name in ["m1", "m2"] {
        let (state, at) = (dir.path().join(name), addr());
        let state = state.to_str().unwrap();
        let same = ["--name", name, "--state-dir", state, "--advertise", &at, "--insecure"];
        let arguments = match name {
            "m1" => with_store(&[["init"].as_slice(), &same].concat()),
            _ => with_store(&[["join", "--join", &first].as_slice(), &same].concat()),
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (done, said) = ended(&arguments).await;
        assert!(done, "{said}");
        let words = run_line(&said);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_eq!(words[..4], ["--state-dir", state, "--listen", &at]);
        managers.push(start(name, Path::new(state), &at, &words[4..]));
        first = at;
    }
    let addrs: Vec<String> = managers.iter().map(|manager| manager.addr.clone()).collect();
    until("both take part", || async {
        let mut control = client::control(&addrs, &Security::plain()).await.ok()?;
        let status = control.cluster(v1::ClusterRequest {}).await.ok()?.into_inner();
        let all = status.managers.len() == 2 && status.managers.iter().all(|manager| manager.reachable);
        (all && !status.leader.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_etcd_that_went_back_is_gone_on_from_with_numbers_that_nobody_has_seen() {
    let mut server = Server::start().await;
    let store = server.access().address.to_string();
    let mut cluster = Cluster::found_with(&["--store", &store, "--etcd-insecure"]).await;
    cluster.join("m2");
    cluster.settled(&["m1", "m2"]).await;
    cluster.write("before").await;
    server.back_up().await;
    cluster.write("after").await;
    let seen = cluster.settled(&["m1", "m2"]).await;
    for name in ["m1", "m2"] {
        let addr = cluster.manager(name).addr.clone();
        until("it has both", || async {
            let mut control = client::control(std::slice::from_ref(&addr), &cluster.admin).await.ok()?;
            let request = v1::ListRequest { kind: v1::Kind::Network.into(), ..v1::ListRequest::default() };
            (control.list(request).await.ok()?.into_inner().objects.len() == 2).then_some(())
        })
        .await;
    }
    server.go_back().await;
    // Both have seen more. Who leads says so and what to do; when it is to write again at the latest.
    cluster.try_write(&cluster.admin, "late").await.unwrap_err();
    assert!(refused(&mut cluster, &seen.leader).await.contains("`rclusterctl cluster recover`"));
    let (dir, at) = (cluster.manager("m1").dir.clone(), cluster.manager("m1").addr.clone());
    let m2 = (cluster.manager("m2").dir.clone(), cluster.manager("m2").addr.clone());
    let arguments = ["recover", "--state-dir", dir.to_str().unwrap(), "--store", &store, "--etcd-insecure", "--yes"];
    let (done, said) = ended(&arguments[..3]).await;
    assert!(!done && said.contains("give --store"), "{said}");
    // Started again it does go on; nothing is recovered from under a manager that runs.
    cluster.managers.clear();
    cluster.managers.push(start("m1", &dir, &at, &["--store", &store, "--etcd-insecure"]));
    until("m1 leads", || async { cluster.status().await.ok().filter(|status| status.leader == "m1") }).await;
    let (done, said) = ended(&arguments).await;
    assert!(!done && said.contains("managers run (m1") && said.contains("nothing was changed"), "{said}");
    cluster.managers.clear();
    until("its lease has ended", || async { ended(&arguments[..6]).await.0.then_some(()) }).await;
    let (_, said) = ended(&arguments[..6]).await;
    assert!(said.contains("Nothing was changed") && said.contains("these managers: m2."), "{said}");
    let (done, said) = ended(&arguments).await;
    assert!(done && said.contains("Recovered.") && said.contains(&format!("--store {store} --etcd-insecure")), "{said}");
    cluster.managers.push(start("m1", &dir, &at, &["--store", &store, "--etcd-insecure"]));
    let status = cluster.settled(&["m1"]).await;
    assert!(status.revision > seen.revision + (1 << 32) && status.term > seen.term + 1000, "{status:?}");
    assert_eq!(cluster.networks().await, 1, "what etcd had is there");
    // A manager of before is told that it is none any more, and joins again with an empty directory.
    cluster.managers.push(start("m2", &m2.0, &m2.1, &["--store", &store, "--etcd-insecure"]));
    assert!(refused(&mut cluster, "m2").await.contains("this manager was removed from its cluster"));
    cluster.managers.pop();
    std::fs::remove_dir_all(&m2.0).unwrap();
    cluster.join_at("m2", &m2.0, &m2.1);
    cluster.settled(&["m1", "m2"]).await;
    cluster.write("both").await;
}
