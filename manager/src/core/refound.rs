//! A cluster that begins anew, with one manager and the state of one that is gone: restored from a backup, or recovered from one of its
//! managers.
//!
//! In: that state, how far it is known to have come, and who goes on with it. Out: the state that the new log begins with. Never: a number
//! that the cluster before may have used. Between the state and its end it may have gone on, nobody knows how far; agents and watchers have
//! seen that, and take what has a lower term or revision for old news. So all that rises goes on well above what can have been reached.

use rcluster_api::cluster::{Manager, ManagerRole};
use rcluster_api::error::ApiError;
use rcluster_api::id::ManagerId;
use rcluster_api::object::{Kind, Object, Stamp};

use super::plan::{Ctx, Note};
use super::state::{Change, State, Transaction};
use super::{allocate, members};

/// Revisions, terms and Raft ids that are left out at least: also a clock that is wrong by hours is covered.
const REVISIONS_MIN: u64 = 1 << 32;
const TERMS_MIN: u64 = 1 << 20;
const IDS_MIN: u64 = 1000;
/// Network identifiers, subnets and nodes' numbers that are left out: of fewer than twice as many the half.
const NUMBERS: u32 = 1000;
/// More of them than a cluster uses in a second; for each second since the state was current.
const REVISIONS_PER_SECOND: u64 = 1 << 16;
const TERMS_PER_SECOND: u64 = 16;
const IDS_PER_SECOND: u64 = 1;

/// How far a cluster had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// Raft's.
    pub index: u64,
    pub term: u64,
    /// When that was, Unix time.
    pub at_ms: u64,
}

/// The manager that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heir {
    /// Of one that the state knows, or a new one.
    pub id: ManagerId,
    pub name: String,
    pub addr: String,
    /// How long nodes may take to find it before they are taken for lost.
    pub await_nodes_ms: u64,
    /// What the event calls it.
    pub reason: &'static str,
}

/// What a cluster begins anew with.
#[derive(Debug, Clone)]
pub struct Refounded {
    /// Its revision is the index that the log goes on after.
    pub state: State,
    pub term: u64,
    pub manager: Manager,
    /// Those that are managers no more.
    pub dropped: Vec<Manager>,
}

/// The cluster of `state` with `heir` as its only manager.
pub fn refound(state: &State, reached: Reached, heir: Heir, ctx: &mut Ctx) -> Result<Refounded, ApiError> {
    let Reached { index, term, at_ms } = reached;
    let Heir { id, name, addr, await_nodes_ms, reason } = heir;
    let seconds = ctx.now_ms.saturating_sub(at_ms) / 1000;
    let above = |from: u64, least: u64, rate: u64| from.saturating_add(least).saturating_add(seconds.saturating_mul(rate));
    let revision = above(index.max(state.revision()), REVISIONS_MIN, REVISIONS_PER_SECOND);
    let mut cluster = members::cluster(state)?.clone();
    cluster.managers_made = above(cluster.managers_made, IDS_MIN, IDS_PER_SECOND);
    // Nodes may have pods, routes and marks still by what was given after the state.
    let networks = allocate::left_out(state, &mut cluster, NUMBERS);
    cluster.nodes_awaited_until_ms = ctx.now_ms.saturating_add(await_nodes_ms);
    let stamp = state.managers().get(&id).map(|manager| manager.stamp).unwrap_or_default();
    let manager = Manager { id, stamp, raft_id: cluster.managers_made, name, addr, role: ManagerRole::Voter };
    let mut dropped: Vec<Manager> =
        state.managers().values().filter(|other| other.id != manager.id).map(|other| Manager::clone(other)).collect();
    dropped.sort_by(|one, other| one.name.cmp(&other.name));
    let mut changes = Vec::new();
    for other in &dropped {
        // Its certificate may have been issued at the last moment before now.
        members::revoke(&mut cluster, other.id.as_str(), ctx.now_ms);
        changes.push(Change::Delete { expected: other.stamp.version, kind: Kind::Manager, id: other.id.to_string() });
    }
    let message = format!("goes on alone at revision {revision}; {} managers were dropped", dropped.len());
    let note = Note { kind: Kind::Manager, object_id: manager.id.to_string(), object: manager.name.clone(), reason, message };
    let put = |stamp: Stamp, object| Change::Put { expected: stamp.version, object };
    changes.push(put(manager.stamp, Object::Manager(manager.clone())));
    changes.push(put(cluster.stamp, Object::Cluster(Box::new(cluster))));
    changes.extend(networks.into_iter().map(|network| put(network.stamp, Object::Network(network))));
    changes.push(put(Stamp::default(), Object::Event(ctx.event(note))));
    // Agents hold secrets and configs by their versions, and perhaps one that the state does not know.
    changes.extend(state.data().values().map(|data| put(data.stamp, Object::Data((**data).clone()))));
    let mut state = state.clone();
    state.apply(revision, &Transaction { at_ms: ctx.now_ms, changes }).expect("the versions were read from the same state");
    Ok(Refounded { state, term: above(term, TERMS_MIN, TERMS_PER_SECOND), manager, dropped })
}

/// When an object of `state` was last written, Unix time.
pub fn latest_ms(state: &State) -> u64 {
    state.objects().map(|object| object.stamp().updated_at_ms).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rcluster_api::cluster::Cluster;
    use rcluster_api::network::AddressPool;
    use rcluster_api::object::Network;
    use rcluster_api::spec::NetworkSpec;

    use super::*;

    fn state() -> State {
        let manager = |id: u64| {
            let name = format!("m{id}");
            Object::Manager(Manager {
                id: name.as_str().into(),
                stamp: Stamp::default(),
                raft_id: id,
                addr: format!("{name}:1"),
                name,
                role: ManagerRole::Voter,
            })
        };
        let pool = |cidr: &str, cursor: u32| AddressPool { cidr: cidr.parse().unwrap(), prefix: 24, cursor };
        let cluster = Cluster {
            managers_made: 3,
            certificate_ttl_ms: 10_000,
            vni_cursor: 5000,
            node_numbers_made: 8000,
            pools: vec![pool("10.128.0.0/9", 7), pool("10.64.0.0/22", 3)],
            ..Cluster::default()
        };
        let spec = NetworkSpec { name: "lab".to_owned(), ..NetworkSpec::default() };
        let subnet = Some("10.128.7.0/24".parse().unwrap());
        let network = Network { vni: Some(4100), subnet, ip_cursor: 200, ..Network::new("lab".into(), spec) };
        let objects = [manager(1), manager(2), manager(3), Object::Cluster(Box::new(cluster)), Object::Network(network)];
        let changes = objects.into_iter().map(|object| Change::Put { expected: 0, object }).collect();
        let mut state = State::new("c".into());
        state.apply(5, &Transaction { at_ms: 1000, changes }).unwrap();
        state
    }

    fn heir(id: &str) -> Heir {
        Heir { id: id.into(), name: id.to_owned(), addr: "h:1".to_owned(), await_nodes_ms: 600, reason: "Restored" }
    }

    fn refounded(id: &str, now_ms: u64) -> Refounded {
        refound(&state(), Reached { index: 9, term: 4, at_ms: 2000 }, heir(id), &mut Ctx::new(now_ms, 1)).unwrap()
    }

    #[test]
    fn one_manager_is_left_and_the_others_are_revoked() {
        let Refounded { state, manager, dropped, .. } = refounded("m2", 2000);
        assert_eq!(state.managers().keys().map(ManagerId::as_str).collect::<Vec<_>>(), ["m2"]);
        assert_eq!((manager.raft_id, manager.addr.as_str()), (1003, "h:1"));
        assert_eq!(dropped.iter().map(|manager| manager.name.as_str()).collect::<Vec<_>>(), ["m1", "m3"]);
        let cluster = state.cluster().unwrap();
        assert_eq!(
            cluster.revocations.iter().map(|one| (one.id.as_str(), one.until_ms)).collect::<Vec<_>>(),
            [("m1", 12_000), ("m3", 12_000)]
        );
        assert_eq!((cluster.managers_made, cluster.nodes_awaited_until_ms), (1003, 2600));
        assert_eq!(refounded("new", 2000).dropped.len(), 3);
    }

    #[test]
    fn what_rises_goes_on_above_what_can_have_been_reached() {
        let first = refounded("m1", 2000);
        assert_eq!((first.state.revision(), first.term), (9 + REVISIONS_MIN, 4 + TERMS_MIN));
        // Of the same backup once more, a minute later: above what the first may have done meanwhile.
        let second = refounded("m1", 62_000);
        assert_eq!(second.state.revision() - first.state.revision(), 60 * REVISIONS_PER_SECOND);
        assert_eq!((second.term - first.term, second.manager.raft_id - first.manager.raft_id), (60 * TERMS_PER_SECOND, 60));
        // What was given after the backup is not given again at once, to another.
        let cluster = first.state.cluster().unwrap();
        let cursors: Vec<u32> = cluster.pools.iter().map(|pool| pool.cursor).collect();
        assert_eq!((cluster.vni_cursor, cluster.node_numbers_made, cursors), (6000, 809, vec![1007, 1]));
        assert_eq!(first.state.find_network("lab").unwrap().ip_cursor, 73);
        // A clock behind that of the backup.
        assert_eq!(refounded("m1", 1000).state.revision(), first.state.revision());
    }
}
