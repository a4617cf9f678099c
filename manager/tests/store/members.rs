//! Managers that come and go.

use std::collections::BTreeSet;
use std::time::Duration;

use rcluster_api::cluster::Manager;
use rcluster_api::object::{Kind, Object};
use rcluster_manager::core::state::{Change, Transaction};
use rcluster_manager::store::{MemberChange, RoleKind, Standing};

use crate::world::{Stores, make, manager, member, soon, until};

/// The managers' objects first, then Raft's configuration, as the keeper does it.
async fn add(stores: &mut Stores, indices: &[usize], id: u64) -> usize {
    let mut cluster = (**stores.stores[indices[0]].state().cluster().unwrap()).clone();
    let expected = cluster.stamp.version;
    cluster.managers_made = cluster.managers_made.max(id);
    let changes = vec![
        Change::Put { expected: 0, object: Object::Manager(manager(&member(id))) },
        Change::Put { expected, object: Object::Cluster(Box::new(cluster)) },
    ];
    stores.write(indices, &Transaction { at_ms: 1, changes }).await;
    let joined = stores.join(id);
    change(stores, indices, MemberChange::Learner(id)).await;
    until("it has the tables", || stores.stores[joined].state().managers().len().ge(&2).then_some(())).await;
    joined
}

async fn change(stores: &Stores, indices: &[usize], change: MemberChange) {
    let done = |voters: &BTreeSet<u64>, learners: &BTreeSet<u64>| match change {
        MemberChange::Learner(id) => learners.contains(&id) && !voters.contains(&id),
        MemberChange::Voter(id) => voters.contains(&id),
        MemberChange::Remove(id) => !voters.contains(&id) && !learners.contains(&id),
    };
    let leader = stores.leader_among(indices).await;
    stores.stores[leader].change_members(vec![change]).await.unwrap();
    until("the change is made", || {
        let configuration = stores.stores[leader].status().configuration;
        (!configuration.joint && done(&configuration.voters, &configuration.learners)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_manager_becomes_three_and_one_of_them_again() {
    let mut stores = Stores::start(1);
    stores.write(&[0], &make("before")).await;
    for id in [2, 3] {
        let joined = add(&mut stores, &[0], id).await;
        stores.all_have(&[joined], "before").await;
        assert_eq!(stores.stores[joined].role().borrow().kind, RoleKind::Follower);
        change(&stores, &[0], MemberChange::Voter(id)).await;
    }
    stores.write(&[0, 1, 2], &make("three")).await;
    stores.all_have(&[0, 1, 2], "three").await;
    // Two of three go on without the first.
    stores.network.cut(1);
    stores.write(&[1, 2], &make("without")).await;
    stores.network.heal();
    stores.all_have(&[0], "without").await;
    let leader = stores.leader().await;
    for index in (0..3).filter(|index| *index != leader) {
        let id = index as u64 + 1;
        change(&stores, &[leader], MemberChange::Learner(id)).await;
        change(&stores, &[leader], MemberChange::Remove(id)).await;
    }
    stores.write(&[leader], &make("alone")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_changes_are_one_joint_change() {
    let mut stores = Stores::start(3);
    let all = [0, 1, 2];
    stores.leader().await;
    add(&mut stores, &all, 4).await;
    let leader = stores.leader_among(&all).await;
    let leaving = (leader as u64 + 1) % 3 + 1;
    let changes = vec![MemberChange::Voter(4), MemberChange::Learner(leaving)];
    stores.stores[leader].change_members(changes).await.unwrap();
    until("both are made", || {
        let configuration = stores.stores[leader].status().configuration;
        (!configuration.joint && configuration.voters.contains(&4) && configuration.learners.contains(&leaving)).then_some(())
    })
    .await;
    stores.write(&[0, 1, 2, 3], &make("after")).await;
    stores.all_have(&[0, 1, 2, 3], "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_was_removed_hears_of_it_and_ends() {
    let stores = Stores::start(3);
    let leader = stores.leader().await;
    let gone = (leader + 1) % 3;
    let id = gone as u64 + 1;
    stores.write(&[leader], &make("before")).await;
    let expected = stores.stores[leader].state().version(Kind::Manager, &format!("m{id}"));
    let changes = vec![Change::Delete { expected, kind: Kind::Manager, id: format!("m{id}") }];
    stores.write(&[leader], &Transaction { at_ms: 1, changes }).await;
    assert_eq!(stores.network.inbound(leader as u64 + 1).standing(id), Standing::Removed);
    assert_eq!(stores.network.inbound(leader as u64 + 1).standing(99), Standing::Unknown);
    change(&stores, &[leader], MemberChange::Learner(id)).await;
    change(&stores, &[leader], MemberChange::Remove(id)).await;
    // Whoever refuses its messages says why; the wire of this test is told by hand.
    stores.network.inbound(id).removed();
    let fatal = until("it ends", || stores.fatal[gone].borrow().clone()).await;
    assert!(fatal.contains("removed from its cluster"), "{fatal}");
    let others: Vec<usize> = (0..3).filter(|index| *index != gone).collect();
    stores.write(&others, &make("after")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_meets_another_is_dropped_and_can_be_made_again() {
    let mut stores = Stores::start(1);
    stores.leader().await;
    add(&mut stores, &[0], 2).await;
    add(&mut stores, &[0], 3).await;
    let both = [MemberChange::Voter(2), MemberChange::Voter(3)];
    for one in both {
        // Raft takes the second and makes an empty entry of it.
        drop(soon("an answer", stores.stores[0].change_members(vec![one])).await);
    }
    until("one at least", || (stores.stores[0].status().configuration.voters.len() > 1).then_some(())).await;
    for one in both {
        let MemberChange::Voter(id) = one else { panic!("both are voters") };
        let votes = async {
            while let leader = stores.leader().await
                && !stores.stores[leader].status().configuration.voters.contains(&id)
            {
                drop(stores.stores[leader].change_members(vec![one]).await);
            }
        };
        soon("it votes", votes).await;
    }
    stores.write(&[0, 1, 2], &make("after")).await;
}

/// Has the store at `to` lead.
async fn hand_over(stores: &Stores, indices: &[usize], to: usize) {
    let handed = async {
        loop {
            let leader = stores.leader_among(indices).await;
            if leader == to {
                return;
            }
            stores.stores[leader].transfer_leadership(to as u64 + 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("it leads", handed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_away_believes_a_leader_that_has_joined_meanwhile() {
    let mut stores = Stores::start(3);
    stores.write(&[0, 1, 2], &make("before")).await;
    stores.all_have(&[0, 1, 2], "before").await;
    stores.network.cut(3);
    let joined = add(&mut stores, &[0, 1], 4).await;
    change(&stores, &[0, 1], MemberChange::Voter(4)).await;
    hand_over(&stores, &[0, 1, 3], joined).await;
    assert_eq!(stores.network.inbound(3).standing(4), Standing::Unknown);
    stores.network.heal();
    stores.all_have(&[2], "before").await;
    stores.write(&[joined], &make("after")).await;
    stores.all_have(&[2], "after").await;
    assert_eq!(stores.stores[joined].role().borrow().kind, RoleKind::Leader, "another has led meanwhile");
    until("it knows it from the tables", || (stores.network.inbound(3).standing(4) == Standing::Member).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_away_answers_a_leader_where_that_has_moved_to() {
    let stores = Stores::start(3);
    stores.write(&[0, 1, 2], &make("before")).await;
    stores.all_have(&[0, 1, 2], "before").await;
    hand_over(&stores, &[0, 1, 2], 0).await;
    stores.network.cut(3);
    let expected = stores.stores[0].state().version(Kind::Manager, "m1");
    let moved = Manager { addr: "127.0.0.1:20001".to_owned(), ..manager(&member(1)) };
    let changes = vec![Change::Put { expected, object: Object::Manager(moved) }];
    stores.write(&[0], &Transaction { at_ms: 1, changes }).await;
    stores.network.move_to(1, "127.0.0.1:20001");
    stores.write(&[0], &make("after")).await;
    stores.network.heal();
    stores.all_have(&[2], "after").await;
    assert_eq!(stores.stores[0].role().borrow().kind, RoleKind::Leader, "another has led meanwhile");
}
