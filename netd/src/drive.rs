//! The one owner of the node's dataplane: a thread that takes commands one at a time, compiles what the picture and the pods call for, and
//! makes the kernel hold it.
//!
//! After each command only the difference to what is believed of the kernel is carried out. After a picture, at the start and at each
//! check the kernel is read back whole, and what differs is mended and counted as a repair. Pictures are full and only rise; nothing
//! is removed because one did not come. Never: waits for anyone but the kernel and the disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rcluster_api::wire::v1;
use rcluster_base::ledger::LedgerError;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::core::dataplane::{Dataplane, compile};
use crate::core::links::{RESOLVER, Underlay, veth_name, vxlan_name};
use crate::core::names::{self, NetworkNames};
use crate::core::neighbours::held_twice;
use crate::core::picture::{Attachment, Attachments, Membership, Picture};
use crate::core::plan::{Op, Plan, plan};
use crate::dns::{Board, SharedBoard};
use crate::kernel::linux::ROUTER;
use crate::kernel::{Kernel, KernelError, Pods};
use crate::store::Store;

/// Problems told of one kind; the rest are counted.
const PROBLEMS_MAX: usize = 20;

/// Ticks between two regular checks.
const CHECK_TICKS: u32 = 30;

/// Ticks after which a device is removed by hand that should have gone with its pod's namespace: the kernel keeps a namespace, devices
/// and all, while a connection in it is still closing, which can take a minute.
const LEAVING_TICKS: u32 = 5;

const TASK_ID_BYTES_MAX: usize = 200;

/// Networks of one pod.
const POD_NETWORKS_MAX: usize = 32;

/// Why a command was not obeyed.
#[derive(Debug, Error)]
pub enum Refusal {
    #[error("{0}")]
    Invalid(String),
    /// Will work later, unchanged.
    #[error("{0}")]
    NotYet(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Failed(String),
}

/// What the owner can be told. The sender may have gone when the answer is there; that is its business.
#[derive(Debug)]
pub enum Command {
    ApplyView {
        view: v1::NetView,
        reply: oneshot::Sender<Result<v1::ApplyViewResponse, Refusal>>,
    },
    Attach {
        request: v1::AttachRequest,
        reply: oneshot::Sender<Result<v1::AttachResponse, Refusal>>,
    },
    Detach {
        task_id: String,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    Status {
        reply: oneshot::Sender<v1::NetdStatusResponse>,
    },
    /// A second has passed.
    Tick,
}

/// The owner's state.
pub struct Owner<K> {
    kernel: K,
    store: Store,
    shared: SharedBoard,
    pins: PathBuf,
    underlay: Underlay,
    picture: Picture,
    attachments: Attachments,
    /// Names by network, as `picture` has them.
    names: BTreeMap<String, Arc<NetworkNames>>,
    /// What the kernel is believed to hold.
    held: Dataplane,
    /// Devices that the kernel is taking down with their pods' namespaces, with the ticks they have been given.
    leaving: BTreeMap<String, u32>,
    patience: Patience,
    repairs: u64,
    picture_problems: Vec<String>,
    kernel_problems: Vec<String>,
}

/// How soon the kernel is read back and mended: regularly, and sooner, ever less so, while something could not be done.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Since the last check.
    ticks: u32,
    /// At which the next check is due.
    due: u32,
}

impl Patience {
    const FULL: Self = Self { ticks: 0, due: CHECK_TICKS };

    const NONE: Self = Self { ticks: 0, due: 1 };

    /// After a check that left problems, or none.
    fn after(self, settled: bool) -> Self {
        if settled { Self::FULL } else { Self { ticks: 0, due: (self.due * 2).min(CHECK_TICKS) } }
    }
}

/// What an owner is made of.
pub struct Parts<K> {
    pub kernel: K,
    pub store: Store,
    pub shared: SharedBoard,
    /// R/netns.
    pub pins: PathBuf,
    pub underlay: Underlay,
    /// Whether the router namespace was there already, so that differences are repairs.
    pub adopted: bool,
}

/// Why the owner could not take over.
#[derive(Debug, Error)]
pub enum StartError {
    #[error("read what netd remembers; move the file away to start without it")]
    Store(#[from] LedgerError),
    #[error("read the kernel's state")]
    Observe(#[from] KernelError),
    #[error("set up the router namespace: {0}")]
    Foundations(String),
}

impl<K: Kernel> Owner<K> {
    /// Takes over: what is remembered is in force again, and the kernel holds it.
    pub fn start(parts: Parts<K>) -> Result<Self, StartError> {
        let Parts { mut kernel, store, shared, pins, underlay, adopted } = parts;
        let picture = store.load_picture()?;
        let mut attachments = store.load_attachments()?;
        let observed = kernel.observe(Pods::Look)?;
        attachments.retain(|task_id, _| {
            let pinned = observed.pods.contains_key(task_id);
            if !pinned {
                warn!(task_id, "the pod's namespace is gone; it has to be attached again");
            }
            pinned
        });
        store.save_attachments(&attachments)?;
        let names = names::networks(&picture);
        let mut owner = Self {
            kernel,
            store,
            shared,
            pins,
            underlay,
            picture,
            attachments,
            names,
            held: Dataplane::default(),
            leaving: BTreeMap::new(),
            patience: Patience::FULL,
            repairs: 0,
            picture_problems: Vec::new(),
            kernel_problems: Vec::new(),
        };
        let mended = owner.mend(observed);
        if adopted {
            owner.repairs = mended;
        }
        let (term, revision) = owner.picture.version();
        info!(term, revision, pods = owner.attachments.len(), adopted, "dataplane taken over");
        if owner.held.resolver && owner.held.forwarding && !owner.held.rules.chains.is_empty() {
            Ok(owner)
        } else {
            Err(StartError::Foundations(owner.kernel_problems.join("; ")))
        }
    }

    /// The kernel, for what is not the owner's loop's business.
    pub fn kernel(&self) -> &K {
        &self.kernel
    }

    /// Obeys until every sender is gone.
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            self.handle(command);
        }
    }

    /// One command.
    pub fn handle(&mut self, command: Command) {
        match command {
            Command::ApplyView { view, reply } => drop(reply.send(self.apply_view(&view))),
            Command::Attach { request, reply } => drop(reply.send(self.attach(&request))),
            Command::Detach { task_id, reply } => drop(reply.send(self.detach(&task_id))),
            Command::Status { reply } => drop(reply.send(self.status())),
            Command::Tick => self.tick(),
        }
    }

    fn apply_view(&mut self, view: &v1::NetView) -> Result<v1::ApplyViewResponse, Refusal> {
        if view.node_id.is_empty() {
            return Err(Refusal::Invalid("the picture does not say for which node it is".to_owned()));
        }
        let asked = (view.term, view.revision);
        // A node that was given a new id is in a new order of pictures.
        if self.picture.node_id == view.node_id && asked < self.picture.version() {
            debug!(?asked, in_force = ?self.picture.version(), "older picture refused");
            return Ok(self.view_response());
        }
        let (mut picture, mut problems) = Picture::parse(view);
        picture.retain_attached(&self.picture, &self.attachments);
        if let Err(error) = self.store.save_picture(&picture) {
            problems.push(format!("the picture is in force but not remembered over a restart: {}", in_full(&error)));
        }
        problems.extend(held_twice(&picture, &self.attachments, &self.underlay));
        self.picture = picture;
        self.picture_problems = problems;
        self.names = names::networks(&self.picture);
        let steps = plan(&self.wanted(), &self.held);
        self.carry_out(&steps);
        self.verify();
        info!(term = asked.0, revision = asked.1, added = steps.add.len(), removed = steps.remove.len(), "picture in force");
        Ok(self.view_response())
    }

    fn view_response(&self) -> v1::ApplyViewResponse {
        let (term, revision) = self.picture.version();
        v1::ApplyViewResponse { term, revision, problems: self.problems() }
    }

    fn attach(&mut self, request: &v1::AttachRequest) -> Result<v1::AttachResponse, Refusal> {
        let attachment = self.parse_attachment(request)?;
        let task_id = &request.task_id;
        match self.attachments.get(task_id) {
            Some(present) if *present == attachment => return Ok(self.attach_response(task_id, &attachment)),
            Some(present) => {
                return Err(Refusal::Conflict(format!(
                    "task {task_id} is attached already, with {}; detach it before attaching it otherwise",
                    in_words(present)
                )));
            }
            None => {}
        }
        self.check_addresses(task_id, &attachment)?;
        let links = self.links_of(task_id, &attachment);
        self.leaving.retain(|link, _| !links.contains(link));
        self.attachments.insert(task_id.clone(), attachment.clone());
        let remembered = self.store.save_attachments(&self.attachments).map_err(|error| in_full(&error));
        let attached = remembered.and_then(|()| {
            let steps = plan(&self.wanted(), &self.held);
            let failed = self.carry_out(&steps);
            let first = failed.into_iter().find(|(op, _)| op.concerns(task_id, &links));
            first.map_or(Ok(()), |(_, why)| Err(why))
        });
        match attached {
            Ok(()) => {
                info!(task_id, networks = in_words(&attachment), "pod attached");
                Ok(self.attach_response(task_id, &attachment))
            }
            Err(why) => {
                self.detach(task_id)?;
                Err(Refusal::Failed(format!("task {task_id} could not be attached and nothing of it is left: {why}")))
            }
        }
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
                "{task_id:?} cannot name a pod's namespace: 1 to {TASK_ID_BYTES_MAX} letters, digits, '-', '_', '.', not first a dot, and not {ROUTER:?}"
            )));
        }
        if request.networks.len() > POD_NETWORKS_MAX {
            return Err(Refusal::Invalid(format!(
                "task {task_id} asks for {} networks; a pod has at most {POD_NETWORKS_MAX}",
                request.networks.len()
            )));
        }
        let mut attachment = Attachment::default();
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
            search: names::search(networks),
            mtu: self.underlay.overlay_mtu,
        }
    }

    fn detach(&mut self, task_id: &str) -> Result<(), Refusal> {
        let Some(attachment) = self.attachments.remove(task_id) else { return Ok(()) };
        let forgotten = self.store.save_attachments(&self.attachments);
        let before = self.picture.networks.len();
        self.picture.release_detached(&self.attachments);
        if self.picture.networks.len() != before {
            self.names = names::networks(&self.picture);
            if let Err(error) = self.store.save_picture(&self.picture) {
                self.picture_problems.push(format!("a network that is gone is still remembered: {}", in_full(&error)));
            }
        }
        let failed = self.carry_out(&plan(&self.wanted(), &self.held));
        for membership in &attachment.networks {
            self.leaving.insert(veth_name(task_id, &membership.network_id), 0);
        }
        info!(task_id, "pod detached");
        let links = self.links_of(task_id, &attachment);
        match (forgotten, failed.into_iter().find(|(op, _)| op.concerns(task_id, &links))) {
            (Err(error), _) => Err(Refusal::Failed(format!("task {task_id} is detached but still remembered: {}", in_full(&error)))),
            (Ok(()), Some((_, why))) => Err(Refusal::Failed(format!("task {task_id} is detached, but something of it is left: {why}"))),
            (Ok(()), None) => Ok(()),
        }
    }

    fn status(&self) -> v1::NetdStatusResponse {
        let attachment = |(task_id, attachment): (&String, &Attachment)| v1::Attachment {
            task_id: task_id.clone(),
            netns_path: self.pins.join(task_id).display().to_string(),
            networks: attachment
                .networks
                .iter()
                .map(|membership| v1::AttachNetwork { network_id: membership.network_id.clone(), ip: membership.ip.to_string() })
                .collect(),
        };
        let (term, revision) = self.picture.version();
        v1::NetdStatusResponse {
            term,
            revision,
            attachments: self.attachments.iter().map(attachment).collect(),
            problems: self.problems(),
            mtu: self.underlay.overlay_mtu,
            dns_queries: self.shared.queries.load(Ordering::Relaxed),
            repairs: self.repairs,
        }
    }

    fn problems(&self) -> Vec<String> {
        [bounded(&self.picture_problems), bounded(&self.kernel_problems)].concat()
    }

    fn wanted(&self) -> Dataplane {
        compile(&self.picture, &self.attachments, &self.underlay)
    }

    fn tick(&mut self) {
        self.patience.ticks += 1;
        for ticks in self.leaving.values_mut() {
            *ticks += 1;
        }
        let overstayed = self.leaving.values().any(|ticks| *ticks >= LEAVING_TICKS);
        if overstayed || self.patience.ticks >= self.patience.due {
            let patience = self.patience;
            self.check();
            self.patience = patience.after(self.kernel_problems.is_empty());
        }
    }

    /// Reads the kernel back, pods included, and mends it; the underlay's MTU is followed.
    fn check(&mut self) {
        match self.kernel.overlay_mtu() {
            Ok(overlay_mtu) if overlay_mtu != self.underlay.overlay_mtu => {
                info!(from = self.underlay.overlay_mtu, to = overlay_mtu, "the underlay's MTU changed");
                self.underlay.overlay_mtu = overlay_mtu;
                let steps = plan(&self.wanted(), &self.held);
                self.carry_out(&steps);
            }
            Ok(_) => {}
            Err(error) => warn!(error = in_full(&error), "the underlay's MTU could not be read"),
        }
        match self.kernel.observe(Pods::Look) {
            Ok(observed) => {
                self.leaving.retain(|link, ticks| observed.links.contains_key(link) && *ticks < LEAVING_TICKS);
                self.repairs += self.mend(observed);
            }
            Err(error) => self.kernel_problems = vec![format!("the kernel's state could not be read: {}", in_full(&error))],
        }
    }

    /// Reads the kernel back after a picture, and mends it.
    fn verify(&mut self) {
        match self.kernel.observe(Pods::Believe(&self.held.pods)) {
            Ok(observed) => self.repairs += self.mend(observed),
            Err(error) => self.kernel_problems = vec![format!("the kernel's state could not be read: {}", in_full(&error))],
        }
    }

    /// From what was observed to what is wanted; how many entries were mended.
    fn mend(&mut self, mut observed: Dataplane) -> u64 {
        observed.links.retain(|link, _| !self.leaving.contains_key(link));
        self.held = observed;
        let steps = plan(&self.wanted(), &self.held);
        for op in steps.add.iter().chain(&steps.remove) {
            debug!(%op, "the kernel differs from the picture");
        }
        let failed = self.carry_out(&steps);
        let done = steps.add.len() + if self.may_remove() { steps.remove.len() } else { 0 } - failed.len();
        if done > 0 {
            info!(mended = done, "the kernel differed from what is wanted and was mended");
        }
        let was_settled = self.kernel_problems.is_empty();
        self.kernel_problems = failed.into_iter().map(|(_, why)| why).collect();
        if was_settled && !self.kernel_problems.is_empty() {
            self.patience = Patience::NONE;
        }
        u64::try_from(done).unwrap_or(u64::MAX)
    }

    /// Without a picture there is nothing to say what is too much.
    fn may_remove(&self) -> bool {
        !self.picture.node_id.is_empty() || self.attachments.is_empty()
    }

    /// Additions, then DNS, then removals; what failed, and why.
    fn carry_out(&mut self, steps: &Plan) -> Vec<(Op, String)> {
        let mut failed = self.apply(&steps.add);
        self.publish();
        if self.may_remove() {
            failed.extend(self.apply(&steps.remove));
        }
        for (op, why) in &failed {
            warn!(%op, why, "the kernel was not changed as planned");
        }
        failed
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<(Op, String)> {
        let failures: BTreeMap<usize, String> =
            self.kernel.apply(ops).into_iter().map(|failure| (failure.index, in_full(&failure.error))).collect();
        for (index, op) in ops.iter().enumerate() {
            if !failures.contains_key(&index) {
                self.held.absorb(op);
            }
        }
        failures.into_iter().filter_map(|(index, why)| ops.get(index).map(|op| (op.clone(), why))).collect()
    }

    /// DNS answers by the picture and the pods from here on.
    fn publish(&mut self) {
        let indexes = self.kernel.indexes().into_iter().map(|(index, name)| (name, index)).collect();
        let sights = names::sights(&self.names, &self.attachments);
        self.shared.board.store(Arc::new(Board::new(&sights, &self.attachments, &indexes)));
    }
}

fn bounded(problems: &[String]) -> Vec<String> {
    let mut told: Vec<String> = problems.iter().take(PROBLEMS_MAX).cloned().collect();
    if problems.len() > PROBLEMS_MAX {
        told.push(format!("and {} more", problems.len() - PROBLEMS_MAX));
    }
    told
}

fn in_words(attachment: &Attachment) -> String {
    let words: Vec<String> =
        attachment.networks.iter().map(|membership| format!("{} on {}", membership.ip, membership.network_id)).collect();
    if words.is_empty() { "no network".to_owned() } else { words.join(", ") }
}

/// An error with its causes, on one line.
pub fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[path = "drive_tests.rs"]
mod tests;
