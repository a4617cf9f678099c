//! Who has which address of a network, has had it until just now, or is to have it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use rcluster_api::id::{NetworkId, ServiceId};
use rcluster_api::network::{address6, subnet_size};
use rcluster_api::object::{Network, Service, ServiceVip, Task, TaskNetwork};
use rcluster_api::spec::NetworkAttachment;

use super::{REST_LEAST_MS, holds_addresses, ipam, pools, rests_until_ms, taken, usage, vip_rests_until_ms};
use crate::core::state::State;

/// One network's addresses that are not free.
#[derive(Debug, Default)]
struct Addresses<'a> {
    /// With what has it: a task's name or a service's.
    held: BTreeMap<u32, &'a str>,
    resting: BTreeMap<u32, Resting<'a>>,
    /// Static addresses, of these services.
    reserved: BTreeMap<u32, &'a ServiceId>,
    /// That there is none to be given, once that was found: it stays so in one plan.
    exhausted: Option<Lack>,
}

/// Why a task has no address.
#[derive(Debug, Clone)]
pub(super) struct Lack {
    /// What does not change from one plan to the next while it lasts.
    reason: String,
    /// How it is now; empty: the reason says all.
    now: String,
}

impl Lack {
    fn of(reason: String) -> Self {
        Self { reason, now: String::new() }
    }

    /// What the task says, which said `before`. How it was when it began to wait is enough: each number that changes would have all who wait
    /// written again.
    pub(super) fn said(self, before: &str) -> String {
        if !self.now.is_empty() && before.starts_with(&self.reason) { before.to_owned() } else { self.reason + &self.now }
    }
}

/// An address whose task has ended, or that its service has given up.
#[derive(Debug, Clone, Copy)]
struct Resting<'a> {
    since_ms: u64,
    service: &'a ServiceId,
}

impl<'a> Addresses<'a> {
    /// An address rests since the last time that it was given up.
    fn rest(&mut self, ip: u32, last: Resting<'a>) {
        let kept = self.resting.entry(ip).or_insert(last);
        if kept.since_ms < last.since_ms {
            *kept = last;
        }
    }
}

/// The addresses of all networks.
#[derive(Debug)]
pub(super) struct Holders<'a> {
    state: &'a State,
    now_ms: u64,
    by_network: BTreeMap<NetworkId, Addresses<'a>>,
    /// When the first address has rested long enough for someone who waits for one.
    free_at_ms: Option<u64>,
    /// What is said of the pools, once it was needed.
    pools: Option<String>,
}

impl<'a> Holders<'a> {
    /// As of `state` at a time.
    pub(super) fn new(state: &'a State, now_ms: u64) -> Self {
        let mut by_network: BTreeMap<NetworkId, Addresses<'a>> = BTreeMap::new();
        for task in state.tasks().values() {
            let resting = rests_until_ms(task).filter(|until_ms| now_ms < *until_ms);
            for attached in &task.networks {
                let addresses = by_network.entry(attached.network_id.clone()).or_default();
                let ip = u32::from(attached.ip);
                if holds_addresses(task) {
                    addresses.held.insert(ip, &task.name);
                } else if resting.is_some() {
                    addresses.rest(ip, Resting { since_ms: task.stamp.updated_at_ms, service: &task.service_id });
                }
            }
        }
        for network in state.networks().values() {
            for resting in network.resting_vips.iter().filter(|resting| now_ms < vip_rests_until_ms(resting)) {
                let last = Resting { since_ms: resting.since_ms, service: &resting.service_id };
                by_network.entry(network.id.clone()).or_default().rest(u32::from(resting.ip), last);
            }
        }
        for service in state.services().values() {
            for vip in &service.vips {
                by_network.entry(vip.network_id.clone()).or_default().held.insert(u32::from(vip.ip), &service.spec.name);
            }
            for attachment in &service.spec.networks {
                if let (Some(ip), Some(network)) = (attachment.ip, state.find_network(&attachment.network)) {
                    by_network.entry(network.id.clone()).or_default().reserved.insert(u32::from(ip), &service.id);
                }
            }
        }
        Self { state, now_ms, by_network, free_at_ms: None, pools: None }
    }

    /// When a plan is to look again for who got no address.
    pub(super) fn free_at_ms(&self) -> Option<u64> {
        self.free_at_ms
    }

    /// An address on each network that the template names, or why there is none.
    pub(super) fn addresses(&mut self, task: &'a Task, networks: &mut BTreeMap<NetworkId, Network>) -> Result<Vec<TaskNetwork>, Lack> {
        let mut chosen = Vec::new();
        for attachment in &task.template.networks {
            let network = networks
                .values()
                .find(|network| network.spec.name == attachment.network)
                .ok_or_else(|| Lack::of(format!("network {} does not exist", attachment.network)))?;
            let (ip, cursor) = match attachment.ip {
                Some(ip) => (self.fixed(network, ip, task).map_err(Lack::of)?, network.ip_cursor),
                None => self.next(network)?,
            };
            chosen.push((network.id.clone(), ip, cursor, attachment));
        }
        let mut addresses = Vec::new();
        for (id, ip, cursor, attachment) in chosen {
            let NetworkAttachment { network, aliases, ip: _ } = attachment;
            self.by_network.entry(id.clone()).or_default().held.insert(u32::from(ip), &task.name);
            let mut ip6 = None;
            if let Some(network) = networks.get_mut(&id) {
                network.ip_cursor = cursor;
                ip6 = network.subnet6.map(|subnet6| address6(subnet6, ip));
            }
            addresses.push(TaskNetwork { network_id: id, network: network.clone(), ip, ip6, aliases: aliases.clone() });
        }
        Ok(addresses)
    }

    /// A virtual address on a network; `None` if there is none, or no such network.
    pub(super) fn vip(&mut self, service: &'a Service, network: &str, networks: &mut BTreeMap<NetworkId, Network>) -> Option<ServiceVip> {
        let network = networks.values_mut().find(|known| known.spec.name == network && !known.removing)?;
        let (ip, cursor) = self.next(network).ok()?;
        self.by_network.entry(network.id.clone()).or_default().held.insert(u32::from(ip), &service.spec.name);
        network.ip_cursor = cursor;
        let ip6 = network.subnet6.map(|subnet6| address6(subnet6, ip));
        Some(ServiceVip { network_id: network.id.clone(), network: network.spec.name.clone(), ip, ip6 })
    }

    /// The next address of a network that nobody has or is to have: one that does not rest, else the one that has rested the longest, if that
    /// is long enough. With the network's new cursor.
    fn next(&mut self, network: &Network) -> Result<(Ipv4Addr, u32), Lack> {
        let name = &network.spec.name;
        let subnet = network.subnet.ok_or_else(|| Lack::of(format!("network {name} has no subnet: none is free")))?;
        let addresses = self.by_network.entry(network.id.clone()).or_default();
        if let Some(lack) = &addresses.exhausted {
            return Err(lack.clone());
        }
        let is_nobodys = |ip: &u32| !addresses.held.contains_key(ip) && !addresses.reserved.contains_key(ip);
        let found = ipam::address(subnet, network.ip_cursor, |ip| is_nobodys(&ip) && !addresses.resting.contains_key(&ip));
        if let Some(found) = found {
            return Ok(found);
        }
        let in_subnet = |ip: u32| ipam::is_given_out(subnet, Ipv4Addr::from(ip));
        let rested = addresses.resting.iter().filter(|(ip, _)| is_nobodys(ip) && in_subnet(**ip));
        let resting = rested.clone().count();
        if let Some((ip, Resting { since_ms, .. })) = rested.min_by_key(|(_, resting)| resting.since_ms) {
            let free_at_ms = since_ms.saturating_add(REST_LEAST_MS);
            if free_at_ms <= self.now_ms {
                return Ok((Ipv4Addr::from(*ip), network.ip_cursor));
            }
            self.free_at_ms = Some(self.free_at_ms.map_or(free_at_ms, |earlier| earlier.min(free_at_ms)));
        }
        let size = subnet_size(subnet);
        let reserved = addresses.reserved.keys().filter(|ip| !addresses.held.contains_key(*ip) && in_subnet(**ip)).count();
        let mut now = format!(": {} of {size} in use", size as usize - resting - reserved);
        for (count, what) in [(resting, "just freed"), (reserved, "kept for services by their ip")] {
            if count > 0 {
                now.push_str(&format!(", {count} {what}"));
            }
        }
        now.push_str(&format!("; its subnet is {subnet}"));
        if network.spec.subnet.is_none() {
            now.push_str(&format!(" ({})", self.pools()));
        }
        let lack = Lack { reason: format!("network {name} has no free address"), now };
        self.by_network.entry(network.id.clone()).or_default().exhausted = Some(lack.clone());
        Err(lack)
    }

    /// The static address, if nobody else has it or had it just now.
    fn fixed(&mut self, network: &Network, ip: Ipv4Addr, task: &Task) -> Result<Ipv4Addr, String> {
        let name = &network.spec.name;
        if !network.subnet.is_some_and(|subnet| ipam::is_given_out(subnet, ip)) {
            return Err(format!("{ip} is no address of network {name} that a task can have"));
        }
        let addresses = self.by_network.entry(network.id.clone()).or_default();
        if let Some(holder) = addresses.held.get(&u32::from(ip)) {
            return Err(format!("{ip} on network {name} is held by {holder}; if its node is lost for good, rclusterctl node rm frees it"));
        }
        // Who had it last was the service's own task: to everyone it is the same endpoint.
        let others = addresses.resting.get(&u32::from(ip)).filter(|resting| *resting.service != task.service_id);
        let free_at_ms = others.map_or(0, |resting| resting.since_ms.saturating_add(REST_LEAST_MS));
        if free_at_ms > self.now_ms {
            self.free_at_ms = Some(self.free_at_ms.map_or(free_at_ms, |earlier| earlier.min(free_at_ms)));
            return Err(format!("{ip} on network {name} was another service's until just now"));
        }
        Ok(ip)
    }

    fn pools(&mut self) -> &str {
        let state = self.state;
        self.pools.get_or_insert_with(|| {
            let taken = taken(state);
            pools(state).iter().map(|pool| usage(pool, &taken)).collect::<Vec<_>>().join("; ")
        })
    }
}
