//! Speaks with the managers: finds the leader, keeps one session with it, passes on what it sends, reports what changes here.
//!
//! Nothing on the node depends on a session being there: without one everything goes on as it was, and the next session begins
//! with a report of all.

mod conversation;
mod intake;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rcluster_api::id::NodeId;
use rcluster_api::object::NodeDescription;
use rcluster_api::wire::v1;
use rcluster_base::backoff::Backoff;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use crate::agent::Event;
use crate::core::owner::Statuses;
use crate::core::seek::{InVain, Seek};
use crate::credentials::Heard;
use crate::exec::Tools;
use conversation::{End, converse};

pub use intake::take_in;

/// All a session needs.
#[derive(Debug)]
pub struct Session {
    pub tools: Arc<Tools>,
    pub node_id: NodeId,
    pub incarnation: u64,
    pub description: NodeDescription,
    pub statuses: watch::Receiver<Statuses>,
    /// The managers' latest set, for [`take_in`].
    pub assignments: watch::Sender<Option<v1::Assignments>>,
    /// Whom the leader trusts, for [`crate::credentials::keep`].
    pub trust: Heard,
}

/// The pause after managers who do not want this node, whom asking again soon will not change.
const REFUSED: Duration = Duration::from_secs(5);
/// A session that ends sooner counts as one more attempt in vain.
const SHORT: Duration = Duration::from_secs(2);

/// Keeps a session with the managers for as long as it is polled.
pub async fn run(mut session: Session, managers: Vec<String>) {
    let mut seek = Seek::new(managers);
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
    let mut in_vain = InVain::default();
    loop {
        let Some(address) = seek.turn() else {
            if let Some((why, is_certificate)) = in_vain.news() {
                let file = session.tools.places.credentials_file();
                warn!(why, "no manager takes this node; its tasks go on as they are{}", hint(is_certificate, &file));
            }
            sleep(backoff.delay()).await;
            continue;
        };
        let begun = Instant::now();
        let talk = converse(&mut session, &address).await;
        if let Some(managers) = &talk.welcome {
            seek.welcomed(&address, managers);
            in_vain = InVain::default();
            if begun.elapsed() >= SHORT {
                backoff.reset();
            } else {
                // A manager that welcomes and then drops the node must not be asked in a tight loop.
                sleep(backoff.delay()).await;
            }
        }
        match talk.end {
            End::Redirected { leader } => {
                debug!(manager = address, leader, "sent on to the leader");
                in_vain.note(&address, &format!("the leader is at {leader}"));
                seek.redirected(leader);
            }
            End::Refused { why } => {
                error!(manager = address, why, "the managers refuse this node; it is tried again every {} s", REFUSED.as_secs());
                in_vain.note(&address, &why);
                sleep(REFUSED).await;
            }
            End::Lost { why } if talk.welcome.is_some() => info!(manager = address, why, "lost the session"),
            End::Lost { why } => {
                debug!(manager = address, why, "no session");
                in_vain.note(&address, &why);
            }
        }
    }
}

/// What a person is to do about it.
fn hint(is_certificate: bool, credentials: &Path) -> String {
    if !is_certificate {
        return String::new();
    }
    format!(
        ". Are this host's clock and the managers' right, and are these the managers of its cluster? Then it has to join again: remove {}, and \
         start the agent with a token (rclusterctl cluster token agent)",
        credentials.display()
    )
}

/// A session's events as they reach the owner of all tasks.
pub type Events = mpsc::Sender<Event>;
