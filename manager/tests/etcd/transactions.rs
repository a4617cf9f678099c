//! Leadership's fence: what a leader that is none any more has on its way is not written.

use std::time::Duration;

use rcluster_manager::store::{ProposeError, RoleKind};

use crate::promises::{has, make, soon, until};
use crate::stores::{Stores, begin, config, give_up};

/// An operator, or the end of the lease, takes the leader's key away while proposals come in all the time.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_is_there_whoever_leads() {
    let cluster = Stores::start(3).await;
    cluster.leader().await;
    let mut client = cluster.server.client().await;
    let writers = cluster.stores().into_iter().enumerate().map(|(index, store)| {
        tokio::spawn(async move {
            let mut made = Vec::new();
            for number in 0..400 {
                let id = format!("{index}-{number:03}");
                match store.propose(make(&id)).await {
                    Ok(revision) => made.push((revision, id)),
                    Err(ProposeError::Unavailable | ProposeError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(error) => panic!("{error}"),
                }
            }
            made
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut terms = Vec::new();
    for _ in 0..4 {
        let leader = cluster.leader().await;
        let term = cluster.store(leader).role().borrow().term;
        terms.push(term);
        client.delete("/test/cluster/live/leader", None).await.unwrap();
        let risen = || {
            cluster.stores().iter().any(|store| {
                let role = store.role().borrow().clone();
                role.kind == RoleKind::Leader && role.term > term
            })
        };
        until("a later term", || risen().then_some(())).await;
    }
    let mut all = Vec::new();
    for writer in writers {
        all.extend(soon("a writer", writer).await.unwrap());
    }
    for store in cluster.stores() {
        soon("a read", store.read_barrier()).await.unwrap();
        let state = store.state();
        assert!(all.iter().all(|(_, id)| has(&state, id)), "everything that was answered is there");
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup_by_key(|(revision, _)| *revision);
    assert_eq!(all.len(), count, "each has a revision of its own");
    assert!(terms.is_sorted() && count > 0);
}

/// A leader that stood still, for less than its lease, writes before it hears that another leads: its runtime has one thread, which only
/// this test lets run, and a proposal wakes the store before the network can.
#[test]
fn a_leader_that_has_not_heard_of_its_end_writes_nothing() {
    let here = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let still = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cluster = here.block_on(Stores::start(2));
    // The one that does not lead ends, and runs again where it can be made to stand still.
    let other = here.block_on(cluster.leader());
    let own = 2 - other as u64;
    here.block_on(cluster.store(1 - other).shutdown());
    let stale = still.block_on(begin(config(own), &cluster.server.access())).unwrap();
    still.block_on(give_up(cluster.store(other), own, &stale.store));
    here.block_on(async {
        let mut client = cluster.server.client().await;
        client.delete("/test/cluster/live/leader", None).await.unwrap();
        cluster.leader_among(&[other]).await;
    });
    assert_eq!(stale.store.role().borrow().kind, RoleKind::Leader, "it has heard nothing");
    let answer = still.block_on(soon("an answer", stale.store.propose(make("stale"))));
    assert!(matches!(answer, Err(ProposeError::Unavailable | ProposeError::NotLeader { .. })), "{answer:?}");
    here.block_on(async {
        cluster.write(&[other], &make("after")).await;
        cluster.store(other).read_barrier().await.unwrap();
        assert!(!has(&cluster.store(other).state(), "stale"));
    });
}
