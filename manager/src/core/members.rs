//! Who is a manager: what users and joiners may change of it, and the next step that brings Raft's configuration to what the objects say.
//!
//! In: the state, and what the leader knows of the managers' connections and logs. Out: objects to write, or a step for Raft, or a refusal
//! with its arithmetic. Never: a step that loses the quorum of those that are reachable.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::cluster::{Cluster, Manager, ManagerRole, Revocation};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::ManagerId;
use rcluster_api::object::{Kind, Object, Stamp};
use rcluster_api::validate;

use super::plan::{ChangeSet, Ctx, Note};
use super::state::State;

/// A learner that is this close to the end of the log may vote.
const LAG_MAX: u64 = 200;
/// More managers make writes slower and nothing safer.
pub const MANAGERS_MAX: usize = 9;

/// What the leader knows of the managers, by Raft id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    pub own: u64,
    pub voters: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
    /// Between two configurations.
    pub joint: bool,
    /// Heard lately; the leader itself among them.
    pub reachable: BTreeSet<u64>,
    /// Last log index known to be on each.
    pub matched: BTreeMap<u64, u64>,
    /// Last index of the leader's log.
    pub last: u64,
    /// The state is in an external store: managers do not vote, and any one of them can lead.
    pub external: bool,
}

/// What Raft is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All of these at once.
    Change { learners: Vec<u64>, voters: Vec<u64>, removed: Vec<u64> },
    /// The leader is to go, or not to vote: another leads first.
    HandOver(u64),
}

/// The next step towards what `managers` are to be; `None` when there is nothing to do, or it has to wait.
pub fn next<'a>(managers: impl Iterator<Item = &'a Manager>, standing: &Standing) -> Option<Step> {
    if standing.joint {
        return None;
    }
    let stay = managers.filter(|manager| manager.role != ManagerRole::Leaving);
    let wanted: BTreeMap<u64, ManagerRole> = stay.map(|manager| (manager.raft_id, manager.role)).collect();
    let is_voter = |id: &u64| standing.voters.contains(id);
    let is_learner = |id: &u64| standing.learners.contains(id);
    // One that has nothing yet has not caught up, however short the log is.
    let has_most = |matched: &u64| *matched > 0 && matched + LAG_MAX >= standing.last;
    let caught_up = |id: &u64| standing.reachable.contains(id) && standing.matched.get(id).is_some_and(has_most);
    let stays = |id: &u64| wanted.get(id) == Some(&ManagerRole::Voter);
    let mut learners: Vec<u64> = wanted.keys().filter(|id| !is_voter(id) && !is_learner(id)).copied().collect();
    let voters: Vec<u64> = wanted.keys().filter(|id| stays(id) && is_learner(id) && caught_up(id)).copied().collect();
    // A voter that goes becomes one that does not vote first; not as long as those who would be left are too few, whatever was true when
    // it was told to go.
    let left: BTreeSet<u64> = standing.voters.iter().filter(|id| stays(id)).chain(&voters).copied().collect();
    if left.intersection(&standing.reachable).count() > left.len() / 2 {
        learners.extend(standing.voters.iter().filter(|id| !stays(id)));
    }
    let removed: Vec<u64> = standing.learners.iter().filter(|id| !wanted.contains_key(id)).copied().collect();
    if learners.contains(&standing.own) || is_learner(&standing.own) {
        let heirs = standing.voters.iter().filter(|id| **id != standing.own && stays(id) && standing.reachable.contains(id));
        if let Some(heir) = heirs.max_by_key(|id| standing.matched.get(id).copied().unwrap_or_default()) {
            return Some(Step::HandOver(*heir));
        }
        // Nobody can lead in its place: it stays, and the rest goes on.
        learners.retain(|id| *id != standing.own);
    }
    let nothing = learners.is_empty() && voters.is_empty() && removed.is_empty();
    (!nothing).then_some(Step::Change { learners, voters, removed })
}

/// Refuses when the quorum would be lost without `going`. Voters that are to go themselves do not count any more.
fn check_quorum(state: &State, standing: &Standing, going: &Manager, deed: &str) -> Result<(), ApiError> {
    let staying = state.managers().values().filter(|manager| manager.role == ManagerRole::Voter && manager.raft_id != going.raft_id);
    let rest: BTreeSet<u64> = staying.map(|manager| manager.raft_id).filter(|id| standing.voters.contains(id)).collect();
    if !standing.voters.contains(&going.raft_id) {
        return Ok(());
    }
    let name = &going.name;
    if rest.is_empty() {
        return Err(ApiError::new(ErrorCode::Conflict, format!("{deed} {name} leaves no manager that votes"))
            .hint("join or promote another manager first"));
    }
    if standing.external {
        return Ok(());
    }
    let reachable = rest.intersection(&standing.reachable).count();
    let needed = rest.len() / 2 + 1;
    if reachable >= needed {
        return Ok(());
    }
    let silent: Vec<&str> = state
        .managers()
        .values()
        .filter(|manager| rest.contains(&manager.raft_id) && !standing.reachable.contains(&manager.raft_id))
        .map(|manager| manager.name.as_str())
        .collect();
    let voters = rest.len();
    let message = format!("{deed} {name} leaves {reachable} of {voters} voters reachable; quorum needs {needed}, and would be lost");
    Err(ApiError::new(ErrorCode::Conflict, message).hint(format!("bring back or remove {} first", silent.join(", "))))
}

fn find<'a>(state: &'a State, name: &str) -> Result<&'a Manager, ApiError> {
    state.find_manager(name).map(AsRef::as_ref).ok_or_else(|| {
        ApiError::new(ErrorCode::NotFound, format!("there is no manager {name}")).hint("`rclusterctl cluster status` lists them")
    })
}

fn note(manager: &Manager, reason: &'static str, message: String) -> Note {
    Note { kind: Kind::Manager, object_id: manager.id.to_string(), object: manager.name.clone(), reason, message }
}

/// The cluster's own object.
pub fn cluster(state: &State) -> Result<&Cluster, ApiError> {
    state.cluster().map(AsRef::as_ref).ok_or_else(|| ApiError::new(ErrorCode::Internal, "the state has no cluster"))
}

/// A manager that joins. One of the same name at the same address that cannot be reached is replaced: its disk was lost.
pub fn add(state: &State, name: &str, addr: &str, standing: &Standing, ctx: &mut Ctx) -> Result<(ChangeSet, Manager), ApiError> {
    validate::check_name("manager", name)?;
    validate::check_address(addr)?;
    let mut changes = ChangeSet::default();
    let mut cluster = cluster(state)?.clone();
    let staying = || state.managers().values().filter(|other| other.role != ManagerRole::Leaving);
    for other in staying() {
        if other.name != name && other.addr != addr {
            continue;
        }
        let silent = other.raft_id != standing.own && !standing.reachable.contains(&other.raft_id);
        if !silent || other.name != name {
            let taken = if other.name == name { format!("name {name}") } else { format!("address {addr}") };
            return Err(ApiError::new(ErrorCode::Conflict, format!("manager {} at {} has the {taken}", other.name, other.addr))
                .hint(format!("choose another, or remove it first: rclusterctl node rm {}", other.name)));
        }
        check_quorum(state, standing, other, "replacing")?;
        changes.puts.push(Object::Manager(Manager { role: ManagerRole::Leaving, ..(**other).clone() }));
        changes.notes.push(note(other, "Replaced", format!("a new manager of this name joins at {addr}")));
    }
    if staying().count() - changes.puts.len() >= MANAGERS_MAX {
        return Err(ApiError::new(ErrorCode::Conflict, format!("the cluster has {MANAGERS_MAX} managers; more only slow writes down")));
    }
    cluster.managers_made += 1;
    let manager = Manager {
        id: ManagerId::random(&mut ctx.rng),
        stamp: Stamp::default(),
        raft_id: cluster.managers_made,
        name: name.to_owned(),
        addr: addr.to_owned(),
        role: ManagerRole::Voter,
    };
    changes.notes.push(note(&manager, "Joined", format!("at {addr}")));
    changes.puts.extend([Object::Manager(manager.clone()), Object::Cluster(Box::new(cluster))]);
    Ok((changes, manager))
}

/// A manager that is to go.
pub fn remove(state: &State, name: &str, standing: &Standing) -> Result<ChangeSet, ApiError> {
    let manager = find(state, name)?;
    let mut changes = ChangeSet::default();
    if manager.role != ManagerRole::Leaving {
        check_quorum(state, standing, manager, "removing")?;
        changes.notes.push(note(manager, "Removing", "by a user".to_owned()));
        changes.puts.push(Object::Manager(Manager { role: ManagerRole::Leaving, ..manager.clone() }));
    }
    Ok(changes)
}

/// Forgets those that leave and are not in Raft's configuration any more; their certificates are no longer taken from now on.
pub fn forget(state: &State, standing: &Standing, now_ms: u64) -> Result<ChangeSet, ApiError> {
    let mut changes = ChangeSet::default();
    let gone: Vec<&Manager> = departed(state.managers().values().map(AsRef::as_ref), standing).collect();
    if gone.is_empty() {
        return Ok(changes);
    }
    let mut cluster = cluster(state)?.clone();
    for manager in gone {
        changes.deletes.push((Kind::Manager, manager.id.to_string()));
        revoke(&mut cluster, manager.id.as_str(), now_ms);
        changes.notes.push(note(manager, "Removed", format!("was at {}", manager.addr)));
    }
    changes.puts.push(Object::Cluster(Box::new(cluster)));
    Ok(changes)
}

/// Those that leave and are not in Raft's configuration any more.
pub fn departed<'a>(managers: impl Iterator<Item = &'a Manager>, standing: &Standing) -> impl Iterator<Item = &'a Manager> {
    let inside = |id: &u64| standing.joint || standing.voters.contains(id) || standing.learners.contains(id);
    managers.filter(move |manager| manager.role == ManagerRole::Leaving && !inside(&manager.raft_id))
}

/// The certificate of `id` is no longer taken; revocations of certificates that have expired by themselves are forgotten.
pub fn revoke(cluster: &mut Cluster, id: &str, now_ms: u64) {
    cluster.revocations.retain(|revocation| revocation.until_ms > now_ms);
    cluster.revocations.push(Revocation { id: id.to_owned(), until_ms: now_ms.saturating_add(cluster.certificate_ttl_ms) });
}

/// Promotes or demotes a manager, or tells where it is now.
pub fn update(state: &State, name: &str, role: Option<ManagerRole>, addr: &str, standing: &Standing) -> Result<ChangeSet, ApiError> {
    let manager = find(state, name)?;
    if manager.role == ManagerRole::Leaving {
        return Err(ApiError::new(ErrorCode::Conflict, format!("manager {name} is leaving the cluster")));
    }
    let mut changed = manager.clone();
    if let Some(role) = role {
        if standing.external {
            let message = "this cluster keeps its state in etcd: its managers do not vote, so none can be promoted or demoted";
            return Err(ApiError::new(ErrorCode::Invalid, message)
                .field("role")
                .hint("any manager that runs can lead; `rclusterctl node rm` removes one"));
        }
        if role == ManagerRole::Standby && manager.role == ManagerRole::Voter {
            check_quorum(state, standing, manager, "demoting")?;
        }
        changed.role = role;
    }
    if !addr.is_empty() {
        validate::check_address(addr)?;
        let others = state.managers().values().filter(|other| other.id != manager.id && other.role != ManagerRole::Leaving);
        if let Some(other) = others.into_iter().find(|other| other.addr == addr) {
            return Err(ApiError::new(ErrorCode::Conflict, format!("manager {} has the address {addr}", other.name)).field("addr"));
        }
        addr.clone_into(&mut changed.addr);
    }
    let mut changes = ChangeSet::default();
    if changed != *manager {
        let message = format!("{} at {}", changed.role.as_str(), changed.addr);
        changes.notes.push(note(manager, "Changed", message));
        changes.puts.push(Object::Manager(changed));
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(raft_id: u64, role: ManagerRole) -> Manager {
        let name = format!("m{raft_id}");
        Manager { id: name.as_str().into(), stamp: Stamp::default(), raft_id, addr: format!("{name}:1"), name, role }
    }

    fn voters(ids: &[u64]) -> Vec<Manager> {
        ids.iter().map(|id| manager(*id, ManagerRole::Voter)).collect()
    }

    fn standing(own: u64, voters: &[u64], learners: &[u64], silent: &[u64]) -> Standing {
        let all = || voters.iter().chain(learners).copied();
        Standing {
            own,
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            joint: false,
            reachable: all().filter(|id| !silent.contains(id)).collect(),
            matched: all().map(|id| (id, 1000)).collect(),
            last: 1000,
            external: false,
        }
    }

    fn change(learners: &[u64], voters: &[u64], removed: &[u64]) -> Option<Step> {
        Some(Step::Change { learners: learners.to_vec(), voters: voters.to_vec(), removed: removed.to_vec() })
    }

    fn state(managers: &[Manager]) -> State {
        let mut state = State::new("c".into());
        let made = managers.iter().map(|manager| manager.raft_id).max().unwrap_or_default();
        let cluster = Cluster { managers_made: made, certificate_ttl_ms: 10, ..Cluster::default() };
        let objects = managers.iter().cloned().map(Object::Manager).chain([Object::Cluster(Box::new(cluster))]);
        let changes = objects.map(|object| super::super::state::Change::Put { expected: 0, object }).collect();
        state.apply(1, &super::super::state::Transaction { at_ms: 1, changes }).unwrap();
        state
    }

    #[test]
    fn a_joiner_is_a_learner_until_it_has_caught_up() {
        let managers = voters(&[1, 2]);
        assert_eq!(next(managers.iter(), &standing(1, &[1], &[], &[])), change(&[2], &[], &[]));
        let mut learning = standing(1, &[1], &[2], &[]);
        learning.matched.insert(2, 10);
        assert_eq!(next(managers.iter(), &learning), None);
        let young = Standing { last: 5, matched: [(1, 5), (2, 0)].into(), ..learning.clone() };
        assert_eq!(next(managers.iter(), &young), None, "it has nothing yet");
        learning.matched.insert(2, 900);
        assert_eq!(next(managers.iter(), &learning), change(&[], &[2], &[]));
        learning.reachable.remove(&2);
        assert_eq!(next(managers.iter(), &learning), None);
        assert_eq!(next(managers.iter(), &standing(1, &[1, 2], &[], &[])), None);
    }

    #[test]
    fn a_voter_that_goes_stops_voting_first_and_a_leader_hands_over_before() {
        assert_eq!(next(voters(&[1, 2]).iter(), &standing(1, &[1, 2, 3], &[], &[])), change(&[3], &[], &[]));
        assert_eq!(next(voters(&[1, 2]).iter(), &standing(1, &[1, 2], &[3], &[])), change(&[], &[], &[3]));
        assert_eq!(next(voters(&[1, 2, 4]).iter(), &standing(3, &[1, 2, 3, 4], &[], &[4])), Some(Step::HandOver(2)));
        let demoted = [manager(1, ManagerRole::Standby), manager(2, ManagerRole::Voter)];
        assert_eq!(next(demoted.iter(), &standing(2, &[1, 2], &[], &[])), change(&[1], &[], &[]));
        assert_eq!(next(demoted.iter(), &standing(2, &[2], &[1], &[])), None);
    }

    #[test]
    fn a_leader_that_has_no_heir_stays_and_lets_others_in() {
        let mut managers = voters(&[1, 2]);
        managers[0].role = ManagerRole::Leaving;
        assert_eq!(next(managers.iter(), &standing(1, &[1], &[], &[])), change(&[2], &[], &[]));
        // One that was made a learner by the leader before it leads only until another can.
        let managers = [manager(1, ManagerRole::Standby), manager(2, ManagerRole::Voter), manager(3, ManagerRole::Voter)];
        assert_eq!(next(managers.iter(), &standing(1, &[2, 3], &[1], &[2])), Some(Step::HandOver(3)));
    }

    #[test]
    fn several_steps_are_one_and_none_is_made_between_two_configurations() {
        let managers = voters(&[1, 2, 4]);
        assert_eq!(next(managers.iter(), &standing(1, &[1, 3], &[2, 5], &[])), change(&[4, 3], &[2], &[5]));
        let joint = Standing { joint: true, ..standing(1, &[1, 3], &[2, 5], &[]) };
        assert_eq!(next(managers.iter(), &joint), None);
    }

    #[test]
    fn what_would_lose_the_quorum_is_refused_with_the_arithmetic() {
        let managers = voters(&[1, 2, 3]);
        let state = state(&managers);
        let refused = remove(&state, "m3", &standing(1, &[1, 2, 3], &[], &[2])).unwrap_err();
        assert_eq!(refused.message, "removing m3 leaves 1 of 2 voters reachable; quorum needs 2, and would be lost");
        assert_eq!(refused.hint, "bring back or remove m2 first");
        remove(&state, "m2", &standing(1, &[1, 2, 3], &[], &[2])).unwrap();
        let refused = update(&state, "m3", Some(ManagerRole::Standby), "", &standing(1, &[1, 2, 3], &[], &[2])).unwrap_err();
        assert!(refused.message.starts_with("demoting m3 leaves 1 of 2"), "{refused}");
        let refused = remove(&state, "m1", &standing(1, &[1], &[2, 3], &[])).unwrap_err();
        assert_eq!(refused.message, "removing m1 leaves no manager that votes");
    }

    #[test]
    fn managers_of_a_state_in_etcd_need_no_quorum_and_have_no_votes() {
        let state = state(&voters(&[1, 2, 3]));
        let external = |silent: &[u64]| Standing { external: true, ..standing(1, &[1, 2, 3], &[], silent) };
        remove(&state, "m3", &external(&[2, 3])).unwrap();
        for role in [ManagerRole::Standby, ManagerRole::Voter] {
            let refused = update(&state, "m3", Some(role), "", &external(&[])).unwrap_err();
            assert!(refused.message.contains("managers do not vote"), "{refused}");
        }
        update(&state, "m3", None, "m3:2", &external(&[])).unwrap();
        let refused = remove(&state, "m1", &Standing { external: true, ..standing(1, &[1], &[], &[]) }).unwrap_err();
        assert_eq!(refused.message, "removing m1 leaves no manager that votes");
    }

    #[test]
    fn voters_that_are_about_to_go_do_not_count() {
        let mut managers = voters(&[1, 2, 3]);
        managers[1].role = ManagerRole::Leaving;
        managers[2].role = ManagerRole::Standby;
        let state = state(&managers);
        // Raft's configuration is as it was: a second command comes before the first has had its effect.
        let refused = remove(&state, "m1", &standing(1, &[1, 2, 3], &[], &[])).unwrap_err();
        assert_eq!(refused.message, "removing m1 leaves no manager that votes");
    }

    #[test]
    fn nobody_stops_voting_when_the_quorum_would_be_lost_meanwhile() {
        let mut managers = voters(&[1, 2, 3]);
        managers[2].role = ManagerRole::Leaving;
        assert_eq!(next(managers.iter(), &standing(1, &[1, 2, 3], &[], &[2])), None);
        assert_eq!(next(managers.iter(), &standing(1, &[1, 2, 3], &[], &[])), change(&[3], &[], &[]));
        managers.push(manager(4, ManagerRole::Standby));
        assert_eq!(next(managers.iter(), &standing(1, &[1, 2, 3], &[], &[2])), change(&[4], &[], &[]));
    }

    #[test]
    fn ids_are_never_used_again() {
        let managers = voters(&[1, 2, 3]);
        let state = state(&managers);
        let mut ctx = Ctx::new(5, 1);
        let (_, four) = add(&state, "m4", "m4:1", &standing(1, &[1, 2, 3], &[], &[]), &mut ctx).unwrap();
        assert_eq!(four.raft_id, 4);
        let refused = add(&state, "m3", "m3:1", &standing(1, &[1, 2, 3], &[], &[]), &mut ctx).unwrap_err();
        assert_eq!(refused.message, "manager m3 at m3:1 has the name m3");
        let (changes, three) = add(&state, "m3", "m3:1", &standing(1, &[1, 2, 3], &[], &[3]), &mut ctx).unwrap();
        assert_eq!(three.raft_id, 4);
        assert!(matches!(&changes.puts[0], Object::Manager(Manager { raft_id: 3, role: ManagerRole::Leaving, .. })));
    }

    #[test]
    fn who_leaves_is_forgotten_once_it_takes_no_part() {
        let mut managers = voters(&[1, 2, 3]);
        managers[2].role = ManagerRole::Leaving;
        let state = state(&managers);
        assert_eq!(next(managers.iter(), &standing(1, &[1, 2, 3], &[], &[])), change(&[3], &[], &[]));
        for still in [standing(1, &[1, 2, 3], &[], &[]), standing(1, &[1, 2], &[3], &[])] {
            assert_eq!(forget(&state, &still, 5).unwrap().deletes, []);
        }
        let changes = forget(&state, &standing(1, &[1, 2], &[], &[]), 5).unwrap();
        assert_eq!(changes.deletes, [(Kind::Manager, "m3".to_owned())]);
        let Some(Object::Cluster(cluster)) = changes.puts.last() else { panic!("no cluster") };
        assert_eq!(cluster.revocations, [Revocation { id: "m3".into(), until_ms: 15 }]);
        assert!(update(&state, "m3", Some(ManagerRole::Voter), "", &standing(1, &[1, 2], &[3], &[])).is_err());
    }
}
