//! Managers that join, are lost, and leave.

use std::path::Path;

use rcluster_api::client::{idempotency_key, keyed};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1;
use rcluster_manager::store::Identity;

use crate::support::{Cluster, addr, start, until};

#[tokio::test]
async fn three_managers_survive_the_loss_of_one_and_it_comes_back_with_an_empty_disk() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    cluster.settled(&["m1", "m2", "m3"]).await;
    cluster.write("before").await;
    let leader = cluster.settled(&["m1", "m2", "m3"]).await.leader;
    cluster.manager(&leader).kill();
    cluster.write("during").await;
    until("the loss is seen", || async {
        let status = cluster.status().await.ok()?;
        status.managers.iter().any(|manager| manager.name == leader && !manager.reachable).then_some(())
    })
    .await;
    // Its host comes back without its disk, under the same name at the same address.
    let (dir, addr) = (cluster.manager(&leader).dir.clone(), cluster.manager(&leader).addr.clone());
    let identity = |dir: &Path| -> Option<Identity> {
        std::fs::read(dir.join("identity.json")).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap())
    };
    let before = identity(&dir).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    cluster.join_at(&leader, &dir, &addr);
    let after = until("it has joined", || async { identity(&dir) }).await;
    // More than 4 when it had to ask again.
    assert!(after.id >= 4, "Raft ids are never used again: it was {}, and is {}", before.id, after.id);
    let status = cluster.settled(&["m1", "m2", "m3"]).await;
    assert!(status.managers.iter().any(|manager| manager.id == after.id), "{status:?}");
    assert_eq!(cluster.networks().await, 2);
}

#[tokio::test]
async fn a_token_is_read_to_join_and_never_again() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.settled(&["m1", "m2"]).await;
    let m2 = cluster.manager("m2");
    m2.kill();
    let (dir, at) = (m2.dir.clone(), m2.addr.clone());
    let token = cluster.dir.path().join("token");
    std::fs::remove_file(&token).unwrap();
    let leader = cluster.managers[0].addr.clone();
    let by_file = ["--name", "m2", "--join", &leader, "--token-file", token.to_str().unwrap()];
    *cluster.manager("m2") = start("m2", &dir, &at, &by_file);
    cluster.settled(&["m1", "m2"]).await;
    cluster.manager("m2").kill();
    *cluster.manager("m2") = start("m2", &dir, &at, &by_file[..4]);
    cluster.settled(&["m1", "m2"]).await;
    // Who has not joined needs it.
    let empty = cluster.dir.path().join("m3");
    for (arguments, why) in [
        (&by_file[..], "--token-file "),
        (&by_file[..4], "rclusterctl cluster token manager"),
        (&[&by_file[..4], &["--token", "x"]].concat(), "--token (RCLUSTER_JOIN_TOKEN): not a join token"),
    ] {
        let mut refused = start("m3", &empty, &addr(), arguments);
        assert_eq!(refused.end().await, 1);
        assert!(refused.log().contains(why), "{why}: {}", refused.log());
    }
}

/// Removes a manager, whoever leads: asked again, it is still removed once.
async fn remove(cluster: &Cluster, name: &str) {
    let key = idempotency_key();
    let request = v1::RemoveRequest { refs: vec![v1::Ref { kind: v1::Kind::Manager.into(), name: name.to_owned() }] };
    until(&format!("{name} is removed"), || async {
        cluster.control(&cluster.admin).await.ok()?.remove(keyed(&key, request.clone())).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_manager_leaves_by_command_and_what_would_lose_the_quorum_is_refused() {
    let mut cluster = Cluster::found().await;
    cluster.join("m2");
    cluster.join("m3");
    let leader = cluster.settled(&["m1", "m2", "m3"]).await.leader;
    let mut others = ["m1", "m2", "m3"].into_iter().filter(|name| *name != leader);
    let (lost, kept) = (others.next().unwrap(), others.next().unwrap());
    cluster.manager(lost).kill();
    until("the loss is seen", || async {
        let status = cluster.status().await.ok().filter(|status| status.answered_by == status.leader)?;
        status.managers.iter().any(|manager| manager.name == lost && !manager.reachable).then_some(())
    })
    .await;
    let request = v1::UpdateManagerRequest { manager: kept.to_owned(), role: v1::ManagerRole::Standby.into(), addr: String::new() };
    let refused = until("an answer", || async {
        let answer = cluster.control(&cluster.admin).await.ok()?.update_manager(request.clone()).await;
        // Nobody may lead for a moment.
        Some(ApiError::from(answer.unwrap_err())).filter(|refused| refused.code != ErrorCode::Unavailable)
    })
    .await;
    let arithmetic = format!("demoting {kept} leaves 1 of 2 voters reachable; quorum needs 2, and would be lost");
    assert!(refused.message.starts_with(&arithmetic), "{refused}");
    // The lost one may go: two of two are left.
    remove(&cluster, lost).await;
    let mut left = [leader.as_str(), kept];
    left.sort_unstable();
    cluster.settled(&left).await;
    // It hears of it when it comes back, although its certificate is no longer taken.
    let (dir, addr) = (cluster.manager(lost).dir.clone(), cluster.manager(lost).addr.clone());
    let mut back = start(lost, &dir, &addr, &[]);
    assert_eq!(back.end().await, 1);
    assert!(back.log().contains("this manager was removed from its cluster"), "{}", back.log());
    // The leader itself may go as well: it hands over first.
    let leader = cluster.settled(&left).await.leader;
    let kept = left.into_iter().find(|name| *name != leader).unwrap();
    remove(&cluster, &leader).await;
    cluster.settled(&[kept]).await;
    let gone = cluster.manager(&leader);
    assert_eq!(gone.end().await, 1);
    assert!(gone.log().contains("this manager was removed from its cluster"), "{}", gone.log());
    cluster.write("after").await;
}
