//! What a store promises while its network and its disk do as they should, or not.

use rcluster_manager::store::{ProposeError, RoleKind, TRANSACTION_BYTES_MAX};

use crate::disk::Failure;
use crate::world::{Stores, has, make, make_large, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_all_know_it() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    for store in &cluster.stores {
        let name = until("the leader's name", || store.role().borrow().leader.clone().map(|leader| leader.name)).await;
        assert_eq!(name, cluster.configs[leader].name);
    }
    let leads = cluster.stores.iter().filter(|store| store.role().borrow().kind == RoleKind::Leader).count();
    assert_eq!(leads, 1);
    let reachable = || cluster.stores[leader].status().members.iter().all(|member| member.reachable && member.matched > 1);
    until("every member reachable and caught up", || reachable().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_manager_leads_and_writes() {
    let cluster = Stores::start(1);
    cluster.write(&[0], &make("a")).await;
    cluster.stores[0].read_barrier().await.unwrap();
    assert!(has(&cluster.stores[0].state(), "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_in_the_tables_when_it_is_answered_and_soon_everywhere() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    let revision = cluster.stores[leader].propose(make("a")).await.unwrap();
    let state = cluster.stores[leader].state();
    assert!(has(&state, "a") && state.revision() == revision);
    assert_eq!(*cluster.stores[leader].revisions().borrow(), revision);
    cluster.all_have(&[0, 1, 2], "a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_changes_nothing_and_is_told() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    let revision = cluster.stores[leader].propose(make("a")).await.unwrap();
    let refused = cluster.stores[leader].propose(make("a")).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Conflict(conflict) if conflict.actual == revision));
    assert_eq!(cluster.stores[leader].state().revision(), revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_says_who_leads_and_a_transaction_too_large_is_refused() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    until("the follower knows", || cluster.stores[follower].role().borrow().leader.clone()).await;
    let refused = cluster.stores[follower].propose(make("a")).await.unwrap_err();
    assert!(matches!(refused, ProposeError::NotLeader { leader: Some(named) } if named.name == cluster.configs[leader].name));
    let refused = cluster.stores[leader].propose(make_large("a", TRANSACTION_BYTES_MAX)).await.unwrap_err();
    assert!(matches!(refused, ProposeError::TooLarge { bytes, limit } if bytes > limit));
    let almost = make_large("b", TRANSACTION_BYTES_MAX - 1024);
    soon("a large transaction", cluster.stores[leader].propose(almost)).await.unwrap();
    cluster.all_have(&[0, 1, 2], "b").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposals_at_once_are_all_made() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    let writers = (0..1000).map(|number| {
        let store = cluster.stores[leader].clone();
        tokio::spawn(async move { store.propose(make(&format!("{number:04}"))).await.unwrap() })
    });
    let mut revisions = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        revisions.push(soon("a write", writer).await.unwrap());
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 1000, "each has a revision of its own");
    assert_eq!(cluster.stores[leader].state().events().len(), 1000);
    assert!(cluster.disks[leader].writes() < 1000, "proposals share writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_asked_before_there_is_a_leader_are_answered() {
    let cluster = Stores::start(3);
    for store in &cluster.stores {
        soon("a read", store.read_barrier()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_s_read_sees_what_the_leader_has_answered() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    for number in 0..50 {
        let id = format!("{number:02}");
        cluster.stores[leader].propose(make(&id)).await.unwrap();
        let follower = &cluster.stores[(leader + 1 + number % 2) % 3];
        follower.read_barrier().await.unwrap();
        assert!(has(&follower.state(), &id), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_without_a_quorum_is_refused() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    cluster.network.cut(leader as u64 + 1);
    let refused = soon("an answer", cluster.stores[leader].read_barrier()).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Unavailable));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stops_hands_leadership_over() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    cluster.write(&[leader], &make("a")).await;
    until("the others are heard", || cluster.stores[leader].status().members.iter().all(|member| member.reachable).then_some(())).await;
    soon("the end", cluster.stores[leader].shutdown()).await;
    assert!(matches!(cluster.stores[leader].propose(make("b")).await, Err(ProposeError::ShuttingDown)));
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let term = cluster.stores[leader].role().borrow().term;
    let successor = cluster.leader_among(&others).await;
    assert!(cluster.stores[successor].role().borrow().term >= term);
    cluster.write(&others, &make("c")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_lags_too_far_is_sent_the_tables() {
    let mut cluster = Stores::start_tuned(3, |config| (config.snapshot_entries, config.trailing_entries) = (20, 5));
    let leader = cluster.leader().await;
    let (near, far) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.network.cut(far as u64 + 1);
    for number in 0..100 {
        cluster.stores[leader].propose(make(&format!("{number:03}"))).await.unwrap();
    }
    until("snapshots are kept", || (cluster.disks[leader].snapshot_index() > 60).then_some(())).await;
    assert!(cluster.disks[leader].entries_kept() < 60, "the log is compacted");
    cluster.network.heal();
    cluster.all_have(&[far], "099").await;
    assert!(cluster.network.snapshots() > 0);
    // What came by snapshot outlives a restart, and the log goes on from there.
    cluster.stores[far].shutdown().await;
    cluster.restart(far);
    cluster.write(&[leader, near, far], &make("after")).await;
    cluster.all_have(&[0, 1, 2], "after").await;
    assert_eq!(cluster.stores[far].state().events().len(), 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_whose_log_cannot_be_written_ends_and_the_others_go_on() {
    for failure in [Failure::Nothing, Failure::Everything] {
        let mut cluster = Stores::start(3);
        let leader = cluster.leader().await;
        cluster.stores[leader].propose(make("before")).await.unwrap();
        cluster.disks[leader].break_down(failure);
        let answer = cluster.stores[leader].propose(make("during")).await;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        until("the end is told", || cluster.fatal[leader].borrow().clone()).await;
        // Its followers may have had it all the same, so nobody can tell whether it was made.
        assert!(matches!(answer, Err(ProposeError::Unavailable)), "{answer:?}");
        cluster.write(&others, &make("after")).await;
        cluster.disks[leader].mend();
        cluster.restart(leader);
        cluster.all_have(&[0, 1, 2], "after").await;
        cluster.all_have(&[0, 1, 2], "before").await;
        let made: Vec<bool> = cluster.stores.iter().map(|store| has(&store.state(), "during")).collect();
        assert!(made.iter().all(|one| *one == made[0]), "{failure:?}: {made:?}");
    }
}
