//! What a store promises, whoever keeps its state.

use std::future::Future;
use std::time::Duration;

use rcluster_api::id::EventId;
use rcluster_api::object::{Event, Object};
use rcluster_manager::core::state::{Change, State, Transaction};
use rcluster_manager::store::{ProposeError, RoleKind, Store, TRANSACTION_BYTES_MAX};

/// Longest wait for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `seen` says so.
pub async fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(value) = seen() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// What `future` yields before the deadline.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// A transaction that makes an event called `id`, which must not exist.
pub fn make(id: &str) -> Transaction {
    make_large(id, 0)
}

/// Like [`make`], with a message of so many bytes.
pub fn make_large(id: &str, bytes: usize) -> Transaction {
    let event = Event {
        id: id.into(),
        stamp: Default::default(),
        kind: "test".to_owned(),
        object_id: String::new(),
        object: String::new(),
        reason: "Made".to_owned(),
        message: "x".repeat(bytes),
    };
    Transaction { at_ms: 1, changes: vec![Change::Put { expected: 0, object: Object::Event(event) }] }
}

/// Whether the event called `id` is in the tables.
pub fn has(state: &State, id: &str) -> bool {
    state.events().contains_key(&EventId::from(id))
}

/// The store that leads.
pub async fn leader(stores: &[Store]) -> &Store {
    let leads = |store: &&Store| store.role().borrow().kind == RoleKind::Leader;
    until("a leader", || stores.iter().find(leads)).await
}

/// One of those that do not lead.
fn follower<'a>(stores: &'a [Store], leader: &Store, number: usize) -> &'a Store {
    let name = leader.status().answered_by;
    let others: Vec<&Store> = stores.iter().filter(|store| store.status().answered_by != name).collect();
    others[number % others.len()]
}

async fn all_have(stores: &[Store], id: &str) {
    until(id, || stores.iter().all(|store| has(&store.state(), id)).then_some(())).await;
}

pub async fn one_leads_and_all_know_it(stores: &[Store]) {
    let name = leader(stores).await.status().answered_by;
    for store in stores {
        until("the leader's name", || store.role().borrow().leader.clone().filter(|leader| leader.name == name)).await;
    }
    assert_eq!(stores.iter().filter(|store| store.role().borrow().kind == RoleKind::Leader).count(), 1);
    let reachable = || leader_status(stores, &name).members.iter().all(|member| member.reachable);
    until("every member is reachable", || reachable().then_some(())).await;
}

fn leader_status(stores: &[Store], name: &str) -> rcluster_manager::store::ClusterStatus {
    stores.iter().map(Store::status).find(|status| status.answered_by == name).unwrap()
}

pub async fn a_write_is_in_the_tables_when_it_is_answered_and_soon_everywhere(stores: &[Store]) {
    let leader = leader(stores).await;
    let revision = leader.propose(make("a")).await.unwrap();
    let state = leader.state();
    assert!(has(&state, "a") && state.revision() == revision);
    assert_eq!(*leader.revisions().borrow(), revision);
    assert_eq!(state.events()[&EventId::from("a")].stamp.version, revision);
    all_have(stores, "a").await;
}

pub async fn a_conflict_changes_nothing_and_is_told(stores: &[Store]) {
    let leader = leader(stores).await;
    let revision = leader.propose(make("a")).await.unwrap();
    let refused = leader.propose(make("a")).await.unwrap_err();
    assert!(matches!(refused, ProposeError::Conflict(conflict) if conflict.actual == revision));
    assert_eq!(leader.state().revision(), revision);
}

pub async fn a_follower_says_who_leads_and_a_transaction_too_large_is_refused(stores: &[Store]) {
    let leader = leader(stores).await;
    let name = leader.status().answered_by;
    let follower = follower(stores, leader, 0);
    until("the follower knows", || follower.role().borrow().leader.clone()).await;
    let refused = follower.propose(make("a")).await.unwrap_err();
    assert!(matches!(refused, ProposeError::NotLeader { leader: Some(named) } if named.name == name));
    let refused = leader.propose(make_large("a", TRANSACTION_BYTES_MAX)).await.unwrap_err();
    assert!(matches!(refused, ProposeError::TooLarge { bytes, limit } if bytes > limit));
    let almost = make_large("b", TRANSACTION_BYTES_MAX - 1024);
    soon("a large transaction", leader.propose(almost)).await.unwrap();
    all_have(stores, "b").await;
}

pub async fn many_proposals_at_once_are_all_made(stores: &[Store]) {
    let leader = leader(stores).await;
    let before = leader.state().revision();
    let writers = (0..1000).map(|number| {
        let store = leader.clone();
        tokio::spawn(async move { store.propose(make(&format!("{number:04}"))).await.unwrap() })
    });
    let mut revisions = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        revisions.push(soon("a write", writer).await.unwrap());
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 1000, "each has a revision of its own");
    assert!(revisions[0] > before);
    assert_eq!(leader.state().events().len(), 1000);
}

pub async fn reads_asked_before_there_is_a_leader_are_answered(stores: &[Store]) {
    for store in stores {
        soon("a read", store.read_barrier()).await.unwrap();
    }
}

pub async fn a_follower_s_read_sees_what_the_leader_has_answered(stores: &[Store]) {
    let leader = leader(stores).await;
    for number in 0..50 {
        let id = format!("{number:02}");
        leader.propose(make(&id)).await.unwrap();
        let follower = follower(stores, leader, number);
        follower.read_barrier().await.unwrap();
        assert!(has(&follower.state(), &id), "{id}");
    }
}

/// To stores that do not take over by themselves within [`DEADLINE`] when a leader falls silent.
pub async fn a_store_that_stops_hands_leadership_over(stores: &[Store]) {
    let first = leader(stores).await;
    first.propose(make("a")).await.unwrap();
    let name = first.status().answered_by;
    until("the others are heard", || leader_status(stores, &name).members.iter().all(|member| member.reachable).then_some(())).await;
    let term = first.role().borrow().term;
    soon("the end", first.shutdown()).await;
    assert!(matches!(first.propose(make("b")).await, Err(ProposeError::ShuttingDown)));
    let others: Vec<Store> = stores.iter().filter(|store| store.status().answered_by != name).cloned().collect();
    let successor = leader(&others).await;
    assert!(successor.role().borrow().term > term);
    successor.propose(make("c")).await.unwrap();
}
