//! The resolver: one UDP and one TCP socket on the router namespace's link-local address, for all pods of the node.
//!
//! Who asks is known by the device on which a datagram came in (`IP_PKTINFO`), over TCP by the source address; a pod can forge neither, for
//! the rules drop what does not come from its own address on its own device. What an asker sees stands on a `Board`, which is swapped
//! whole; `core::names` answers, `message` speaks DNS. UDP is served by one thread with a blocking socket, TCP by the runtime; what is not
//! ours to answer they hand to `forward`, which has the host's resolvers asked, or the pod's own. `hold` keeps the sockets while netd is
//! started anew. Never: lets a pod wait because of what another one asks.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;

use crate::core::foreign;
use crate::core::links::veth_name;
use crate::core::names::Sight;
use crate::core::picture::Attachments;

pub mod server;

pub mod forward;

pub mod hold;

mod message;

/// What every asker sees.
#[derive(Debug, Default)]
pub struct Board {
    /// By the device on which the question comes in.
    pub by_index: BTreeMap<u32, Asker>,
    pub by_address: BTreeMap<Ipv4Addr, Asker>,
}

/// A pod here.
#[derive(Debug, Clone)]
pub struct Asker {
    pub pod: Pod,
    pub sight: Sight,
}

/// Whose foreign questions are asked.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its task's.
    pub id: Arc<str>,
    /// Its own; none: the host's.
    pub resolvers: Arc<[SocketAddr]>,
}

/// The board in force and the count of questions.
#[derive(Debug, Default)]
pub struct Shared {
    pub board: ArcSwap<Board>,
    pub queries: AtomicU64,
}

impl Board {
    /// `sights` by task id; `indexes` are the router's devices by name.
    pub fn new(sights: &BTreeMap<String, Sight>, attachments: &Attachments, indexes: &BTreeMap<String, u32>) -> Self {
        let mut board = Self::default();
        for (task_id, attachment) in attachments {
            let Some(sight) = sights.get(task_id) else { continue };
            let pod = Pod { id: Arc::from(task_id.as_str()), resolvers: foreign::at(attachment.dns.iter().copied()).into() };
            let asker = Asker { pod, sight: sight.clone() };
            for membership in &attachment.networks {
                board.by_address.insert(membership.ip, asker.clone());
                if let Some(index) = indexes.get(&veth_name(task_id, &membership.network_id)) {
                    board.by_index.insert(*index, asker.clone());
                }
            }
        }
        board
    }
}

/// What the resolver's two halves and the dataplane's owner have in common.
pub type SharedBoard = Arc<Shared>;
