//! Keeps this manager's credentials fresh: whom it trusts is what the tables say, and its certificate is renewed at half of its life, or as
//! soon as another authority issues.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rcluster_api::data::Payload;
use rcluster_api::identity::Part;
use rcluster_api::tls::{Credentials, Security, SigningRequest};
use rcluster_base::backoff::Backoff;
use rcluster_base::clock::unix_ms;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::found;
use crate::rpc::Router;
use crate::rpc::admission::issue;

/// How often the calendar is looked at.
const LOOK: Duration = Duration::from_secs(600);
/// Pause before a renewal that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// Runs as long as the manager.
pub async fn keep(router: Router, security: Security, state_dir: PathBuf) {
    let mut revisions = router.store.revisions();
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut seen = None;
    loop {
        revisions.borrow_and_update();
        let cluster = router.store.state().cluster().cloned();
        let mut again = LOOK;
        if let (Some(cluster), Some(own)) = (&cluster, security.credentials()) {
            let authorities: Vec<Payload> = cluster.authorities.iter().map(|authority| authority.certificate.clone()).collect();
            let renewed = if own.authorities != authorities && !authorities.is_empty() {
                Some(Ok(Credentials { authorities, ..own }))
            } else if is_due(&own) {
                Some(renew(&router).await)
            } else {
                None
            };
            let used = renewed.map(|renewed| renewed.and_then(|renewed| used(&security, &state_dir, renewed)));
            match used {
                Some(Ok(())) => {
                    info!("new credentials");
                    backoff.reset();
                    again = Duration::ZERO;
                }
                Some(Err(error)) => {
                    warn!("{error:#}: trying on");
                    again = backoff.delay();
                }
                None => {}
            }
        }
        let changed = async {
            // Commits are many, and few of them are about the cluster.
            while seen == cluster {
                if revisions.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                seen = router.store.state().cluster().cloned();
            }
        };
        tokio::select! {
            () = changed => {}
            () = sleep(again) => {}
        }
        seen = cluster;
    }
}

fn is_due(own: &Credentials) -> bool {
    let now = i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX);
    !own.is_current() || own.certificate().is_ok_and(|certificate| certificate.renew_at() <= now)
}

/// By the leader, which may be this manager.
async fn renew(router: &Router) -> Result<Credentials> {
    if router.leadership.term().is_some() {
        let state = router.store.state();
        let own = router.store.status().own;
        let manager = state.managers().values().find(|manager| manager.raft_id == own).context("find this manager in the tables")?;
        let request = SigningRequest::new()?;
        let issued = issue(&state, Part::Manager, manager.id.as_str(), &manager.addr, &manager.name, &request.request)?;
        return Ok(Credentials::new(issued, request.key));
    }
    let leader = router.store.role().borrow().leader.clone().context("renew the certificate: there is no leader")?;
    let channel = router.connect(&leader.addr).await?;
    Ok(rcluster_api::client::renew(channel).await?)
}

fn used(security: &Security, state_dir: &std::path::Path, credentials: Credentials) -> Result<()> {
    // On disk first: a manager must not come back with less than it had.
    found::keep(state_dir, &credentials)?;
    security.replace(credentials).context("use the new credentials")
}
