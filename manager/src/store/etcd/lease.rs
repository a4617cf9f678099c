//! A lease of etcd, kept alive: on it stand the key that says that this manager runs, and, when it leads, the leader's.

use std::time::Duration;

use etcd_client::{LeaseClient, LeaseKeepAliveStream, LeaseKeeper};
use rcluster_base::scope::Scope;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

use super::EtcdTiming;
use super::client::{CallError, Etcd, call};

/// A lease. It is not renewed any more when this is dropped.
#[derive(Debug)]
pub struct Lease {
    pub id: i64,
    renewed: watch::Receiver<Instant>,
    patience: Duration,
    _keeper: Scope,
}

impl Lease {
    /// A new lease, which is renewed from now on.
    pub async fn grant(etcd: &Etcd, timing: EtcdTiming) -> Result<Self, CallError> {
        // It lasts from when etcd gives it, which is after this.
        let asked = Instant::now();
        let seconds = i64::try_from(timing.lease.as_secs()).unwrap_or(i64::MAX);
        let id = etcd.grant(seconds).await?.id();
        let (sender, renewed) = watch::channel(asked);
        let mut keeper = Scope::new();
        keeper.spawn(renew(etcd.leases(), id, timing.lease / 4, sender));
        Ok(Self { id, renewed, patience: timing.lease * 3 / 4, _keeper: keeper })
    }

    /// Until when this manager may believe that the lease is there: etcd ends it later.
    pub fn until(&self) -> Instant {
        *self.renewed.borrow() + self.patience
    }

    /// Returns when the lease has ended, or may end before this manager hears of it.
    pub async fn ended(&mut self) {
        loop {
            let until = *self.renewed.borrow_and_update() + self.patience;
            tokio::select! {
                () = sleep_until(until) => return,
                changed = self.renewed.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Why nothing goes on once it has ended.
    pub fn lost(&self) -> CallError {
        CallError::Timeout { what: "renew the lease", waited: self.patience }
    }
}

async fn renew(client: LeaseClient, id: i64, interval: Duration, sender: watch::Sender<Instant>) {
    let mut stream: Option<(LeaseKeeper, LeaseKeepAliveStream)> = None;
    loop {
        let asked = Instant::now();
        match timeout(interval, renew_once(&client, id, &mut stream)).await {
            Ok(Ok(true)) => drop(sender.send_replace(asked)),
            // The lease is no more: the receiver hears of it by the end of the sender.
            Ok(Ok(false)) => return,
            Ok(Err(error)) => {
                debug!(%error, "the lease was not renewed");
                stream = None;
            }
            Err(_) => stream = None,
        }
        sleep(interval.saturating_sub(asked.elapsed()).max(interval / 10)).await;
    }
}

/// Whether the lease is still there.
async fn renew_once(client: &LeaseClient, id: i64, stream: &mut Option<(LeaseKeeper, LeaseKeepAliveStream)>) -> Result<bool, CallError> {
    if stream.is_none() {
        *stream = Some(call("keep the lease alive", client.clone().keep_alive(id)).await?);
    }
    let Some((keeper, answers)) = stream else { return Ok(true) };
    call("keep the lease alive", keeper.keep_alive()).await?;
    let answer = call("keep the lease alive", answers.message()).await?;
    match answer {
        Some(answer) => Ok(answer.ttl() > 0),
        None => Err(CallError::Ended { what: "keep the lease alive" }),
    }
}
