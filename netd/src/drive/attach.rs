//! Pods that come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use rcluster_api::wire::v1;
use tracing::{info, warn};

use super::{LINGER_TICKS_MAX, Owner, Patience, Refusal, in_full};
use crate::core::dataplane::{Dataplane, compile_part};
use crate::core::encryption;
use crate::core::flows;
use crate::core::foreign::RESOLVERS_MAX;
use crate::core::links::{RESOLVER, veth_name, vxlan_name};
use crate::core::names::{self, NetworkNames};
use crate::core::picture::{Attachment, Membership};
use crate::core::plan::{Op, plan, plan_part};
use crate::kernel::Kernel;
use crate::kernel::linux::ROUTER;

const TASK_ID_BYTES_MAX: usize = 200;

/// Networks of one pod.
const POD_NETWORKS_MAX: usize = 32;

impl<K: Kernel> Owner<K> {
    pub(super) fn attach(&mut self, request: &v1::AttachRequest) -> Result<v1::AttachResponse, Refusal> {
        let attachment = self.parse_attachment(request)?;
        let task_id = &request.task_id;
        self.end_lingering_of(|other, pod| {
            let holds = |ip| attachment.networks.iter().any(|membership| membership.ip == ip);
            other == task_id || pod.networks.iter().any(|membership| holds(membership.ip))
        });
        match self.attachments.get(task_id) {
            Some(present) if (&present.networks, &present.dns) == (&attachment.networks, &attachment.dns) => {
                return Ok(self.attach_response(task_id, &attachment));
            }
            Some(present) => {
                return Err(Refusal::Conflict(format!(
                    "task {task_id} is attached already, with {}; detach it before attaching it otherwise",
                    in_words(present)
                )));
            }
            None => {}
        }
        self.check_addresses(task_id, &attachment)?;
        self.check_encryption(&attachment)?;
        self.clear_for(&attachment);
        let links = self.links_of(task_id, &attachment);
        self.leaving.retain(|link, _| !links.contains(link));
        let networks = attachment.network_ids();
        let before = self.part(&networks);
        self.attachments.insert(task_id.clone(), attachment.clone());
        self.rename(&attachment);
        let remembered = self.store.save_attachments(&self.attachments).map_err(|error| in_full(&error));
        let attached = remembered.and_then(|()| {
            let failed = self.change(&networks, &before);
            let first = failed.into_iter().find(|(op, _)| op.concerns(task_id, &links));
            first.map_or(Ok(()), |(_, why)| Err(why))
        });
        match attached {
            Ok(()) => {
                info!(task_id, networks = in_words(&attachment), "pod attached");
                Ok(self.attach_response(task_id, &attachment))
            }
            Err(why) => {
                self.remove(task_id)?;
                Err(Refusal::Failed(format!("task {task_id} could not be attached and nothing of it is left: {why}")))
            }
        }
    }

    /// Asks for the pod's devices in the router, which has the kernel see to them.
    pub(super) fn without_carrier(&mut self, task_id: &str) -> Vec<String> {
        let memberships = self.attachments.get(task_id).into_iter().flat_map(|pod| &pod.networks);
        let links: Vec<String> = memberships.map(|membership| veth_name(task_id, &membership.network_id)).collect();
        self.kernel.without_carrier(&links)
    }

    fn parse_attachment(&self, request: &v1::AttachRequest) -> Result<Attachment, Refusal> {
        let task_id = &request.task_id;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if task_id.is_empty()
            || task_id.len() > TASK_ID_BYTES_MAX
            || task_id.starts_with('.')
            || task_id == ROUTER
            || !task_id.bytes().all(plain)
        {
            return Err(Refusal::Invalid(format!(
                "{task_id:?} cannot name a pod's namespace: 1 to {TASK_ID_BYTES_MAX} letters, digits, '-', '_', '.', not first a dot, and not \
                 {ROUTER:?}"
            )));
        }
        if request.networks.len() > POD_NETWORKS_MAX {
            return Err(Refusal::Invalid(format!(
                "task {task_id} asks for {} networks; a pod has at most {POD_NETWORKS_MAX}",
                request.networks.len()
            )));
        }
        if request.dns.len() > RESOLVERS_MAX {
            return Err(Refusal::Invalid(format!(
                "task {task_id} names {} resolvers; a pod has at most {RESOLVERS_MAX}",
                request.dns.len()
            )));
        }
        let resolver = |text: &String| {
            text.parse::<IpAddr>().map_err(|_| Refusal::Invalid(format!("{text:?} is no address of a resolver for task {task_id}")))
        };
        let dns = request.dns.iter().map(resolver).collect::<Result<Vec<_>, _>>()?;
        let mut attachment = Attachment { dns, ..Attachment::default() };
        for wire in &request.networks {
            let id = &wire.network_id;
            let (term, revision) = self.picture.version();
            let known = self.attachments.get(task_id).is_some_and(|present| present.networks.iter().any(|m| m.network_id == *id));
            let network = self.picture.networks.get(id);
            if network.is_none() && !known {
                return Err(Refusal::NotYet(format!(
                    "network {id} is not in this node's picture (term {term}, revision {revision}); attach again when a newer one is in force"
                )));
            }
            let ip = wire.ip.parse().map_err(|_| Refusal::Invalid(format!("{:?} is not an IPv4 address for task {task_id}", wire.ip)))?;
            if let Some(network) = network.filter(|network| !network.subnet.contains(&ip)) {
                return Err(Refusal::Invalid(format!("{ip} is not in {}, the subnet of network {}", network.subnet, network.name)));
            }
            if attachment.networks.iter().any(|membership| membership.network_id == *id) {
                return Err(Refusal::Invalid(format!("task {task_id} asks for network {id} twice")));
            }
            attachment.networks.push(Membership { network_id: id.clone(), ip });
        }
        Ok(attachment)
    }

    fn check_addresses(&self, task_id: &str, attachment: &Attachment) -> Result<(), Refusal> {
        for membership in &attachment.networks {
            let holder = self.attachments.iter().find(|(_, other)| other.networks.iter().any(|held| held.ip == membership.ip));
            if let Some((holder, _)) = holder {
                return Err(Refusal::Conflict(format!(
                    "{} is held by task {holder} on this node; detach it before attaching task {task_id}",
                    membership.ip
                )));
            }
        }
        Ok(())
    }

    /// A pod of an encrypted network has somebody to encrypt for it.
    fn check_encryption(&self, attachment: &Attachment) -> Result<(), Refusal> {
        let mut networks = attachment.networks.iter().filter_map(|membership| self.picture.networks.get(&membership.network_id));
        let Some(network) = networks.find(|network| network.encrypted) else { return Ok(()) };
        let why = match &self.no_encryption {
            Some(why) => why.as_str(),
            None if encryption::is_ready(&self.picture, &self.held.host.tunnels) => return Ok(()),
            None => "its tunnel is not there",
        };
        Err(Refusal::NotYet(format!("network {} is encrypted, and this node has no part in it: {why}", network.name)))
    }

    /// The devices on which a pod depends.
    fn links_of(&self, task_id: &str, attachment: &Attachment) -> Vec<String> {
        let memberships = attachment.networks.iter();
        memberships
            .flat_map(|membership| {
                let vxlan = self.picture.networks.get(&membership.network_id).map(|network| vxlan_name(network.vni));
                [veth_name(task_id, &membership.network_id)].into_iter().chain(vxlan)
            })
            .collect()
    }

    fn attach_response(&self, task_id: &str, attachment: &Attachment) -> v1::AttachResponse {
        let networks = attachment.networks.iter().filter_map(|membership| self.picture.networks.get(&membership.network_id));
        v1::AttachResponse {
            netns_path: self.pins.join(task_id).display().to_string(),
            dns: if attachment.networks.is_empty() { String::new() } else { RESOLVER.to_string() },
            mtu: networks.clone().map(|network| encryption::mtu(Some(network), &self.underlay)).min().unwrap_or(self.underlay.overlay_mtu),
            search: names::search(networks),
        }
    }

    /// The part of what is wanted that changes with a pod on these networks.
    fn part(&self, networks: &BTreeSet<&str>) -> Dataplane {
        compile_part(&self.picture, &self.attachments, &self.underlay, networks)
    }

    /// Brings the kernel from where `before` was that part to where it is what it is now; what failed, and why. It costs what the pod's networks
    /// hold, not what all of them do; where more is to be done, because something could not be before, all of it is planned.
    fn change(&mut self, networks: &BTreeSet<&str>, before: &Dataplane) -> Vec<(Op, String)> {
        let after = self.part(networks);
        self.misleads |= self.picture.published_on(networks).next().is_some();
        let is_settled = self.kernel_problems.is_empty();
        let steps =
            if is_settled && before.host == after.host { plan_part(before, &after, &self.held) } else { plan(&self.wanted(), &self.held) };
        let failed = self.carry_out(&steps);
        if is_settled && !failed.is_empty() {
            self.patience = Patience::NONE;
        }
        failed
    }

    /// The names of networks in which the picture calls this pod serving, now that it has come or gone.
    fn rename(&mut self, attachment: &Attachment) {
        for membership in &attachment.networks {
            let Some(network) = self.picture.networks.get(&membership.network_id) else { continue };
            if network.endpoints.get(&membership.ip).is_some_and(|endpoint| endpoint.serving) {
                let names = NetworkNames::new(&self.picture, network, &self.attachments);
                self.names.insert(membership.network_id.clone(), Arc::new(names));
            }
        }
    }

    /// Nobody here is to begin anything with the pod any more: it is not named, and nothing chooses it. All else of it stays.
    pub(super) fn leave(&mut self, task_id: &str) -> Result<(), Refusal> {
        let Some(pod) = self.attachments.get(task_id).cloned() else { return Ok(()) };
        if !pod.left {
            let networks = pod.network_ids();
            let before = self.part(&networks);
            self.attachments.insert(task_id.to_owned(), Attachment { left: true, ..pod.clone() });
            self.rename(&pod);
            // What cannot be done of it the next check does.
            self.change(&networks, &before);
            if flows::serves(&self.picture, &pod) {
                self.strand(BTreeSet::new());
            }
            info!(task_id, "pod has left");
        }
        self.remember(task_id)
    }

    /// The pod is not named any more at once, and removed after some time in which the kernel goes on with what is under way.
    pub(super) fn detach(&mut self, task_id: &str, linger_ms: u64) -> Result<(), Refusal> {
        if linger_ms == 0 {
            return self.remove(task_id);
        }
        self.leave(task_id)?;
        let Some(pod) = self.attachments.get_mut(task_id) else { return Ok(()) };
        if pod.lingers.is_none() {
            // The next tick may be about to come: it does not count.
            let ticks = u32::try_from(linger_ms.div_ceil(1000)).unwrap_or(LINGER_TICKS_MAX).min(LINGER_TICKS_MAX) + 1;
            pod.lingers = Some(ticks);
            info!(task_id, linger_ms, "pod detached");
        }
        self.remember(task_id)
    }

    fn remember(&self, task_id: &str) -> Result<(), Refusal> {
        self.store
            .save_attachments(&self.attachments)
            .map_err(|error| Refusal::Failed(format!("task {task_id} has left, but only until netd restarts: {}", in_full(&error))))
    }

    /// Another tick has passed for the pods that were detached.
    pub(super) fn end_lingering(&mut self) {
        for ticks in self.attachments.values_mut().filter_map(|pod| pod.lingers.as_mut()) {
            *ticks = ticks.saturating_sub(1);
        }
        self.end_lingering_of(|_, pod| pod.lingers == Some(0));
    }

    /// Removes those of the detached pods now.
    pub(super) fn end_lingering_of(&mut self, is_one: impl Fn(&String, &Attachment) -> bool) {
        let pods = self.attachments.iter().filter(|(task_id, pod)| pod.lingers.is_some() && is_one(task_id, pod));
        for task_id in pods.map(|(task_id, _)| task_id.clone()).collect::<Vec<_>>() {
            if let Err(error) = self.remove(&task_id) {
                warn!(%error, "the regular check goes on with it");
            }
        }
    }

    /// Of both families, as far as its network is known.
    fn addresses(&self, membership: &Membership) -> BTreeSet<IpAddr> {
        let network = self.picture.networks.get(&membership.network_id);
        network.map_or_else(|| BTreeSet::from([membership.ip.into()]), |network| network.addresses(membership.ip).collect())
    }

    /// Nothing of the pod stays.
    fn remove(&mut self, task_id: &str) -> Result<(), Refusal> {
        let Some(attachment) = self.attachments.get(task_id).cloned() else { return Ok(()) };
        let networks = attachment.network_ids();
        let before = self.part(&networks);
        let gone = attachment.networks.iter().flat_map(|membership| self.addresses(membership)).collect();
        self.attachments.remove(task_id);
        let forgotten = self.store.save_attachments(&self.attachments);
        let known = self.picture.networks.len();
        self.picture.release_detached(&self.attachments);
        if self.picture.networks.len() != known {
            self.names.retain(|id, _| self.picture.networks.contains_key(id));
            if let Err(error) = self.store.save_picture(&self.picture) {
                self.picture_problems.push(format!("a network that is gone is still remembered: {}", in_full(&error)));
            }
        }
        self.rename(&attachment);
        let failed = self.change(&networks, &before);
        if !attachment.networks.is_empty() {
            self.strand(gone);
        }
        for membership in &attachment.networks {
            self.leaving.insert(veth_name(task_id, &membership.network_id), 0);
        }
        info!(task_id, "pod removed");
        let links = self.links_of(task_id, &attachment);
        match (forgotten, failed.into_iter().find(|(op, _)| op.concerns(task_id, &links))) {
            (Err(error), _) => Err(Refusal::Failed(format!("task {task_id} is detached but still remembered: {}", in_full(&error)))),
            (Ok(()), Some((_, why))) => Err(Refusal::Failed(format!("task {task_id} is detached, but something of it is left: {why}"))),
            (Ok(()), None) => Ok(()),
        }
    }
}

fn in_words(attachment: &Attachment) -> String {
    let networks = attachment.networks.iter().map(|membership| format!("{} on {}", membership.ip, membership.network_id));
    let words: Vec<String> = networks.chain(attachment.dns.iter().map(|ip| format!("{ip} to ask"))).collect();
    if words.is_empty() { "no network".to_owned() } else { words.join(", ") }
}
