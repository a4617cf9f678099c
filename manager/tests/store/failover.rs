//! A leader that is cut off or dies.

use std::time::{Duration, Instant};

use rcluster_manager::store::{ProposeError, RoleKind};

use crate::world::{Stores, has, make, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_cut_off_is_replaced_and_its_pending_proposal_is_told_so() {
    let cluster = Stores::start(3);
    let old = cluster.leader().await;
    for number in 0..20 {
        cluster.stores[old].propose(make(&format!("{number:02}"))).await.unwrap();
    }
    let others = [(old + 1) % 3, (old + 2) % 3];
    cluster.network.cut(old as u64 + 1);
    let pending = tokio::spawn({
        let store = cluster.stores[old].clone();
        async move { store.propose(make("lost")).await }
    });
    let new = cluster.leader_among(&others).await;
    assert_eq!(cluster.stores[new].state().events().len(), 20, "who says that it leads has applied what was committed before");
    cluster.write(&others, &make("new")).await;
    let answer = soon("an answer", pending).await.unwrap();
    assert!(matches!(answer, Err(ProposeError::Unavailable)), "{answer:?}");
    until("the old leader steps down", || (cluster.stores[old].role().borrow().kind != RoleKind::Leader).then_some(())).await;
    assert!(!has(&cluster.stores[old].state(), "new"));
    cluster.network.heal();
    cluster.all_have(&[old], "new").await;
    assert!(cluster.stores.iter().all(|store| !has(&store.state(), "lost")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_comes_back_does_not_disturb_the_leader() {
    let cluster = Stores::start(3);
    let leader = cluster.leader().await;
    let term = cluster.stores[leader].role().borrow().term;
    let follower = (leader + 1) % 3;
    cluster.network.cut(follower as u64 + 1);
    until("it stands for election", || (cluster.stores[follower].role().borrow().kind == RoleKind::Candidate).then_some(())).await;
    cluster.write(&[leader], &make("meanwhile")).await;
    cluster.network.heal();
    cluster.all_have(&[follower], "meanwhile").await;
    assert_eq!(cluster.stores[leader].role().borrow().term, term);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_while_leaders_come_and_go() {
    let cluster = Stores::start(3);
    let mut made = Vec::new();
    for round in 0..4 {
        let leader = cluster.leader().await;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let writers: Vec<_> = (0..50)
            .map(|number| {
                let (store, id) = (cluster.stores[leader].clone(), format!("{round}-{number:02}"));
                tokio::spawn(async move { store.propose(make(&id)).await.is_ok().then_some(id) })
            })
            .collect();
        cluster.network.cut(leader as u64 + 1);
        for writer in writers {
            made.extend(soon("an answer", writer).await.unwrap());
        }
        let id = format!("{round}-new");
        cluster.write(&others, &make(&id)).await;
        made.push(id);
        cluster.network.heal();
    }
    for id in &made {
        cluster.all_have(&[0, 1, 2], id).await;
    }
    let count = |index: usize| cluster.stores[index].state().events().len();
    until("all alike", || (count(0) == count(1) && count(1) == count(2)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a claim: cargo test -p rcluster-manager --test store -- --ignored --nocapture failover"]
#[expect(clippy::print_stdout, reason = "a measurement says what it measured")]
async fn failover_times() {
    let mut times = Vec::new();
    for round in 0..30 {
        let cluster = Stores::start(3);
        let leader = cluster.leader().await;
        cluster.write(&[leader], &make("before")).await;
        // A random part of a heartbeat, so that the leader dies at any point of it.
        tokio::time::sleep(Duration::from_millis(200 + round * 37 % 100)).await;
        cluster.network.cut(leader as u64 + 1);
        let cut = Instant::now();
        cluster.write(&[(leader + 1) % 3, (leader + 2) % 3], &make("after")).await;
        times.push(cut.elapsed().as_millis());
        for store in &cluster.stores {
            store.shutdown().await;
        }
    }
    times.sort_unstable();
    println!("leader lost to write accepted, ms: p50 {} p90 {} max {} {times:?}", times[15], times[27], times[29]);
}
