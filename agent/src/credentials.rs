//! This node's certificate: had by joining, kept in the state directory, renewed while there is a session.
//!
//! The node's id is the one in the certificate: a node that joins anew is another node.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rcluster_api::client;
use rcluster_api::data::Payload;
use rcluster_api::error::ErrorCode;
use rcluster_api::identity::JoinToken;
use rcluster_api::tls::{Credentials, Security};
use rcluster_base::backoff::Backoff;
use rcluster_base::clock::unix_s;
use rcluster_base::ledger;
use rcluster_base::renewal::Looks;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::config::Config;
use crate::place::Places;

/// Pause before a join is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Pause before a renewal that failed is tried again.
const RENEW_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long a manager may take for a renewal.
const ANSWER: Duration = Duration::from_secs(10);

/// What the leader says of whom to trust, and where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    pub leader: String,
    pub authorities: Vec<Payload>,
}

/// Where a session puts what it hears of [`Trust`].
pub type Heard = watch::Sender<Trust>;

/// How this node speaks with the managers; joins the cluster if it has not yet, trying on while no manager answers.
pub async fn security(config: &Config, places: &Places) -> Result<Security> {
    let path = places.credentials_file();
    let kept: Option<Credentials> = ledger::read(&path)?;
    if config.insecure {
        if kept.is_some() {
            bail!("this node has joined a cluster with TLS ({}): start without --insecure", path.display());
        }
        return Ok(Security::plain());
    }
    if let Some(kept) = kept {
        let certificate = kept.certificate().with_context(|| format!("read {}", path.display()))?;
        if certificate.not_after > unix_s() {
            return Security::new(kept).with_context(|| format!("use {}", path.display()));
        }
        if config.token.is_none() {
            bail!(
                "this node's certificate ({}) has expired: let it join again with a token, rclusterctl cluster token agent, in --token-file",
                path.display()
            );
        }
        warn!("this node's certificate has expired: it joins again, as another node");
    }
    let Some(token) = &config.token else {
        bail!(
            "this node has not joined a cluster yet: give a token with --token-file or RCLUSTER_JOIN_TOKEN; \
             `rclusterctl cluster token agent` prints it"
        );
    };
    let credentials = join(config, &token.read()?).await?;
    ledger::write_secret(&path, &credentials)?;
    Security::new(credentials).context("use the certificate")
}

async fn join(config: &Config, token: &JoinToken) -> Result<Credentials> {
    if token.manager {
        bail!("the join token is for managers: `rclusterctl cluster token agent` prints the one for agents");
    }
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let mut told = String::new();
    loop {
        match client::join(&config.managers, Some(token), &config.name, "").await {
            Ok(joined) => {
                info!(cluster = joined.cluster_id, id = joined.id, "joined");
                return joined.credentials.context("the managers gave no certificate");
            }
            Err(error) if error.code == ErrorCode::Unavailable => {
                if told != error.message {
                    warn!(%error, "cannot join yet; trying on");
                    told = error.message;
                }
                sleep(backoff.delay()).await;
            }
            Err(error) => bail!("join the cluster at {}: {error}", config.managers.join(", ")),
        }
    }
}

/// The id in the certificate; none in plain text.
pub fn node_id(security: &Security) -> Result<Option<String>> {
    let id = |credentials: Credentials| Ok(credentials.certificate()?.identity.id);
    security.credentials().map(id).transpose()
}

/// Takes over whom to trust, and renews the certificate at half of its life, or when another authority issues.
pub async fn keep(security: Security, path: PathBuf, mut heard: watch::Receiver<Trust>) {
    let mut looks = Looks::new(RENEW_RETRY.0, RENEW_RETRY.1);
    loop {
        let trust = heard.borrow_and_update().clone();
        let mut again = looks.next(None, None::<Result<()>>);
        if let Some(own) = security.credentials()
            && !trust.authorities.is_empty()
        {
            let left = own.until_renewal(unix_s());
            let used = if own.authorities != trust.authorities {
                Some(use_them(&security, &path, Credentials { authorities: trust.authorities, ..own }))
            } else if left.is_zero() {
                Some(renew(&security, &trust.leader).await.and_then(|renewed| use_them(&security, &path, renewed)))
            } else {
                None
            };
            again = looks.next(Some(left), used);
        }
        // A session that ends for good ends this too.
        if let Ok(Err(_)) = timeout(again, heard.changed()).await {
            return;
        }
    }
}

async fn renew(security: &Security, leader: &str) -> Result<Credentials> {
    let renewed = timeout(ANSWER, async {
        let channel = client::connect(std::slice::from_ref(&leader.to_owned()), security).await?;
        client::renew(channel).await
    });
    renewed.await.context("renew the certificate: the manager does not answer")?.context("renew the certificate")
}

/// On disk first: a node must not come back with less than it had.
fn use_them(security: &Security, path: &std::path::Path, credentials: Credentials) -> Result<()> {
    ledger::write_secret(path, &credentials)?;
    security.replace(credentials).context("use the new credentials")
}
