//! What a user's request changes.
//!
//! In: the state and a request. Out: the objects to write, with what to answer, or a refusal that says which field, why and what mends
//! it. Never: half of a request.

pub mod access;
mod data;
pub mod once;
mod policy;
mod pools;
mod ports;
mod room;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use rcluster_api::cluster::{Authority, Manager, ManagerRole, UserRole};
use rcluster_api::data::{DataKind, Payload};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::{NetworkId, ServiceId, UserId};
use rcluster_api::object::{Availability, Kind, Network, Node, Object, Service};
use rcluster_api::spec::{Mode, NetworkSpec, ServiceSpec, Spec};
use rcluster_api::validate;
use serde::{Deserialize, Serialize};

use super::allocate::{self, holds_addresses};
use super::members::{self, Standing};
use super::plan::{ChangeSet, Ctx, Note};
use super::state::State;

/// What a user can ask for.
#[derive(Debug, Clone)]
pub enum Request {
    /// Carry this out once, however often it is asked for under this key.
    Once {
        key: once::Key,
        request: Box<Request>,
    },
    /// Create or update all of these; the number is the version that the object must have, if not 0.
    Apply(Vec<(Spec, u64)>),
    /// Remove all of these, by name or id.
    Remove(Vec<(Kind, String)>),
    Scale {
        service: String,
        replicas: u32,
    },
    UpdateNode {
        node: String,
        availability: Option<Availability>,
        labels_set: BTreeMap<String, String>,
        labels_removed: Vec<String>,
    },
    /// `standing`: how the leader sees the managers.
    AddManager {
        name: String,
        addr: String,
        standing: Standing,
    },
    RemoveManager {
        manager: String,
        standing: Standing,
    },
    /// Forgets managers that have left.
    ForgetManagers {
        standing: Standing,
    },
    UpdateManager {
        manager: String,
        role: Option<ManagerRole>,
        addr: String,
        standing: Standing,
    },
    RotateToken {
        manager: bool,
        secret: Payload,
    },
    /// `before`: certificate of the authority that issues until then.
    RotateAuthority {
        authority: Authority,
        before: Payload,
    },
    /// Ends the trust in all authorities but the one that issues.
    DropAuthorities,
    /// `key`: what managers' disks are locked with from now on; empty: nothing. `generation`: that of the change before.
    SetUnlockKey {
        key: Payload,
        generation: u64,
    },
    CreateUser {
        name: String,
        role: UserRole,
        token_digest: String,
        expires_at_ms: u64,
    },
    /// From these subnets are chosen too, each with the prefix of the subnets.
    AddPools(Vec<(Ipv4Net, u8)>),
}

impl Request {
    /// The objects whose content it sets. A version says what an object holds, so one commit takes one such request for each.
    pub fn sets(&self, state: &State) -> Vec<(Kind, String)> {
        match self {
            Self::Once { key: _, request } => request.sets(state),
            Self::Apply(specs) => specs.iter().map(|(spec, _)| (spec.kind(), spec.name().to_owned())).collect(),
            Self::Scale { service, replicas: _ } => {
                state.find_service(service).map(|service| (Kind::Service, service.spec.name.clone())).into_iter().collect()
            }
            Self::Remove(_)
            | Self::UpdateNode { .. }
            | Self::AddManager { .. }
            | Self::RemoveManager { .. }
            | Self::ForgetManagers { .. }
            | Self::UpdateManager { .. }
            | Self::RotateToken { .. }
            | Self::RotateAuthority { .. }
            | Self::DropAuthorities
            | Self::SetUnlockKey { .. }
            | Self::CreateUser { .. }
            | Self::AddPools(_) => Vec::new(),
        }
    }

    /// Bytes of what it asks to be, at most; the rest of it is small.
    pub fn bytes(&self) -> usize {
        let spec_bytes = |spec: &Spec| match spec {
            Spec::Service(spec) => validate::text_size(spec),
            Spec::Network(spec) => validate::network_text_size(spec),
            Spec::Data(spec) => validate::label_bytes(&spec.labels) + spec.data.as_ref().map_or(0, |data| data.0.len()),
        };
        match self {
            Self::Once { key: _, request } => request.bytes(),
            Self::Apply(specs) => specs.iter().map(|(spec, _)| spec_bytes(spec)).sum(),
            _ => 0,
        }
    }
}

/// What was done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Created,
    Updated,
    Unchanged,
}

/// One object of an answer. The version is that of the commit, unless the object is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub kind: Kind,
    pub name: String,
    pub id: String,
    pub version: u64,
    pub outcome: Outcome,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Applied(Vec<Applied>),
    Removed,
    Scaled {
        replicas_before: u32,
    },
    NodeUpdated,
    ManagerAdded(Manager),
    UserCreated(UserId),
    /// What was answered before, in this revision; none: in the same transaction.
    Again {
        revision: Option<u64>,
        answer: Box<Answer>,
    },
    Done,
}

/// Decides what `request` changes; refuses what the state has no room for.
pub fn decide(state: &State, request: Request, ctx: &mut Ctx) -> Result<(ChangeSet, Answer), ApiError> {
    let (changes, answer) = answer(state, request, ctx)?;
    room::check(state, &changes, room::STATE_BYTES_MAX)?;
    Ok((changes, answer))
}

fn answer(state: &State, request: Request, ctx: &mut Ctx) -> Result<(ChangeSet, Answer), ApiError> {
    match request {
        Request::Once { key, request } => once::once(state, key, *request, ctx),
        Request::Apply(specs) => apply(state, specs, ctx),
        Request::Remove(refs) => remove(state, &refs, ctx.now_ms),
        Request::Scale { service, replicas } => scale(state, &service, replicas),
        Request::UpdateNode { node, availability, labels_set, labels_removed } => {
            update_node(state, &node, availability, labels_set, &labels_removed)
        }
        Request::AddManager { name, addr, standing } => {
            let (changes, manager) = members::add(state, &name, &addr, &standing, ctx)?;
            Ok((changes, Answer::ManagerAdded(manager)))
        }
        Request::RemoveManager { manager, standing } => Ok((members::remove(state, &manager, &standing)?, Answer::Removed)),
        Request::ForgetManagers { standing } => Ok((members::forget(state, &standing, ctx.now_ms)?, Answer::Done)),
        Request::UpdateManager { manager, role, addr, standing } => {
            Ok((members::update(state, &manager, role, &addr, &standing)?, Answer::Done))
        }
        Request::RotateToken { manager, secret } => Ok((access::rotate_token(state, manager, secret, ctx.now_ms)?, Answer::Done)),
        Request::RotateAuthority { authority, before } => {
            Ok((access::rotate_authority(state, authority, &before, ctx.now_ms)?, Answer::Done))
        }
        Request::DropAuthorities => Ok((access::drop_authorities(state)?, Answer::Done)),
        Request::SetUnlockKey { key, generation } => Ok((access::set_unlock_key(state, key, generation)?, Answer::Done)),
        Request::CreateUser { name, role, token_digest, expires_at_ms } => {
            let (changes, id) = access::create_user(state, &name, role, token_digest, expires_at_ms, ctx)?;
            Ok((changes, Answer::UserCreated(id)))
        }
        Request::AddPools(more) => Ok((pools::add(state, &more)?, Answer::Done)),
    }
}

fn apply(state: &State, specs: Vec<(Spec, u64)>, ctx: &mut Ctx) -> Result<(ChangeSet, Answer), ApiError> {
    let mut changes = ChangeSet::default();
    let mut applied = Vec::new();
    let mut seen = BTreeSet::new();
    let new_networks: BTreeMap<String, Option<Ipv4Net>> = specs
        .iter()
        .filter_map(|(spec, _)| match spec {
            Spec::Network(network) => Some((network.name.clone(), network.subnet)),
            Spec::Service(_) | Spec::Data(_) => None,
        })
        .collect();
    let new_data: BTreeSet<(DataKind, String)> = specs
        .iter()
        .filter_map(|(spec, _)| match spec {
            Spec::Data(data) => Some((data.kind, data.name.clone())),
            Spec::Service(_) | Spec::Network(_) => None,
        })
        .collect();
    let mut changed_data = BTreeSet::new();
    let mut subnets: Vec<(String, Ipv4Net)> = allocate::subnets(state).map(|(name, subnet)| (name.to_owned(), subnet)).collect();
    for (spec, expected) in specs {
        validate::check(&spec)?;
        let kind = match &spec {
            Spec::Service(_) => Kind::Service,
            Spec::Network(_) => Kind::Network,
            Spec::Data(data) => data.kind.object_kind(),
        };
        if !seen.insert((kind, spec.name().to_owned())) {
            return Err(ApiError::new(ErrorCode::Invalid, format!("{} {} is given twice", kind.as_str(), spec.name())));
        }
        applied.push(match spec {
            Spec::Service(spec) => {
                data::check_uses(state, &spec, &new_data)?;
                apply_service(state, spec, expected, &new_networks, ctx, &mut changes)?
            }
            Spec::Data(spec) => data::apply(state, spec, expected, ctx, &mut changed_data, &mut changes)?,
            Spec::Network(spec) => apply_network(state, spec, expected, &mut subnets, ctx, &mut changes)?,
        });
    }
    let notes = ports::check(state, &changes)?;
    changes.notes.extend(notes);
    data::roll_users(state, &changed_data, &mut changes);
    policy::check(state, &mut changes)?;
    Ok((changes, Answer::Applied(applied)))
}

fn check_version(kind: Kind, name: &str, expected: u64, actual: u64) -> Result<(), ApiError> {
    if expected == 0 || expected == actual {
        return Ok(());
    }
    let what = if actual == 0 { "does not exist any more".to_owned() } else { format!("has changed: it is at version {actual}") };
    Err(ApiError::new(ErrorCode::Conflict, format!("{} {name} {what}, the request was made for version {expected}", kind.as_str()))
        .field("version")
        .hint(format!("look at it again with `rclusterctl get {} {name} -o yaml`", kind.as_str())))
}

fn apply_service(
    state: &State,
    spec: ServiceSpec,
    expected: u64,
    new_networks: &BTreeMap<String, Option<Ipv4Net>>,
    ctx: &mut Ctx,
    changes: &mut ChangeSet,
) -> Result<Applied, ApiError> {
    for (index, attachment) in spec.networks.iter().enumerate() {
        let exists = state.find_network(&attachment.network).is_some_and(|network| !network.removing);
        if !exists && !new_networks.contains_key(&attachment.network) {
            return Err(ApiError::new(
                ErrorCode::Invalid,
                format!("network {} of service {} does not exist", attachment.network, spec.name),
            )
            .field(format!("networks[{index}]"))
            .hint("deploy the network first, or in the same files"));
        }
    }
    check_static(state, &spec, new_networks, changes)?;
    let name = spec.name.clone();
    let current = state.find_service(&name);
    check_version(Kind::Service, &name, expected, current.map_or(0, |service| service.stamp.version))?;
    let (service, outcome) = match current {
        Some(current) if current.removing => return Err(being_removed(Kind::Service, &name)),
        Some(current) if current.spec == normal(spec.clone()) => ((**current).clone(), Outcome::Unchanged),
        Some(current) => {
            let spec = normal(spec);
            let spec_version = current.spec_version + u64::from(spec.template() != current.spec.template());
            (Service { spec, spec_version, ..(**current).clone() }, Outcome::Updated)
        }
        None => {
            let id = ServiceId::random(&mut ctx.rng);
            (Service::new(id, normal(spec)), Outcome::Created)
        }
    };
    note_outcome(Kind::Service, service.id.as_str(), &name, outcome, changes);
    let applied = Applied { kind: Kind::Service, name, id: service.id.to_string(), version: service.stamp.version, outcome };
    if outcome != Outcome::Unchanged {
        changes.puts.push(Object::Service(service));
    }
    Ok(applied)
}

/// Refuses a static address that its network does not have, or that another has.
fn check_static(
    state: &State,
    spec: &ServiceSpec,
    new_networks: &BTreeMap<String, Option<Ipv4Net>>,
    changes: &ChangeSet,
) -> Result<(), ApiError> {
    for (index, attachment) in spec.networks.iter().enumerate() {
        let Some(ip) = attachment.ip else { continue };
        let name = &attachment.network;
        let refused =
            |message: String, hint: &str| Err(ApiError::new(ErrorCode::Invalid, message).field(format!("networks[{index}].ip")).hint(hint));
        let network = state.find_network(name);
        let asked = new_networks.get(name).copied().flatten();
        let Some(subnet) = network.and_then(|network| network.subnet.or(network.spec.subnet)).or(asked) else {
            return refused(format!("network {name} has no subnet yet"), "give the network a subnet, or leave ip out");
        };
        if !allocate::is_given_out(subnet, ip) {
            let hint = "choose another, but for the first two and the last, or leave ip out";
            return refused(format!("{ip} is no address of {subnet} that a task can have"), hint);
        }
        let has_it = |service: &Service| {
            service.spec.name != spec.name && service.spec.networks.iter().any(|other| other.network == *name && other.ip == Some(ip))
        };
        let staged = changes.puts.iter().find_map(|put| match put {
            Object::Service(service) if has_it(service) => Some(service.spec.name.clone()),
            _ => None,
        });
        let held = || network.and_then(|network| allocate::holder(state, &network.id, ip, &spec.name));
        let kept = || state.services().values().find(|service| has_it(service)).map(|service| service.spec.name.clone());
        if let Some(holder) = staged.or_else(held).or_else(kept) {
            if holder == spec.name {
                let hint = "choose another address; with endpoint_mode: dnsrr the service has no virtual address, once it was deployed so";
                return refused(format!("{ip} on network {name} is the service's own virtual address"), hint);
            }
            return refused(format!("{ip} on network {name} is held by {holder}"), "choose another address, or free it there first");
        }
    }
    Ok(())
}

/// The spec as it is kept: with what the wire cannot leave out filled in, so that equal specs compare equal.
fn normal(mut spec: ServiceSpec) -> ServiceSpec {
    if spec.mode == Mode::Replicated {
        spec.replicas = Some(spec.replicas());
    }
    for index in 0..spec.containers.len() {
        let name = validate::container_name(&spec, index);
        spec.containers[index].name = name;
    }
    spec
}

fn apply_network(
    state: &State,
    spec: NetworkSpec,
    expected: u64,
    subnets: &mut Vec<(String, Ipv4Net)>,
    ctx: &mut Ctx,
    changes: &mut ChangeSet,
) -> Result<Applied, ApiError> {
    let name = spec.name.clone();
    let current = state.find_network(&name);
    check_version(Kind::Network, &name, expected, current.map_or(0, |network| network.stamp.version))?;
    let (network, outcome) = match current {
        Some(current) if current.removing => return Err(being_removed(Kind::Network, &name)),
        Some(current) if current.spec == spec => ((**current).clone(), Outcome::Unchanged),
        Some(current) => {
            let subnet = current.subnet.or(current.spec.subnet);
            let kept_subnet = spec.subnet.is_none() && current.spec.subnet.is_none() || spec.subnet == subnet;
            let subnet6 = current.subnet6.or(current.spec.subnet6);
            let kept_subnet6 = spec.subnet6.is_none() && current.spec.subnet6.is_none() || spec.subnet6 == subnet6;
            let fixed = [
                ("subnet", kept_subnet),
                ("internal", spec.internal == current.spec.internal),
                ("encrypted", spec.encrypted == current.spec.encrypted),
                ("ipv6", spec.ipv6 == current.spec.ipv6),
                ("subnet6", kept_subnet6),
            ];
            if let Some((field, _)) = fixed.into_iter().find(|(_, kept)| !kept) {
                return Err(ApiError::new(ErrorCode::Invalid, format!("network {name} exists and its {field} cannot change"))
                    .field(field)
                    .hint("remove the network and its services first, or give the new network another name"));
            }
            (Network { spec, ..(**current).clone() }, Outcome::Updated)
        }
        None => {
            check_subnet(state, &spec, subnets)?;
            check_subnet6(state, &spec, changes)?;
            let id = NetworkId::random(&mut ctx.rng);
            (Network::new(id, spec), Outcome::Created)
        }
    };
    subnets.extend(network.spec.subnet.map(|subnet| (name.clone(), subnet)));
    note_outcome(Kind::Network, network.id.as_str(), &name, outcome, changes);
    let applied = Applied { kind: Kind::Network, name, id: network.id.to_string(), version: network.stamp.version, outcome };
    if outcome != Outcome::Unchanged {
        changes.puts.push(Object::Network(network));
    }
    Ok(applied)
}

/// Refuses a new network's subnet that others have or reach already, and a network for which none can be chosen.
fn check_subnet(state: &State, spec: &NetworkSpec, subnets: &[(String, Ipv4Net)]) -> Result<(), ApiError> {
    let refused = |code, message: String, hint: &str| Err(ApiError::new(code, message).field("subnet").hint(hint));
    let Some(subnet) = spec.subnet else {
        let asked: Vec<Ipv4Net> = subnets.iter().map(|(_, subnet)| *subnet).collect();
        return match allocate::no_subnet(state, &asked) {
            Some(why) => refused(
                ErrorCode::Conflict,
                format!("no subnet is free for network {}: {why}", spec.name),
                "add a pool: rclusterctl network pool add CIDR; or remove a network, or give this one a subnet of its own",
            ),
            None => Ok(()),
        };
    };
    if let Some((other, taken)) = subnets.iter().find(|(_, taken)| allocate::overlap(taken, &subnet)) {
        let message = format!("subnet {subnet} overlaps {taken} of network {other}");
        return refused(ErrorCode::Invalid, message, "choose another subnet, or leave it out and one is chosen");
    }
    match allocate::collision(state, subnet) {
        Some(why) => refused(
            ErrorCode::Invalid,
            format!("subnet {subnet} {why}"),
            "choose another subnet, or leave it out and one is chosen; rclusterctl get node NAME -o json shows a node's routes",
        ),
        None => Ok(()),
    }
}

/// Refuses a new network's IPv6 prefix that another has.
fn check_subnet6(state: &State, spec: &NetworkSpec, changes: &ChangeSet) -> Result<(), ApiError> {
    let Some(subnet6) = spec.subnet6 else { return Ok(()) };
    let asked = changes.puts.iter().filter_map(|object| if let Object::Network(network) = object { Some(network) } else { None });
    let mut others = state.networks().values().map(|network| &**network).chain(asked);
    match others.find(|network| network.subnet6.or(network.spec.subnet6) == Some(subnet6)) {
        Some(other) => Err(ApiError::new(ErrorCode::Invalid, format!("subnet6 {subnet6} is that of network {}", other.spec.name))
            .field("subnet6")
            .hint("choose another, or leave it out and one is chosen")),
        None => Ok(()),
    }
}

fn being_removed(kind: Kind, name: &str) -> ApiError {
    ApiError::new(ErrorCode::Conflict, format!("{} {name} is being removed", kind.as_str()))
        .hint(format!("try again when `rclusterctl get {}s` does not show it any more", kind.as_str()))
}

fn note_outcome(kind: Kind, id: &str, name: &str, outcome: Outcome, changes: &mut ChangeSet) {
    let reason = match outcome {
        Outcome::Created => "Created",
        Outcome::Updated => "Updated",
        Outcome::Unchanged => return,
    };
    let message = "by a user".to_owned();
    changes.notes.push(Note { kind, object_id: id.to_owned(), object: name.to_owned(), reason, message });
}

fn not_found(kind: Kind, name: &str) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("there is no {} {name}", kind.as_str()))
        .hint(format!("`rclusterctl get {}s` lists them", kind.as_str()))
}

/// The node to be changed is not there. A manager of that name is no node; what may have been meant of it is done by another command.
fn no_node_to_update(state: &State, name: &str, availability: Option<Availability>) -> ApiError {
    if state.find_manager(name).is_none() {
        return not_found(Kind::Node, name);
    }
    let hint = match availability {
        Some(Availability::Drain | Availability::Pause) => {
            format!("`rclusterctl node demote {name}` takes its vote and moves leadership away")
        }
        Some(Availability::Active) => format!("`rclusterctl node promote {name}` lets it vote"),
        None => "`rclusterctl get nodes` lists the nodes".to_owned(),
    };
    ApiError::new(ErrorCode::NotFound, format!("{name} is a manager, not a node: it runs no tasks")).hint(hint)
}

fn remove(state: &State, refs: &[(Kind, String)], now_ms: u64) -> Result<(ChangeSet, Answer), ApiError> {
    let mut changes = ChangeSet::default();
    let mut going: BTreeSet<ServiceId> = state.services().values().filter(|s| s.removing).map(|s| s.id.clone()).collect();
    for (kind, name) in refs.iter().filter(|(kind, _)| *kind == Kind::Service) {
        let service = state.find_service(name).ok_or_else(|| not_found(*kind, name))?;
        going.insert(service.id.clone());
        changes.puts.push(Object::Service(Service { removing: true, ..(**service).clone() }));
        note_removal(*kind, service.id.as_str(), &service.spec.name, &mut changes);
    }
    for (kind, name) in refs.iter().filter(|(kind, _)| *kind != Kind::Service) {
        match kind {
            Kind::Network => {
                let network = state.find_network(name).ok_or_else(|| not_found(*kind, name))?;
                let users: Vec<&str> = state
                    .services()
                    .values()
                    .filter(|service| !going.contains(&service.id))
                    .filter(|service| service.spec.networks.iter().any(|attached| attached.network == network.spec.name))
                    .map(|service| service.spec.name.as_str())
                    .collect();
                if !users.is_empty() {
                    return Err(ApiError::new(ErrorCode::Invalid, format!("network {name} is used by {}", users.join(", ")))
                        .hint("remove those services first, or in the same command"));
                }
                changes.puts.push(Object::Network(Network { removing: true, ..(**network).clone() }));
                note_removal(*kind, network.id.as_str(), &network.spec.name, &mut changes);
            }
            Kind::Node => remove_node(state, name, now_ms, &mut changes)?,
            Kind::Task => {
                return Err(ApiError::new(ErrorCode::Invalid, format!("task {name} belongs to a service and would come back"))
                    .hint("scale the service down, or remove it"));
            }
            Kind::Secret => data::remove(state, DataKind::Secret, name, &going, &mut changes)?,
            Kind::Config => data::remove(state, DataKind::Config, name, &going, &mut changes)?,
            Kind::Event => return Err(ApiError::new(ErrorCode::Invalid, "events cannot be removed")),
            Kind::User => access::remove_user(state, name, &mut changes)?,
            Kind::Manager | Kind::Cluster => {
                return Err(ApiError::new(ErrorCode::Invalid, format!("a {} is not removed together with others", kind.as_str()))
                    .hint("a manager leaves by a command of its own: rclusterctl node rm NAME"));
            }
            Kind::Service => {}
        }
    }
    Ok((changes, Answer::Removed))
}

fn note_removal(kind: Kind, id: &str, name: &str, changes: &mut ChangeSet) {
    let message = "removal asked for by a user".to_owned();
    changes.notes.push(Note { kind, object_id: id.to_owned(), object: name.to_owned(), reason: "Removing", message });
}

/// A node can go once it is down; what was lost with it is lost for good, and its tasks' addresses are free.
fn remove_node(state: &State, name: &str, now_ms: u64, changes: &mut ChangeSet) -> Result<(), ApiError> {
    let node = state.find_node(name).ok_or_else(|| not_found(Kind::Node, name))?;
    if node.state != rcluster_api::object::NodeState::Down {
        return Err(ApiError::new(ErrorCode::Invalid, format!("node {name} is {}", node.state.as_str()))
            .hint("drain it and stop its agent first; only a node that is down can be removed"));
    }
    let held = state.tasks_of_node(&node.id).filter(|task| holds_addresses(task) || task.status.state.is_terminal());
    changes.deletes.extend(held.map(|task| (Kind::Task, task.id.to_string())));
    changes.deletes.push((Kind::Node, node.id.to_string()));
    // Its certificate would let the agent come back under the same id.
    let staged = changes.puts.iter_mut().find_map(|put| if let Object::Cluster(cluster) = put { Some(cluster) } else { None });
    match staged {
        Some(cluster) => members::revoke(cluster, node.id.as_str(), now_ms),
        None => {
            let mut cluster = members::cluster(state)?.clone();
            members::revoke(&mut cluster, node.id.as_str(), now_ms);
            changes.puts.push(Object::Cluster(Box::new(cluster)));
        }
    }
    note_removal(Kind::Node, node.id.as_str(), node.name(), changes);
    Ok(())
}

fn scale(state: &State, name: &str, replicas: u32) -> Result<(ChangeSet, Answer), ApiError> {
    let service = state.find_service(name).ok_or_else(|| not_found(Kind::Service, name))?;
    if service.removing {
        return Err(being_removed(Kind::Service, name));
    }
    if service.spec.mode != Mode::Replicated {
        return Err(ApiError::new(ErrorCode::Invalid, format!("service {name} is global: it has one task on each node"))
            .hint("deploy it with mode: replicated to scale it"));
    }
    let replicas_before = service.spec.replicas();
    let mut scaled = (**service).clone();
    scaled.spec.replicas = Some(replicas);
    validate::check_service(&scaled.spec)?;
    let mut changes = ChangeSet::default();
    if replicas != replicas_before {
        changes.notes.push(Note {
            kind: Kind::Service,
            object_id: service.id.to_string(),
            object: service.spec.name.clone(),
            reason: "Scaled",
            message: format!("from {replicas_before} to {replicas}"),
        });
        changes.puts.push(Object::Service(scaled));
        policy::check(state, &mut changes)?;
    }
    Ok((changes, Answer::Scaled { replicas_before }))
}

fn update_node(
    state: &State,
    name: &str,
    availability: Option<Availability>,
    labels_set: BTreeMap<String, String>,
    labels_removed: &[String],
) -> Result<(ChangeSet, Answer), ApiError> {
    let node = state.find_node(name).ok_or_else(|| no_node_to_update(state, name, availability))?;
    let mut updated = Node { availability: availability.unwrap_or(node.availability), ..(**node).clone() };
    for label in labels_removed {
        if updated.labels.remove(label).is_none() {
            let why = if node.description.labels.contains_key(label) { "comes from the agent's own flags" } else { "is not there" };
            return Err(ApiError::new(ErrorCode::Invalid, format!("label {label} of node {name} cannot be removed: it {why}")));
        }
    }
    updated.labels.extend(labels_set);
    validate::check_labels("node", node.name(), &updated.labels)?;
    let mut changes = ChangeSet::default();
    if updated != **node {
        let message = if updated.availability == node.availability {
            "labels changed".to_owned()
        } else {
            format!("now {}", updated.availability.as_str())
        };
        changes.notes.push(Note {
            kind: Kind::Node,
            object_id: node.id.to_string(),
            object: node.name().to_owned(),
            reason: "Updated",
            message,
        });
        changes.puts.push(Object::Node(updated));
    }
    Ok((changes, Answer::NodeUpdated))
}
