//! Pictures: which one is in force, and what it takes to obey it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Instant;

use rcluster_api::wire::v1;
use tracing::{debug, info};

use super::{Owner, Refusal, in_full};
use crate::core::flows;
use crate::core::names;
use crate::core::neighbours::held_twice;
use crate::core::picture::Picture;
use crate::core::plan::plan;
use crate::core::rules::{balance, ingress, policy};
use crate::kernel::Kernel;

/// A picture as it was read, and what had to be left out of it.
#[derive(Debug)]
pub(super) struct Read {
    picture: Picture,
    problems: Vec<String>,
}

impl<K: Kernel> Owner<K> {
    /// Reads what came over the wire; `None` if a newer picture is in force.
    pub(super) fn read_view(&self, view: &v1::NetView) -> Result<Option<Read>, Refusal> {
        if view.node_id.is_empty() {
            return Err(Refusal::Invalid("the picture does not say for which node it is".to_owned()));
        }
        let asked = (view.term, view.revision);
        // A node that was given a new id is in a new order of pictures.
        if self.picture.node_id == view.node_id && asked < self.picture.version() {
            debug!(?asked, in_force = ?self.picture.version(), "older picture refused");
            return Ok(None);
        }
        let (picture, problems) = Picture::parse(view);
        Ok(Some(Read { picture, problems }))
    }

    /// Puts a picture in force. One that is given again is no news: whoever gives it wants to know that it holds.
    pub(super) fn obey(&mut self, read: Option<Read>) -> v1::ApplyViewResponse {
        let Some(Read { mut picture, mut problems }) = read else { return self.view_response() };
        let asked = picture.version();
        let again = self.picture.node_id == picture.node_id && self.picture.version() == asked;
        // An address belongs to whom the managers have given it last, however long the pod that had it was to linger.
        self.end_lingering_of(|task_id, pod| {
            pod.networks.iter().any(|membership| {
                let endpoint = picture.networks.get(&membership.network_id).and_then(|network| network.endpoints.get(&membership.ip));
                endpoint.is_some_and(|endpoint| endpoint.task_id != *task_id)
            })
        });
        picture.inherit(&self.picture, &self.attachments);
        problems.extend(held_twice(&picture, &self.attachments, &self.underlay));
        problems.extend(balance::left_out(&picture, &self.attachments));
        problems.extend(policy::too_large(&picture));
        problems.extend(ingress::left_out(&picture, &self.attachments));
        let gone = flows::gone(&self.picture, &picture, &self.attachments);
        let may_strand = !gone.is_empty() || flows::strands(&self.picture, &picture);
        self.picture = picture;
        self.misleads = true;
        self.keep_ports();
        self.names = names::networks(&self.picture, &self.attachments);
        let steps = plan(&self.wanted(), &self.held);
        let failed = self.carry_out(&steps);
        self.settle(failed.into_iter().map(|(_, why)| why).collect());
        if again {
            self.verify();
        } else {
            self.looks.ask(Instant::now());
        }
        if may_strand {
            self.strand(gone);
        }
        if let Err(error) = self.store.save_picture(&self.picture) {
            problems.push(format!("the picture is in force but not remembered over a restart: {}", in_full(&error)));
        }
        self.picture_problems = problems;
        info!(term = asked.0, revision = asked.1, added = steps.add.len(), removed = steps.remove.len(), "picture in force");
        self.view_response()
    }

    /// Asks the nodes that the managers call down, unless it has been done in vain. What is sent to one that does not answer is answered
    /// for it from here on; one that answers is cut off from the managers alone.
    pub(super) fn ask_the_dead(&mut self) {
        let unsure: BTreeSet<Ipv4Addr> = self.picture.dead_nodes().difference(&self.picture.silent).copied().collect();
        if unsure.is_empty() {
            return;
        }
        let silent = self.kernel.silent(&unsure);
        if !silent.is_empty() {
            info!(nodes = ?silent, "nodes are down: they do not answer, and the managers say so");
            self.picture.silent.extend(silent);
            let steps = plan(&self.wanted(), &self.held);
            self.carry_out(&steps);
        }
    }

    fn view_response(&self) -> v1::ApplyViewResponse {
        let (term, revision) = self.picture.version();
        v1::ApplyViewResponse { term, revision, problems: self.problems() }
    }
}
