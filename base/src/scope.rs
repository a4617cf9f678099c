//! A set of tasks with one owner: when the scope goes, they go.

use std::future::Future;

use tokio::task::JoinSet;
use tracing::Instrument;

/// Owns the tasks spawned in it and ends them all when dropped.
#[derive(Debug, Default)]
pub struct Scope {
    tasks: JoinSet<()>,
}

impl Scope {
    /// An empty scope.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it ends or the scope is dropped.
    pub fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(task.in_current_span());
    }

    /// Ends every task and waits until they have gone.
    pub async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}
