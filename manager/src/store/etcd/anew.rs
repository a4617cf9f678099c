//! A cluster in an etcd whose managers do not run: its tables are read, and replaced as a whole.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, TxnOp};
use tokio::time::timeout;

use super::address::Access;
use super::client::{CallError, Etcd, Loaded};
use crate::core::state::State;

/// How long reading or writing all tables may take; a person waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an etcd holds of a cluster.
#[derive(Debug)]
pub struct Held {
    etcd: Etcd,
    pub state: State,
    /// The last term.
    pub term: u64,
    /// The managers that run, by id.
    pub alive: BTreeMap<u64, u64>,
}

impl Held {
    /// Reads it.
    pub async fn read(access: &Access, cluster_id: &str) -> Result<Self, CallError> {
        let read = async {
            let etcd = Etcd::connect(access, cluster_id).await?;
            etcd.probe().await?;
            let Loaded { state, live, .. } = etcd.load(cluster_id).await?;
            let term = etcd.last_term().await?;
            Ok(Self { etcd, state, term, alive: live.alive })
        };
        timeout(PATIENCE, read).await.unwrap_or(Err(CallError::Timeout { what: "read the tables", waited: PATIENCE }))
    }

    /// Puts other tables, of a higher revision, into their place; false: a manager runs, or has written meanwhile, and nothing is left of
    /// them. After a timeout it may have been done.
    pub async fn replace(&self, state: State, term: u64) -> Result<bool, CallError> {
        let replace = self.etcd.replace_all(self.state.revision(), state, term);
        timeout(PATIENCE, replace).await.unwrap_or(Err(CallError::Timeout { what: "write the tables", waited: PATIENCE }))
    }
}

impl Etcd {
    async fn replace_all(&self, previous: u64, state: State, term: u64) -> Result<bool, CallError> {
        let (keys, revision) = (&self.keys, state.revision());
        let (_, mut ops) = self.write_snapshot(&[self.is_of_this_format()], state).await?;
        ops.extend(self.forget_before(revision));
        ops.extend([TxnOp::put(keys.head(), revision.to_string(), None), TxnOp::put(keys.term(), term.to_string(), None)]);
        let when = vec![
            // None at all: one that runs would not take the tables over.
            Compare::create_revision(keys.all_alive(), CompareOp::Equal, 0).with_prefix(),
            Compare::value(keys.head(), CompareOp::Equal, previous.to_string()),
            self.is_of_this_format(),
        ];
        let answer = self.write("replace the tables", when, ops, Vec::new()).await?;
        if answer.succeeded() {
            return Ok(true);
        }
        loop {
            let (_, head) = self.head().await?;
            // An attempt whose answer was lost has done it: nobody else knows this revision.
            if head >= revision {
                return Ok(true);
            }
            let is_so = vec![Compare::value(keys.head(), CompareOp::Equal, head.to_string()), self.is_of_this_format()];
            let ops = vec![self.forget_snapshot(revision)];
            if self.write("take the refused tables away", is_so, ops, Vec::new()).await?.succeeded() {
                return Ok(false);
            }
        }
    }
}
