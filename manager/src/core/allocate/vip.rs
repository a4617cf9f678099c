//! Virtual addresses: one for each service with `endpoint_mode: vip` on each of its networks.
//!
//! In: services and what is left of their networks' addresses once tasks have theirs. Out: services with their addresses. One that was given
//! stays until its service goes, leaves the network, or is answered for by its tasks' addresses (`dnsrr`). A service for which none is free
//! has none, and its tasks' addresses are answered instead; it is tried again with every plan. Never: takes the last address before a task
//! that waits for it.

use std::collections::BTreeMap;

use rcluster_api::id::NetworkId;
use rcluster_api::network::EndpointMode;
use rcluster_api::object::{Network, Object, Service, ServiceVip};

use super::holders::Holders;
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
        if vips != service.vips {
            changes.puts.push(Object::Service(Service { vips, ..(**service).clone() }));
        }
    }
}

/// The address that the service has on the network.
fn held(service: &Service, network: &str, networks: &BTreeMap<NetworkId, Network>) -> Option<ServiceVip> {
    service.vips.iter().find(|vip| vip.network == network && networks.contains_key(&vip.network_id)).cloned()
}
