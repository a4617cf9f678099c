//! How much the policies of networks say.
//!
//! In: the state, and what a request changes of networks and services. Out: a refusal of what would make a policy larger than nodes are to
//! hold, and notes of services that a policy names and its network does not have. Never: a refusal of what makes no policy larger.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::id::ServiceId;
use rcluster_api::network::{Allow, NetworkPolicy, Peer};
use rcluster_api::object::{Kind, Network, Object, Service};
use rcluster_api::spec::Mode;

use crate::core::plan::{ChangeSet, Note};
use crate::core::state::State;

/// Pairs of tasks, each as often as ports are told, of all rules of a network. Everyone on the network counts as one task, and so does a
/// range of addresses.
const PAIRS_MAX: u64 = 4096;

/// How many tasks the services of a network have, by the services' names.
type Tasks<'a> = BTreeMap<&'a str, u64>;

/// Checks the policies that the changes concern, and adds notes to the changes.
pub(super) fn check(state: &State, changes: &mut ChangeSet) -> Result<(), ApiError> {
    let concerned = concerned(state, &changes.puts);
    let mut notes = Vec::new();
    for (network, changed) in concerned.values() {
        let Some(policy) = &network.spec.policy else { continue };
        let after = tasks(state, &changes.puts, &network.spec.name);
        if *changed {
            notes.extend(strangers(network, policy, &after));
        }
        let Some((rule, words)) = excess(policy, &after) else { continue };
        if *changed {
            return Err(ApiError::new(ErrorCode::Invalid, words).field(format!("policy.allow[{rule}]")).hint("name narrower services"));
        }
        if total(policy, &after) > total(policy, &tasks(state, &[], &network.spec.name)) {
            return Err(ApiError::new(ErrorCode::Invalid, format!("by policy.allow[{rule}] of network {}, {words}", network.spec.name))
                .field("replicas")
                .hint("scale less, or name narrower services in the policy"));
        }
    }
    changes.notes.extend(notes);
    Ok(())
}

/// The networks that change or on which a service changes, by name, each as it will be and with whether it changes itself.
fn concerned<'a>(state: &'a State, puts: &'a [Object]) -> BTreeMap<&'a str, (&'a Network, bool)> {
    let mut concerned = BTreeMap::new();
    for put in puts {
        if let Object::Service(service) = put {
            let networks = service.spec.networks.iter().filter_map(|attachment| state.find_network(&attachment.network));
            concerned.extend(networks.map(|network| (network.spec.name.as_str(), (&**network, false))));
        }
    }
    for put in puts {
        if let Object::Network(network) = put {
            concerned.insert(network.spec.name.as_str(), (network, true));
        }
    }
    concerned
}

/// The tasks on a network once `puts` are in the state.
fn tasks<'a>(state: &'a State, puts: &'a [Object], network: &str) -> Tasks<'a> {
    let mut services: BTreeMap<&ServiceId, &Service> = state.services().iter().map(|(id, service)| (id, &**service)).collect();
    services.extend(puts.iter().filter_map(|put| if let Object::Service(service) = put { Some((&service.id, service)) } else { None }));
    let on_network = |service: &&Service| service.spec.networks.iter().any(|attachment| attachment.network == network);
    let count = |service: &Service| match service.spec.mode {
        Mode::Replicated => u64::from(service.spec.replicas()),
        Mode::Global => state.nodes().len() as u64,
    };
    services.into_values().filter(on_network).map(|service| (service.spec.name.as_str(), count(service))).collect()
}

/// How many sources, targets and ports a rule tells of.
fn sizes(allow: &Allow, tasks: &Tasks<'_>) -> (u64, u64, u64) {
    let Allow { from, to, ports } = allow;
    let side = |peers: &[Peer]| {
        let peers: BTreeSet<&Peer> = peers.iter().collect();
        let everyone = peers.contains(&Peer::All);
        let size = |peer: &Peer| match peer {
            Peer::All | Peer::Range(_) => 1,
            Peer::Service(_) if everyone => 0,
            Peer::Service(name) => tasks.get(name.as_str()).copied().unwrap_or_default(),
        };
        peers.into_iter().map(size).sum::<u64>()
    };
    (side(from), side(to), ports.len().max(1) as u64)
}

fn product((sources, targets, ports): (u64, u64, u64)) -> u64 {
    sources.saturating_mul(targets).saturating_mul(ports)
}

fn total(policy: &NetworkPolicy, tasks: &Tasks<'_>) -> u64 {
    policy.allow.iter().map(|allow| product(sizes(allow, tasks))).fold(0, u64::saturating_add)
}

/// The rule with which the policy becomes too large, and how.
fn excess(policy: &NetworkPolicy, tasks: &Tasks<'_>) -> Option<(usize, String)> {
    let mut total = 0_u64;
    for (index, allow) in policy.allow.iter().enumerate() {
        let (sources, targets, ports) = sizes(allow, tasks);
        let own = product((sources, targets, ports));
        total = total.saturating_add(own);
        if total <= PAIRS_MAX {
            continue;
        }
        let at_ports = if ports > 1 { format!(" at {ports} ports") } else { String::new() };
        let with_others = if own > PAIRS_MAX { String::new() } else { format!(", with those of the rules before {total}") };
        let words = format!("{sources} × {targets} tasks{at_ports} make {own} pairs{with_others}, more than the limit of {PAIRS_MAX}");
        return Some((index, words));
    }
    None
}

/// Notes of the services that are named and not on the network.
fn strangers(network: &Network, policy: &NetworkPolicy, tasks: &Tasks<'_>) -> Vec<Note> {
    let named = policy.allow.iter().flat_map(|allow| allow.from.iter().chain(&allow.to));
    let names = named.filter_map(|peer| if let Peer::Service(name) = peer { Some(name.as_str()) } else { None });
    let names: BTreeSet<&str> = names.filter(|name| !tasks.contains_key(name)).collect();
    let note = |name: &str| Note {
        kind: Kind::Network,
        object_id: network.id.to_string(),
        object: network.spec.name.clone(),
        reason: "PolicyMatchesNobody",
        message: format!("the policy names service {name}, which is not on this network: it matches nobody until it is"),
    };
    names.into_iter().map(note).collect()
}
