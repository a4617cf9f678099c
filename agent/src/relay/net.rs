//! What users ask of this node's network. Its netd answers; here it is asked, and its answers are said.

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1::{self, relay_output};

use super::{Gone, Line};
use crate::exec::Tools;
use crate::exec::netd_client::NetdError;

/// Entries in one frame, which must stay far below the largest message (4 MiB).
const ENTRIES_MAX: usize = 5_000;

/// What netd holds, and what it is to hold by the leader's view.
pub async fn dump(tools: &Tools, asked: v1::RelayNetDump, view: Option<v1::NetView>, line: &mut Line) -> Result<(), ApiError> {
    let v1::RelayNetDump { conntrack } = asked;
    let request = v1::DumpRequest { conntrack, view };
    let found = tools.netd.dump(request).await.map_err(|error| failed(tools, &error))?;
    // A user who has gone misses nothing.
    let _ = say(tools, parts(found).into_iter().map(relay_output::Kind::NetDump), line).await;
    Ok(())
}

/// What becomes of what a task here sends.
pub async fn trace(tools: &Tools, task_id: &str, asked: v1::RelayNetTrace, line: &mut Line) -> Result<(), ApiError> {
    let v1::RelayNetTrace { target, protocol } = asked;
    let request = v1::TraceRequest { task_id: task_id.to_owned(), target, protocol };
    let found = tools.netd.trace(request).await.map_err(|error| failed(tools, &error))?;
    let _ = say(tools, [relay_output::Kind::NetTrace(found)], line).await;
    Ok(())
}

async fn say(tools: &Tools, answers: impl IntoIterator<Item = relay_output::Kind>, line: &Line) -> Result<(), Gone> {
    line.say(relay_output::Kind::Opened(v1::RelayOpened { node: tools.node.clone(), ..v1::RelayOpened::default() })).await?;
    for answer in answers {
        line.say(answer).await?;
    }
    line.say(relay_output::Kind::Exit(v1::RelayExit { code: 0 })).await
}

/// The same in frames that can be sent.
fn parts(whole: v1::DumpResponse) -> Vec<v1::DumpResponse> {
    let v1::DumpResponse { term, revision, wanted, held, problems } = whole;
    let part = v1::DumpResponse { term, revision, ..v1::DumpResponse::default() };
    let wanted = wanted.chunks(ENTRIES_MAX).map(|entries| v1::DumpResponse { wanted: entries.to_vec(), ..part.clone() });
    let held = held.chunks(ENTRIES_MAX).map(|entries| v1::DumpResponse { held: entries.to_vec(), ..part.clone() });
    [v1::DumpResponse { problems, ..part.clone() }].into_iter().chain(wanted).chain(held).collect()
}

fn failed(tools: &Tools, error: &NetdError) -> ApiError {
    let message = format!("node {}: {error}", tools.node);
    ApiError::new(ErrorCode::Conflict, message).hint(match error {
        NetdError::Unreachable { .. } => "look whether rcluster-netd runs there, and at its log; then try again",
        NetdError::Refused { .. } => "rclusterctl ps -a shows where tasks are and what became of them",
    })
}
