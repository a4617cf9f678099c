//! Keeps this manager's credentials fresh: whom it trusts is what the tables say, and its certificate is renewed at half of its life, or as
//! soon as another authority issues.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rcluster_api::data::Payload;
use rcluster_api::identity::Part;
use rcluster_api::tls::{Credentials, Security, SigningRequest};
use rcluster_base::backoff::Backoff;
use rcluster_base::clock::unix_s;
use rcluster_base::renewal::Looks;
use tokio::time::sleep;
use tracing::debug;

use crate::rpc::Router;
use crate::rpc::admission::issue;
use crate::seal::{Keys, keep_credentials};
use crate::store::Store;

/// Pause before a renewal that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// Pause before the managers are asked again whether the tables are those of now.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Runs as long as the manager.
pub async fn keep(router: Router, security: Security, state_dir: PathBuf, keys: Keys) {
    caught_up(&router.store, &security).await;
    let mut revisions = router.store.revisions();
    let mut looks = Looks::new(RETRY.0, RETRY.1);
    let mut seen = None;
    loop {
        revisions.borrow_and_update();
        let cluster = router.store.state().cluster().cloned();
        let mut again = looks.next(None, None::<Result<()>>);
        if let (Some(cluster), Some(own)) = (&cluster, security.credentials()) {
            let authorities: Vec<Payload> = cluster.authorities.iter().map(|authority| authority.certificate.clone()).collect();
            let left = own.until_renewal(unix_s());
            // One that was dropped also goes from what this manager shows.
            let dropped = authorities.len() < own.authorities.len();
            let renewed = if own.authorities != authorities && !authorities.is_empty() && !dropped {
                Some(Ok(Credentials { authorities, ..own }))
            } else if left.is_zero() || dropped {
                Some(renew(&router))
            } else {
                None
            };
            let used = renewed.map(|renewed| renewed.and_then(|renewed| used(&security, &state_dir, &keys, renewed)));
            again = looks.next(Some(left), used);
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

/// Returns once the tables are not older than what the credentials came from, which they may be at a start: a manager that was killed does not
/// know that what it saw last was committed, and one that has joined has no tables yet. By those it would go back to an authority that is
/// trusted no more, and be let in by nobody to hear of the next. From here on the tables only go forward.
///
/// One whose certificate has expired does not wait: nobody lets it in to ask, and all may have been off for so long.
async fn caught_up(store: &Store, security: &Security) {
    let mut backoff = Backoff::new(ASK_AGAIN.0, ASK_AGAIN.1);
    while !has_expired(security)
        && let Err(error) = store.read_barrier().await
    {
        debug!(%error, "the credentials wait for the tables of now");
        sleep(backoff.delay()).await;
    }
}

fn has_expired(security: &Security) -> bool {
    let certificate = security.credentials().and_then(|own| own.certificate().ok());
    certificate.is_none_or(|certificate| certificate.not_after <= unix_s())
}

/// A manager issues its own: the authority's key is in its tables, and a cluster whose managers were all off for longer than their
/// certificates were valid must come up again.
fn renew(router: &Router) -> Result<Credentials> {
    let state = router.store.state();
    let own = router.store.status().own;
    let manager = state.managers().values().find(|manager| manager.raft_id == own).context("renew the certificate: this is no manager")?;
    let request = SigningRequest::new()?;
    let issued = issue(&state, Part::Manager, manager.id.as_str(), &manager.addr, &manager.name, &request.request)?;
    Ok(Credentials::new(issued, request.key))
}

fn used(security: &Security, state_dir: &std::path::Path, keys: &Keys, credentials: Credentials) -> Result<()> {
    // On disk first: a manager must not come back with less than it had.
    keep_credentials(state_dir, keys, &credentials)?;
    security.replace(credentials).context("use the new credentials")
}
