//! Streams of changes: the difference between one revision's tables and the next's, so that nothing is missed however slow the reader.

use std::collections::BTreeSet;
use std::sync::Arc;

use imbl::ordmap::{DiffItem, OrdMap};
use rcluster_api::data::{Data, DataKind};
use rcluster_api::id::DataId;
use rcluster_api::object::{Kind, Object};
use rcluster_api::wire::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::control::Answers;
use crate::core::state::State;
use crate::drive::Term;
use crate::store::Store;

/// The objects of `kinds` (none given: all) as they are, then every change, until the term ends.
pub fn stream(store: Store, term: &Term, kinds: Vec<Kind>) -> Answers<v1::WatchResponse> {
    let (sender, receiver) = mpsc::channel(4);
    let kinds: BTreeSet<Kind> = kinds.into_iter().collect();
    let ended = term.ended.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = follow(store, kinds, sender.clone()) => {}
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

async fn follow(store: Store, kinds: BTreeSet<Kind>, sender: mpsc::Sender<Result<v1::WatchResponse, Status>>) {
    let mut revisions = store.revisions();
    let mut seen = State::default();
    let mut synced = false;
    loop {
        revisions.borrow_and_update();
        let state = store.state();
        let mut response = difference(&seen, &state, &kinds);
        if !synced || !response.puts.is_empty() || !response.deletes.is_empty() {
            response.synced = !synced;
            synced = true;
            if sender.send(Ok(response)).await.is_err() {
                return;
            }
        }
        seen = state;
        tokio::select! {
            changed = revisions.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
    }
}

/// What changed from `old` to `new`.
fn difference(old: &State, new: &State, kinds: &BTreeSet<Kind>) -> v1::WatchResponse {
    let mut response = v1::WatchResponse { revision: new.revision(), ..v1::WatchResponse::default() };
    let wanted = |kind| kinds.is_empty() || kinds.contains(&kind);
    if wanted(Kind::Service) {
        gather(old.services(), new.services(), Kind::Service, &mut response, |object| Object::Service((**object).clone()));
    }
    if wanted(Kind::Network) {
        gather(old.networks(), new.networks(), Kind::Network, &mut response, |object| Object::Network((**object).clone()));
    }
    if wanted(Kind::Node) {
        gather(old.nodes(), new.nodes(), Kind::Node, &mut response, |object| Object::Node((**object).clone()));
    }
    if wanted(Kind::Task) {
        gather(old.tasks(), new.tasks(), Kind::Task, &mut response, |object| Object::Task(Box::new((**object).clone())));
    }
    if wanted(Kind::Event) {
        gather(old.events(), new.events(), Kind::Event, &mut response, |object| Object::Event((**object).clone()));
    }
    if wanted(Kind::Manager) {
        gather(old.managers(), new.managers(), Kind::Manager, &mut response, |object| Object::Manager((**object).clone()));
    }
    if wanted(Kind::User) {
        gather(old.users(), new.users(), Kind::User, &mut response, |object| Object::User((**object).clone()));
    }
    for kind in [DataKind::Secret, DataKind::Config].into_iter().filter(|kind| wanted(kind.object_kind())) {
        let of_kind = |item: &DiffItem<'_, '_, DataId, Arc<Data>>| match item {
            DiffItem::Add(_, data) | DiffItem::Remove(_, data) | DiffItem::Update { new: (_, data), .. } => data.spec.kind == kind,
        };
        for item in old.data().diff(new.data()).filter(of_kind) {
            tell(item, kind.object_kind(), &mut response, |data| Object::Data(data.listed()));
        }
    }
    response
}

fn gather<K: Ord + Clone + ToString, V: PartialEq + Clone>(
    old: &OrdMap<K, V>,
    new: &OrdMap<K, V>,
    kind: Kind,
    response: &mut v1::WatchResponse,
    object: impl Fn(&V) -> Object,
) {
    for item in old.diff(new) {
        tell(item, kind, response, &object);
    }
}

fn tell<K: ToString, V>(item: DiffItem<'_, '_, K, V>, kind: Kind, response: &mut v1::WatchResponse, object: impl Fn(&V) -> Object) {
    match item {
        DiffItem::Add(_, value) | DiffItem::Update { new: (_, value), .. } => response.puts.push(object(value).into()),
        DiffItem::Remove(id, _) => response.deletes.push(v1::Ref { kind: v1::Kind::from(kind).into(), name: id.to_string() }),
    }
}
