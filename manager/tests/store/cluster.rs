//! What a store promises while its network and its disk do as they should, or not.

use rcluster_manager::store::ProposeError;

use crate::disk::Failure;
use crate::promises;
use crate::world::{Stores, has, make, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_all_know_it() {
    let cluster = Stores::start(3);
    promises::one_leads_and_all_know_it(&cluster.stores).await;
    let leader = cluster.leader().await;
    let caught_up = || cluster.stores[leader].status().members.iter().all(|member| member.matched > 1);
    until("every member caught up", || caught_up().then_some(())).await;
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
    promises::a_write_is_in_the_tables_when_it_is_answered_and_soon_everywhere(&Stores::start(3).stores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_changes_nothing_and_is_told() {
    promises::a_conflict_changes_nothing_and_is_told(&Stores::start(3).stores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_says_who_leads_and_a_transaction_too_large_is_refused() {
    promises::a_follower_says_who_leads_and_a_transaction_too_large_is_refused(&Stores::start(3).stores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_proposals_at_once_are_all_made() {
    let cluster = Stores::start(3);
    promises::many_proposals_at_once_are_all_made(&cluster.stores).await;
    assert!(cluster.disks[cluster.leader().await].writes() < 1000, "proposals share writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_asked_before_there_is_a_leader_are_answered() {
    promises::reads_asked_before_there_is_a_leader_are_answered(&Stores::start(3).stores).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_s_read_sees_what_the_leader_has_answered() {
    promises::a_follower_s_read_sees_what_the_leader_has_answered(&Stores::start(3).stores).await;
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
    // Nobody stands for election by itself before the test would be over.
    let cluster = Stores::start_tuned(3, |config| config.timing.election = 8_000);
    cluster.network.have_stand(1);
    promises::a_store_that_stops_hands_leadership_over(&cluster.stores).await;
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
