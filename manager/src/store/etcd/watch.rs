//! Follows what changes in etcd without a gap: from a revision on, and after a broken connection from the last one seen.

use std::time::Duration;

use etcd_client::{EventType, WatchStream};
use rcluster_base::backoff::Backoff;
use tokio::sync::{mpsc, watch};
use tracing::debug;

use super::client::{CallError, Etcd};

/// Pause before a watch that broke is made again.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// What a watch tells.
#[derive(Debug)]
pub enum Seen {
    Change(Change),
    /// etcd no longer has what happened next: begin again from the tables.
    Compacted,
    /// etcd has less than it told of before; its tables are at revision `found`.
    WentBack {
        found: u64,
    },
}

/// A key was written or deleted.
#[derive(Debug)]
pub struct Change {
    pub key: Vec<u8>,
    /// `None`: deleted.
    pub value: Option<Vec<u8>>,
    /// etcd's revision at which the key was made, and at which this happened.
    pub created: i64,
    pub at: i64,
}

/// Tells of every change since etcd's revision `from`, in order; one may be told again. Ends when nobody listens. `known`: revision of the
/// tables that this manager has.
pub async fn follow(etcd: Etcd, from: i64, known: watch::Receiver<u64>, seen: mpsc::Sender<Seen>) {
    let mut from = from;
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    while !seen.is_closed() {
        let ended = match watch(&etcd, from, &known).await {
            Ok(stream) => pass_on(stream, &mut from, &seen, &mut backoff).await,
            Err(error) => Err(error),
        };
        match ended {
            // When nobody listens any more, there is nobody to tell.
            Err(CallError::Compacted) => return drop(seen.send(Seen::Compacted).await),
            Err(CallError::WentBack { found }) => return drop(seen.send(Seen::WentBack { found }).await),
            Err(error) => debug!(%error, "watching etcd again"),
            Ok(()) => {}
        }
        tokio::time::sleep(backoff.delay()).await;
    }
}

/// A watch of an etcd that has all that this manager has seen. One that was restored from a backup may not: a watch of it is silent until it
/// has come as far again, and then tells another history.
async fn watch(etcd: &Etcd, from: i64, known: &watch::Receiver<u64>) -> Result<WatchStream, CallError> {
    // The watch first: if etcd goes back once it stands, it breaks; before, what is asked next tells.
    let stream = etcd.watch(from).await?;
    // What was known before it is asked is there.
    let known = *known.borrow();
    let (at, found) = etcd.head().await?;
    if found < known || at < from { Err(CallError::WentBack { found }) } else { Ok(stream) }
}

async fn pass_on(mut stream: WatchStream, from: &mut i64, seen: &mpsc::Sender<Seen>, backoff: &mut Backoff) -> Result<(), CallError> {
    loop {
        let answer = tokio::select! {
            answer = stream.message() => answer,
            () = seen.closed() => return Ok(()),
        };
        let answer = answer.map_err(|source| CallError::Etcd { what: "watch", source: Box::new(source) })?;
        let Some(answer) = answer else { return Ok(()) };
        if answer.compact_revision() > 0 {
            return Err(CallError::Compacted);
        }
        if answer.canceled() {
            debug!(why = answer.cancel_reason(), "etcd ends the watch");
            return Ok(());
        }
        for event in answer.events() {
            let Some(kv) = event.kv() else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value().to_vec());
            let change = Change { key: kv.key().to_vec(), value, created: kv.create_revision(), at: kv.mod_revision() };
            // From this one on and not after it: what one transaction changed may come in several answers.
            *from = change.at;
            if seen.send(Seen::Change(change)).await.is_err() {
                return Ok(());
            }
        }
        backoff.reset();
    }
}
