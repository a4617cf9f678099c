//! A backup: the tables at one revision, as the bytes of a file.

use bytes::Bytes;
use rcluster_api::backup::{self, Header};
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1;
use rcluster_base::clock::unix_ms;
use tonic::Status;
use tracing::info;

use super::control::Answers;
use crate::core::authorize::Caller;
use crate::core::state::{State, encode_snapshot};
use crate::store::Store;

/// Bytes of one message.
const CHUNK_BYTES: usize = 256 << 10;

/// The backup of a state. Made whole before its first byte is sent: a copy of the tables
/// costs nothing, and nobody waits for it.
pub async fn stream(state: State, store: &Store, caller: &Caller) -> Result<Answers<v1::BackupChunk>, ApiError> {
    let (status, term) = (store.status(), store.role().borrow().term);
    let revision = state.revision();
    let encoded = tokio::task::spawn_blocking(move || {
        let data = encode_snapshot(&state);
        let header = Header {
            cluster_id: state.cluster_id().to_owned(),
            revision,
            term,
            made_at_ms: unix_ms(),
            manager: status.answered_by,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data_bytes: data.len() as u64,
            seal: String::new(),
        };
        Bytes::from(backup::encode(&header, &data))
    });
    let bytes = encoded.await.map_err(|error| ApiError::new(ErrorCode::Internal, format!("encode the state: {error}")))?;
    info!(by = caller.describe(), revision, bytes = bytes.len(), "backup");
    let parts = (0..bytes.len()).step_by(CHUNK_BYTES).map(move |start| bytes.slice(start..bytes.len().min(start + CHUNK_BYTES)));
    Ok(Box::pin(tokio_stream::iter(parts.map(|part| Ok::<_, Status>(v1::BackupChunk { data: part.to_vec() })))))
}
