//! Looks that change nothing: what is to be held and what is, and what becomes of a pod's packets.

use std::collections::{BTreeMap, BTreeSet};

use rcluster_api::wire::v1;

use super::{Owner, Refusal, unread};
use crate::core::dataplane::compile;
use crate::core::dump::{self, Entry};
use crate::core::flows::{self, Transport};
use crate::core::names::{self, Sight};
use crate::core::picture::Picture;
use crate::core::trace::{self, Ground, Target, Trace};
use crate::core::uplink;
use crate::dns::{Asker, Board};
use crate::kernel::{Kernel, KernelError, Pods};

impl<K: Kernel> Owner<K> {
    /// What is wanted, by the view that is given or by the one in force, and what the kernel and DNS hold.
    pub(super) fn dump(&mut self, request: &v1::DumpRequest) -> Result<v1::DumpResponse, Refusal> {
        let v1::DumpRequest { conntrack, view } = request;
        let picture = match view {
            Some(view) => self.would_be(view)?,
            None => self.picture.clone(),
        };
        let failed = |error: KernelError| Refusal::Failed(unread(&error));
        let wanted = compile(&picture, &self.attachments, &self.underlay);
        let mut held = self.kernel.observe(Pods::Look).map_err(failed)?;
        held.links.retain(|link, _| !self.leaving.contains_key(link));
        // A host that forwards for reasons of its own is let be.
        held.host.forwarding &= wanted.host.forwarding;
        held.host.forwarding6 = held.host.forwarding6.min(wanted.host.forwarding6);
        let stale = if *conntrack {
            self.kernel.flows(&flows::stale(&picture, &self.attachments, &BTreeSet::new())).map_err(failed)?
        } else {
            Vec::new()
        };
        let (term, revision) = self.picture.version();
        Ok(v1::DumpResponse {
            term,
            revision,
            wanted: entries([self.zone_wanted(&picture), dump::dataplane(&wanted), dump::endpoints_wanted(&picture, &self.attachments)]),
            held: entries([
                self.zone_held(),
                dump::dataplane(&held),
                dump::endpoints_held(&picture, &self.attachments),
                dump::flows(&stale),
            ]),
            problems: self.problems(),
        })
    }

    /// What would be in force if that view came.
    fn would_be(&self, view: &v1::NetView) -> Result<Picture, Refusal> {
        let own = &self.picture.node_id;
        if !own.is_empty() && *own != view.node_id {
            return Err(Refusal::Invalid(format!("the view is for node {}, and this is {own}", view.node_id)));
        }
        let (mut picture, _) = Picture::parse(view);
        picture.inherit(&self.picture, &self.attachments);
        Ok(picture)
    }

    fn zone_wanted(&self, picture: &Picture) -> Vec<Entry> {
        let sights = names::sights(&names::networks(picture, &self.attachments), &self.attachments, uplink::inside(picture));
        zone(Board::new(&sights, &self.attachments, &BTreeMap::new()).by_address.values())
    }

    fn zone_held(&self) -> Vec<Entry> {
        zone(self.shared.board.load().by_index.values())
    }

    /// What becomes of what a pod sends to a name or an address.
    pub(super) fn trace(&self, request: &v1::TraceRequest) -> Result<v1::TraceResponse, Refusal> {
        let v1::TraceRequest { task_id, target, protocol } = request;
        if target.is_empty() {
            return Err(Refusal::Invalid("a trace needs a name or an address to which it leads".to_owned()));
        }
        let transport = match v1::Protocol::try_from(*protocol) {
            Ok(v1::Protocol::Unspecified) => None,
            Ok(v1::Protocol::Tcp) => Some(Transport::Tcp),
            Ok(v1::Protocol::Udp) => Some(Transport::Udp),
            Err(_) => return Err(Refusal::Invalid(format!("protocol {protocol} is not known here: this netd follows TCP and UDP"))),
        };
        let target = Target::parse(target, transport).map_err(Refusal::Invalid)?;
        let dataplane = compile(&self.picture, &self.attachments, &self.underlay);
        let sights = names::sights(&self.names, &self.attachments, uplink::inside(&self.picture));
        let nothing = Sight::default();
        let ground = Ground { picture: &self.picture, dataplane: &dataplane, sight: sights.get(task_id).unwrap_or(&nothing) };
        let Trace { steps, verdict } = trace::trace(ground, task_id, target)
            .ok_or_else(|| Refusal::Conflict(format!("task {task_id} is not attached on this node")))?;
        Ok(v1::TraceResponse { steps, verdict, protocol: *protocol })
    }
}

/// What pods are answered, without those on no network.
fn zone<'a>(askers: impl Iterator<Item = &'a Asker>) -> Vec<Entry> {
    let seeing = askers.filter(|asker| !asker.sight.networks.is_empty());
    dump::zone(seeing.map(|Asker { pod, sight }| (&*pod.id, sight, &*pod.resolvers)))
}

fn entries<const N: usize>(parts: [Vec<Entry>; N]) -> Vec<v1::NetEntry> {
    let entry = |Entry { kind, text, value }: Entry| v1::NetEntry { kind: kind.word().to_owned(), text, value };
    parts.into_iter().flatten().map(entry).collect()
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;
