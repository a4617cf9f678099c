//! Virtual addresses: one for each service with `endpoint_mode: vip` on each of its networks.
//!
//! In: services and what is left of their networks' addresses once tasks have theirs. Out: services with their addresses. One that was given
//! stays until its service goes, leaves the network, or is answered for by its tasks' addresses (`dnsrr`); then it rests, and its network
//! remembers that. A service for which none is free has none, and its tasks' addresses are answered instead; it is tried again with every
//! plan. Never: takes the last address before a task that waits for it, or gives away at once what another has given up.

use std::collections::BTreeMap;

use rcluster_api::id::NetworkId;
use rcluster_api::network::EndpointMode;
use rcluster_api::object::{Network, Object, RestingVip, Service, ServiceVip};

use super::holders::Holders;
use super::vip_rests_until_ms;
use crate::core::plan::ChangeSet;
use crate::core::state::State;

/// Looks at every service; who holds what is gathered when an address is to be chosen.
pub(super) fn pass<'a>(
    state: &'a State,
    now_ms: u64,
    gathered: &mut Option<Holders<'a>>,
    networks: &mut BTreeMap<NetworkId, Network>,
    changes: &mut ChangeSet,
) {
    for service in state.services().values().filter(|service| !service.removing) {
        if changes.is_full() {
            break;
        }
        let mut vips = Vec::new();
        let attachments = service.spec.networks.iter().filter(|_| service.spec.endpoint_mode == EndpointMode::Vip);
        for name in attachments.map(|attachment| &attachment.network) {
            let vip = held(service, name, networks).or_else(|| {
                let holders = gathered.get_or_insert_with(|| Holders::new(state, now_ms));
                holders.vip(service, name, networks)
            });
            vips.extend(vip);
        }
        for given_up in service.vips.iter().filter(|vip| !vips.contains(vip)) {
            if let Some(network) = networks.get_mut(&given_up.network_id) {
                rest(network, service, given_up, now_ms);
            }
        }
        if vips != service.vips {
            changes.puts.push(Object::Service(Service { vips, ..(**service).clone() }));
        }
    }
}

/// The networks of a service that goes, with its addresses at rest there. `staged`: of those, what is to be written already.
pub(super) fn given_up(state: &State, service: &Service, staged: &mut Vec<Object>, now_ms: u64) {
    for vip in &service.vips {
        let is_it = |object: &Object| matches!(object, Object::Network(network) if network.id == vip.network_id);
        if !staged.iter().any(is_it) {
            let kept = state.networks().get(&vip.network_id).filter(|network| !network.removing);
            staged.extend(kept.map(|network| Object::Network((**network).clone())));
        }
        for object in staged.iter_mut() {
            if let Object::Network(network) = object
                && network.id == vip.network_id
            {
                rest(network, service, vip, now_ms);
            }
        }
    }
}

/// Notes on a network that an address of a service rests from now on, and forgets those that have rested.
fn rest(network: &mut Network, service: &Service, vip: &ServiceVip, now_ms: u64) {
    network.resting_vips.retain(|resting| now_ms < vip_rests_until_ms(resting));
    network.resting_vips.push(RestingVip { ip: vip.ip, service_id: service.id.clone(), since_ms: now_ms });
}

/// The address that the service has on the network.
fn held(service: &Service, network: &str, networks: &BTreeMap<NetworkId, Network>) -> Option<ServiceVip> {
    service.vips.iter().find(|vip| vip.network == network && networks.contains_key(&vip.network_id)).cloned()
}
