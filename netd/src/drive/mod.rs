//! The one owner of the node's dataplane: a thread that takes commands one at a time, compiles what the picture and the pods call for, and
//! makes the kernel hold it.
//!
//! ```text
//! picture ─► plan from what is believed ─► kernel ─► DNS ─► kernel ─► run directory ─► answer ┄┄► a look
//!                                                                        └┄┄► disk (`store`)
//! ```
//!
//! After each command only the difference to what is believed of the kernel is carried out. The kernel is read back soon after a picture or a
//! change by someone else (`readback`), before the answer to a picture that is given again, and, with the pods, at the start and at each
//! regular check; what differs is mended and counted as a repair. Connections that lead nowhere any more are forgotten (`forget`). Published
//! ports that somebody else has on this host are tried again at each check.
//!
//! Pictures are full and only rise; nothing is removed because one did not come. Never: waits for anyone but the kernel, and once, for
//! 300 ms, for a node that is said to be down.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rcluster_api::network::NodeNetwork;
use rcluster_api::wire::v1;
use rcluster_base::ledger::LedgerError;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::error::Elapsed;
use tokio::time::timeout_at;
use tracing::{debug, info, warn};

use crate::core::dataplane::{Dataplane, compile};
use crate::core::encryption::{self, PublicKey};
use crate::core::flows::Transport;
use crate::core::ingress;
use crate::core::links::{SIX_MTU_MIN, Underlay, VXLAN_OVERHEAD};
use crate::core::names::{self, NetworkNames};
use crate::core::paths::Paths;
use crate::core::picture::{Attachment, Attachments, Picture};
use crate::core::plan::{Op, Plan, plan};
use crate::core::published::Opening;
use crate::core::routes;
use crate::core::uplink::{self, Forwarding};
use crate::dns::{Board, SharedBoard};
use crate::kernel::watch::News;
use crate::kernel::{HostSix, Kernel, KernelError, Pods};
use crate::store::Store;

use self::forget::Forgetting;
use self::readback::Looks;

mod view;

mod attach;

mod look;

mod forget;

mod readback;

/// Problems told of one kind; the rest are counted.
const PROBLEMS_MAX: usize = 20;

/// A transaction of the kernel fails as a whole: so many of its changes say what there is to say.
const FAILURES_TOLD: usize = 3;

/// So much of what connection tracking may have is little room left.
const CROWDED_PERCENT: u64 = 80;

/// So many times as long as it took last to read the kernel back, or its connections, nobody is kept waiting by the next time.
const REST: u32 = 4;

/// Ticks between two regular checks.
const CHECK_TICKS: u32 = 30;

/// Ticks after which a device is removed by hand that should have gone with its pod's namespace: the kernel keeps a namespace, devices
/// and all, while a connection in it is still closing, which can take a minute.
const LEAVING_TICKS: u32 = 5;

/// What is under way to a pod that was detached is delivered no longer than this.
const LINGER_TICKS_MAX: u32 = 60;

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
        reply: oneshot::Sender<Result<Attached, Refusal>>,
    },
    /// Which of these devices of the router do not send yet what they are given.
    WithoutCarrier {
        links: Vec<String>,
        reply: oneshot::Sender<Vec<String>>,
    },
    Leave {
        task_id: String,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    Detach {
        task_id: String,
        linger_ms: u64,
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    Status {
        reply: oneshot::Sender<v1::NetdStatusResponse>,
    },
    Dump {
        request: v1::DumpRequest,
        reply: oneshot::Sender<Result<v1::DumpResponse, Refusal>>,
    },
    Trace {
        request: v1::TraceRequest,
        reply: oneshot::Sender<Result<v1::TraceResponse, Refusal>>,
    },
    /// Whose paths are to be looked at now, and with packets of how many bytes.
    Paths {
        reply: oneshot::Sender<(BTreeSet<Ipv4Addr>, u16)>,
    },
    /// Those were looked at, and of them these do not carry such packets.
    Narrow {
        asked: BTreeSet<Ipv4Addr>,
        narrow: BTreeSet<Ipv4Addr>,
    },
    /// Something that is ours may have been changed by someone else.
    Look {
        news: News,
        /// Told when the kernel has been read back.
        done: oneshot::Sender<()>,
    },
    /// A second has passed.
    Tick,
}

/// A pod that is attached.
#[derive(Debug)]
pub struct Attached {
    pub response: v1::AttachResponse,
    /// Its devices in the router that do not send yet what they are given: not to be waited for here, where all others wait.
    pub without_carrier: Vec<String>,
}

/// The owner's state.
pub struct Owner<K> {
    kernel: K,
    store: Store,
    shared: SharedBoard,
    pins: PathBuf,
    underlay: Underlay,
    /// Why nothing can be encrypted here.
    no_encryption: Option<String>,
    /// The tunnels' public keys by epoch, as they were read last.
    keys: BTreeMap<u64, PublicKey>,
    picture: Picture,
    attachments: Attachments,
    /// Names by network, as `picture` and `attachments` have them.
    names: BTreeMap<String, Arc<NetworkNames>>,
    /// What the kernel is believed to hold.
    held: Dataplane,
    /// Devices that the kernel is taking down with their pods' namespaces, with the ticks they have been given.
    leaving: BTreeMap<String, u32>,
    patience: Patience,
    paths: Paths,
    /// Connection tracking has little room left: so many connections it may have.
    crowded: Option<u64>,
    /// The host's own connections may have to go elsewhere than they are led.
    misleads: bool,
    looks: Looks,
    forgetting: Forgetting,
    /// Why the host's routes could not be read.
    routes_unread: Option<String>,
    /// The host has ways by IPv6, does not forward it, and is not to be made to.
    withholds_six: bool,
    /// The host's own addresses of IPv6.
    addresses6: BTreeSet<Ipv6Addr>,
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

    /// From one check to the next while the same is wrong.
    fn longer(self) -> Self {
        Self { ticks: 0, due: (self.due * 2).min(CHECK_TICKS) }
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
        let mut picture = store.load_picture()?;
        let no_encryption = kernel.no_encryption();
        picture.cannot_encrypt = no_encryption.is_some();
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
        let names = names::networks(&picture, &attachments);
        let mut owner = Self {
            kernel,
            store,
            shared,
            pins,
            underlay,
            no_encryption,
            keys: BTreeMap::new(),
            picture,
            attachments,
            names,
            held: Dataplane::default(),
            leaving: BTreeMap::new(),
            patience: Patience::FULL,
            paths: Paths::default(),
            crowded: None,
            misleads: true,
            looks: Looks::default(),
            forgetting: Forgetting::default(),
            routes_unread: None,
            withholds_six: false,
            addresses6: BTreeSet::new(),
            repairs: 0,
            picture_problems: Vec::new(),
            kernel_problems: Vec::new(),
        };
        owner.keep_ports();
        owner.read_beyond();
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
    pub fn run(mut self, mut commands: mpsc::Receiver<Command>) -> io::Result<()> {
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        loop {
            let due = [self.looks.due(), self.forgetting.due()].into_iter().flatten().min();
            let next = match due {
                None => Ok(commands.blocking_recv()),
                Some(due) => clock.block_on(until(due, &mut commands)),
            };
            match next {
                Ok(Some(command)) => self.handle(command),
                Ok(None) => return Ok(()),
                // It is time for a look.
                Err(_) => {}
            }
            let is_now = |due: Option<Instant>| due.is_some_and(|due| due <= Instant::now());
            if is_now(self.looks.due()) {
                self.look();
            }
            if is_now(self.forgetting.due()) {
                self.forget_stale();
            }
        }
    }

    /// One command.
    pub fn handle(&mut self, command: Command) {
        match command {
            Command::ApplyView { view, reply } => {
                let read = self.read_view(&view);
                // A large one is not kept while it is obeyed.
                drop(view);
                drop(reply.send(read.map(|read| self.obey(read))));
                self.ask_the_dead();
            }
            // Who gave up waiting asks again, or takes the pod elsewhere.
            Command::Attach { reply, .. } if reply.is_closed() => {}
            Command::Attach { request, reply } => {
                let attached = self.attach(&request);
                drop(reply.send(attached.map(|response| Attached { response, without_carrier: self.without_carrier(&request.task_id) })));
            }
            Command::WithoutCarrier { links, reply } => drop(reply.send(self.kernel.without_carrier(&links))),
            Command::Leave { task_id, reply } => drop(reply.send(self.leave(&task_id))),
            Command::Detach { task_id, linger_ms, reply } => drop(reply.send(self.detach(&task_id, linger_ms))),
            Command::Status { reply } => drop(reply.send(self.status())),
            Command::Dump { request, reply } => drop(reply.send(self.dump(&request))),
            Command::Trace { request, reply } => drop(reply.send(self.trace(&request))),
            Command::Paths { reply } => {
                drop(reply.send((self.paths.due(&uplink::peers(&self.picture, &self.underlay)), self.underlay_mtu())))
            }
            Command::Narrow { asked, narrow } => self.paths.found(&asked, &narrow),
            Command::Look { news, done } => self.hear(&news, done),
            Command::Tick => self.tick(),
        }
    }

    fn status(&mut self) -> v1::NetdStatusResponse {
        let network = self.network();
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
            attachments: self.attachments.iter().filter(|(_, pod)| pod.lingers.is_none()).map(attachment).collect(),
            problems: self.problems(),
            mtu: self.underlay.overlay_mtu,
            dns_queries: self.shared.queries.load(Ordering::Relaxed),
            repairs: self.repairs,
            network: Some(network),
        }
    }

    /// What the managers are to know of this host.
    fn network(&mut self) -> v1::NodeNetwork {
        match self.kernel.public_keys() {
            Ok(keys) => self.keys = keys,
            // Whose key is not told any more nobody sends to.
            Err(error) => warn!(error = in_full(&error), "the tunnels' keys could not be read: those that were read last are told"),
        }
        let routes = self.picture.beyond.iter().map(ToString::to_string).collect();
        let mut conditions: Vec<String> = self.routes_unread.iter().cloned().collect();
        conditions.extend(uplink::conditions(&self.held.host, &self.underlay));
        conditions.extend(uplink::conditions6(&self.picture, &self.held.host, &self.underlay, self.withholds_six));
        conditions.extend(self.paths.conditions(self.underlay_mtu().into()));
        conditions.extend(self.crowded.map(|max| {
            format!(
                "more than {CROWDED_PERCENT} % of the {max} connections that this host may track are in use: raise the sysctl \
                 net.netfilter.nf_conntrack_max"
            )
        }));
        let held = |(opening, by): (&Opening, &String)| {
            let protocol = match opening.transport {
                Transport::Tcp => v1::Protocol::Tcp,
                Transport::Udp => v1::Protocol::Udp,
            };
            v1::HeldPort { protocol: protocol.into(), port: opening.port.into(), by: by.clone() }
        };
        let held_ports = self.picture.taken.iter().map(held).collect();
        // Its pods have IPv6 on an encrypted network, too, where packets are smaller.
        let least = self.underlay.overlay_mtu.saturating_sub(encryption::OVERHEAD);
        v1::NodeNetwork {
            mtu: self.underlay.overlay_mtu,
            ipv6: self.kernel.has_six() && least >= SIX_MTU_MIN,
            routes,
            addresses6: self.addresses6.iter().take(NodeNetwork::ADDRESSES6_MAX).map(ToString::to_string).collect(),
            no_encryption: self.no_encryption.clone().unwrap_or_default(),
            wireguard_keys: encryption::told(&self.picture, &self.underlay, self.keys.clone()),
            held_ports,
            conditions,
        }
    }

    /// The size of the largest packets that the host's device sends.
    fn underlay_mtu(&self) -> u16 {
        u16::try_from(self.underlay.overlay_mtu + VXLAN_OVERHEAD).unwrap_or(u16::MAX)
    }

    fn problems(&self) -> Vec<String> {
        let forgetful = self.store.trouble().map(|why| format!("the picture is in force but not remembered over a reboot: {why}"));
        [
            bounded(&self.picture_problems),
            bounded(&ingress::problems(&self.picture)),
            bounded(&self.kernel_problems),
            forgetful.into_iter().collect(),
            uplink::conditions(&self.held.host, &self.underlay),
            uplink::conditions6(&self.picture, &self.held.host, &self.underlay, self.withholds_six),
        ]
        .concat()
    }

    fn wanted(&self) -> Dataplane {
        compile(&self.picture, &self.attachments, &self.underlay)
    }

    fn tick(&mut self) {
        self.patience.ticks += 1;
        self.paths.tick();
        for ticks in self.leaving.values_mut() {
            *ticks += 1;
        }
        self.end_lingering();
        let overstayed = self.leaving.values().any(|ticks| *ticks >= LEAVING_TICKS);
        if overstayed || self.patience.ticks >= self.patience.due {
            // What it finds wrong that was right before is tried again sooner.
            self.patience = self.patience.longer();
            self.check();
            if self.kernel_problems.is_empty() && self.picture.taken.is_empty() {
                self.patience = Patience::FULL;
            }
        }
        self.ask_the_dead();
    }

    /// Has the ports of the host that the picture calls for, and no others; those that somebody else has are not published here, and tried
    /// again soon. Whether these are others than before.
    fn keep_ports(&mut self) -> bool {
        let (ports, six) = (ingress::openings(&self.picture), ingress::openings6(&self.picture, &self.underlay));
        let taken = self.kernel.keep_ports(&ports, &six);
        let changed = taken != self.picture.taken;
        if changed {
            self.misleads = true;
            if !taken.is_empty() {
                self.patience = Patience::NONE;
            }
            self.picture.taken = taken;
            for problem in ingress::problems(&self.picture) {
                warn!(problem, "a port is not published");
            }
        }
        changed
    }

    /// Learns where the host itself has ways to. Whether these are others than before; unread, they stay what they were.
    fn read_beyond(&mut self) -> bool {
        let read = self.kernel.host_routes().and_then(|found| Ok((found, self.kernel.host_six()?)));
        match read {
            Ok((found, HostSix { addresses, routes, forwards })) => {
                self.routes_unread = None;
                let (beyond, ways6) = (routes::told(found), routes::ways6(routes));
                let may_forward = forwards || uplink::is_wanted(self.underlay.forwarding6);
                self.withholds_six = !may_forward && !ways6.is_empty();
                self.addresses6 = addresses;
                // Others had it forward while nothing of IPv6 was to pass: what it forwards for them is not netd's to drop.
                let is_theirs = forwards && !self.underlay.turned_on6 && self.underlay.forwarding6 == Forwarding::Netd;
                if is_theirs {
                    self.underlay.forwarding6 = Forwarding::Host;
                }
                let beyond6 = if may_forward { ways6 } else { Vec::new() };
                let changed = is_theirs || (&beyond, &beyond6) != (&self.picture.beyond, &self.picture.beyond6);
                (self.picture.beyond, self.picture.beyond6) = (beyond, beyond6);
                changed
            }
            Err(error) => {
                self.routes_unread = Some(format!("the host's routes could not be read: {}", in_full(&error)));
                false
            }
        }
    }

    /// The same, and does what follows from it.
    fn read_routes(&mut self) {
        if self.read_beyond() {
            self.carry_out(&plan(&self.wanted(), &self.held));
        }
    }

    /// Learns how large pods' packets may be. Whether that is another size than before; unread, it stays what it was.
    fn read_mtu(&mut self) -> bool {
        match self.kernel.overlay_mtu() {
            Ok(overlay_mtu) => {
                let before = mem::replace(&mut self.underlay.overlay_mtu, overlay_mtu);
                if before != overlay_mtu {
                    info!(from = before, to = overlay_mtu, "the underlay's MTU changed");
                }
                before != overlay_mtu
            }
            Err(error) => {
                warn!(error = in_full(&error), "the underlay's MTU could not be read");
                false
            }
        }
    }

    /// Learns whether the host encrypts by now, if it is asked to and did not. Whether it does: who has just loaded the module need not start
    /// netd anew.
    fn read_encryption(&mut self) -> bool {
        if self.no_encryption.is_none() || self.picture.key_epoch == 0 {
            return false;
        }
        self.no_encryption = self.kernel.no_encryption();
        self.picture.cannot_encrypt = self.no_encryption.is_some();
        !self.picture.cannot_encrypt
    }

    /// Follows the host, then reads the kernel back, pods included, and mends it.
    fn check(&mut self) {
        if [self.keep_ports(), self.read_beyond(), self.read_mtu(), self.read_encryption()].contains(&true) {
            self.carry_out(&plan(&self.wanted(), &self.held));
        }
        match self.kernel.observe(Pods::Look) {
            Ok(observed) => {
                self.leaving.retain(|link, _| observed.links.contains_key(link));
                let overstayed: BTreeSet<String> =
                    self.leaving.iter().filter(|(_, ticks)| **ticks >= LEAVING_TICKS).map(|(link, _)| link.clone()).collect();
                self.leaving.retain(|link, _| !overstayed.contains(link));
                let strays = observed.links.keys().filter(|link| overstayed.contains(*link)).count();
                let mended = self.mend(observed);
                // Nobody has broken anything; the kernel is slow.
                self.repairs += mended.saturating_sub(u64::try_from(strays).unwrap_or(u64::MAX));
            }
            Err(error) => self.settle(vec![unread(&error)]),
        }
        self.forget_regularly();
        if self.held.host.ports.iter().any(|opening| opening.transport == Transport::Udp) {
            self.forget_misled();
        }
        // A kernel that does not say, for it tracks nothing yet, has room.
        let (tracked, max) = self.kernel.tracked().unwrap_or((0, 0));
        self.crowded = (tracked.saturating_mul(100) > max.saturating_mul(CROWDED_PERCENT)).then_some(max);
    }

    /// Reads the kernel back without looking into pods, and mends it.
    fn verify(&mut self) {
        match self.kernel.observe(Pods::Believe(&self.held.pods)) {
            Ok(observed) => self.repairs += self.mend(observed),
            Err(error) => self.settle(vec![unread(&error)]),
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
        self.settle(failed.into_iter().map(|(_, why)| why).collect());
        u64::try_from(done).unwrap_or(u64::MAX)
    }

    /// What of a whole plan could not be done is told, and tried again soon when it is new.
    fn settle(&mut self, problems: Vec<String>) {
        let was_settled = self.kernel_problems.is_empty();
        self.kernel_problems = problems;
        if was_settled && !self.kernel_problems.is_empty() {
            self.patience = Patience::NONE;
        }
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
        for (op, why) in failed.iter().take(FAILURES_TOLD) {
            warn!(%op, why, "the kernel was not changed as planned");
        }
        if failed.len() > FAILURES_TOLD {
            warn!(others = failed.len() - FAILURES_TOLD, "nor were others of the same plan");
        }
        let leads = |op: &Op| match op {
            Op::OpenPort(opening) | Op::ClosePort(opening) | Op::OpenPort6(opening) | Op::ClosePort6(opening) => {
                opening.transport == Transport::Udp
            }
            _ => false,
        };
        if steps.add.iter().chain(&steps.remove).any(leads) {
            self.forget_misled();
        }
        failed
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<(Op, String)> {
        let failures: BTreeMap<usize, String> =
            self.kernel.apply(ops).into_iter().map(|failure| (failure.index, in_full(&failure.error))).collect();
        let done = || ops.iter().enumerate().filter(|(index, _)| !failures.contains_key(index)).map(|(_, op)| op);
        self.held.absorb_all(done());
        self.underlay.turned_on6 |= done().any(|op| matches!(op, Op::EnableHostForwarding6 { hearing: true }));
        failures.into_iter().filter_map(|(index, why)| ops.get(index).map(|op| (op.clone(), why))).collect()
    }

    /// DNS answers by the picture and the pods from here on, and the host's own connections go by them.
    fn publish(&mut self) {
        if mem::take(&mut self.misleads) {
            self.kernel.lead(ingress::targets(&self.picture, &self.attachments));
        }
        let indexes = self.kernel.indexes().into_iter().map(|(index, name)| (name, index)).collect();
        let sights = names::sights(&self.names, &self.attachments, uplink::inside(&self.picture));
        self.shared.board.store(Arc::new(Board::new(&sights, &self.attachments, &indexes)));
    }
}

/// The next command, unless none comes in time.
async fn until(due: Instant, commands: &mut mpsc::Receiver<Command>) -> Result<Option<Command>, Elapsed> {
    timeout_at(due.into(), commands.recv()).await
}

fn bounded(problems: &[String]) -> Vec<String> {
    let mut told: Vec<String> = problems.iter().take(PROBLEMS_MAX).cloned().collect();
    if problems.len() > PROBLEMS_MAX {
        told.push(format!("and {} more", problems.len() - PROBLEMS_MAX));
    }
    told
}

fn unread(error: &KernelError) -> String {
    format!("the kernel's state could not be read: {}", in_full(error))
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
#[path = "../drive_tests.rs"]
mod tests;

#[cfg(test)]
mod kill_tests;
