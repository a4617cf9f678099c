//! Leadership's fence: what a leader that is none any more has on its way is not written.

use std::time::Duration;

use rcluster_manager::store::{ProposeError, RoleKind};

use crate::promises::{has, make, soon, until};
use crate::stores::Stores;

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
