//! Passes assignments on in their order with network views: netd has, if it can within a moment, what the tasks are about to need.

use std::sync::Arc;
use std::time::Duration;

use rcluster_api::wire::v1;
use tokio::sync::watch;
use tracing::warn;

use super::Events;
use crate::agent::Event;
use crate::exec::Tools;

/// How long assignments wait for the view that came before them.
const VIEW: Duration = Duration::from_secs(1);

/// Passes on the latest set whenever there is another, for as long as it is polled.
pub async fn take_in(tools: Arc<Tools>, mut assignments: watch::Receiver<Option<v1::Assignments>>, events: Events) {
    while assignments.changed().await.is_ok() {
        if !tools.netd.is_current(VIEW).await {
            warn!("netd has not taken the network view within {} ms; assignments are carried out all the same", VIEW.as_millis());
        }
        let Some(latest) = assignments.borrow_and_update().clone() else { continue };
        if events.send(Event::Assignments(latest)).await.is_err() {
            return;
        }
    }
}
