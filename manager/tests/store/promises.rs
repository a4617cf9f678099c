//! What a store promises, whoever keeps its state.

use std::future::Future;
use std::time::Duration;

use futures::future::join_all;
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

/// Has `transaction`, which makes something, made by whoever leads: on a slow machine leadership may change at any time. Who led, and the
/// revision.
async fn write<'a>(stores: &'a [Store], transaction: &Transaction) -> (&'a Store, u64) {
    let attempt = async {
        loop {
            let leader = leader(stores).await;
            match leader.propose(transaction.clone()).await {
                Ok(revision) => return (leader, revision),
                // The attempt before has made it.
                Err(ProposeError::Conflict(conflict)) => return (leader, conflict.actual),
                Err(ProposeError::NotLeader { .. } | ProposeError::Unavailable) => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon("a write", attempt).await
}

/// A read of now, however long a slow machine takes for it.
async fn read(store: &Store) {
    let attempt = async {
        loop {
            match store.read_barrier().await {
                Ok(()) => return,
                Err(ProposeError::Unavailable) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    soon("a read", attempt).await;
}

pub async fn one_leads_and_all_know_it(stores: &[Store]) {
    let agreed = || {
        let leaders: Vec<&Store> = stores.iter().filter(|store| store.role().borrow().kind == RoleKind::Leader).collect();
        let [leader] = leaders.as_slice() else { return None };
        let status = leader.status();
        let knows = |store: &Store| store.role().borrow().leader.as_ref().is_some_and(|leader| leader.name == status.answered_by);
        (stores.iter().all(knows) && status.members.iter().all(|member| member.reachable)).then_some(())
    };
    until("one leads, all know it, and it hears all", agreed).await;
}

fn leader_status(stores: &[Store], name: &str) -> rcluster_manager::store::ClusterStatus {
    stores.iter().map(Store::status).find(|status| status.answered_by == name).unwrap()
}

pub async fn a_write_is_in_the_tables_when_it_is_answered_and_soon_everywhere(stores: &[Store]) {
    let (leader, revision) = write(stores, &make("a")).await;
    let state = leader.state();
    assert!(has(&state, "a") && state.revision() == revision);
    assert_eq!(*leader.revisions().borrow(), revision);
    assert_eq!(state.events()[&EventId::from("a")].stamp.version, revision);
    all_have(stores, "a").await;
}

pub async fn a_conflict_changes_nothing_and_is_told(stores: &[Store]) {
    let (leader, revision) = write(stores, &make("a")).await;
    let refused = leader.propose(make("a")).await.unwrap_err();
    assert!(matches!(&refused, ProposeError::Conflict(conflict) if conflict.actual == revision), "{refused}");
    assert_eq!(leader.state().revision(), revision);
}

pub async fn a_follower_says_who_leads_and_a_transaction_too_large_is_refused(stores: &[Store]) {
    let leader = leader(stores).await;
    let name = leader.status().answered_by;
    let follower = follower(stores, leader, 0);
    until("the follower knows", || follower.role().borrow().leader.clone().filter(|leader| leader.name == name)).await;
    let refused = follower.propose(make("a")).await.unwrap_err();
    assert!(matches!(&refused, ProposeError::NotLeader { leader: Some(named) } if named.name == name), "{refused}");
    let refused = leader.propose(make_large("a", TRANSACTION_BYTES_MAX)).await.unwrap_err();
    assert!(matches!(refused, ProposeError::TooLarge { bytes, limit } if bytes > limit));
    write(stores, &make_large("b", TRANSACTION_BYTES_MAX - 1024)).await;
    all_have(stores, "b").await;
}

pub async fn many_proposals_at_once_are_all_made(stores: &[Store]) {
    let leader = leader(stores).await;
    let before = leader.state().revision();
    let transactions: Vec<Transaction> = (0..1000).map(|number| make(&format!("{number:04}"))).collect();
    let written = join_all(transactions.iter().map(|transaction| write(stores, transaction))).await;
    let mut revisions: Vec<u64> = written.into_iter().map(|(_, revision)| revision).collect();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 1000, "each has a revision of its own");
    assert!(revisions[0] > before);
    until("all are there", || stores.iter().all(|store| store.state().events().len() == 1000).then_some(())).await;
}

pub async fn reads_asked_before_there_is_a_leader_are_answered(stores: &[Store]) {
    for store in stores {
        // Asked once, and not again when the answer takes its time: it is not lost.
        soon("a read", store.ask_read().unwrap()).await.unwrap();
    }
}

pub async fn a_follower_s_read_sees_what_the_leader_has_answered(stores: &[Store]) {
    for number in 0..50 {
        let id = format!("{number:02}");
        let (leader, _) = write(stores, &make(&id)).await;
        let follower = follower(stores, leader, number);
        read(follower).await;
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
