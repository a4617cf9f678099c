//! Idempotency keys of requests: the header `Idempotency-Key`, in gRPC as in REST.

use rcluster_api::client::IDEMPOTENCY_KEY;
use rcluster_api::data::Payload;
use rcluster_api::error::{ApiError, ErrorCode};
use tonic::Request;

use super::auth;
use crate::core::authorize::Caller;
use crate::core::control::Request as Asked;
use crate::core::control::once::Key;
use crate::core::state::State;

/// The key of a request of `method`, if it has one; `content` is what makes it equal to another.
pub fn key<T>(request: &Request<T>, state: &State, method: &str, content: impl Fn(&T) -> Vec<u8>) -> Result<Option<Key>, ApiError> {
    let Some(key) = request.metadata().get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let caller = match auth::known(request, state)? {
        Caller::User { id, .. } => id.to_string(),
        other @ (Caller::Anyone | Caller::Manager(_) | Caller::Agent(_)) => other.describe(),
    };
    let digest = Payload([method.as_bytes(), b"\0", &content(request.get_ref())].concat()).digest();
    // What is no text is refused as an empty key is.
    Key::new(&caller, key.to_str().unwrap_or_default(), digest).map(Some)
}

/// The request, to be carried out once if it has a key.
pub fn with(key: Option<Key>, request: Asked) -> Asked {
    match key {
        Some(key) => Asked::Once { key, request: Box::new(request) },
        None => request,
    }
}

/// Refuses a key where the answer cannot be given again.
pub fn refuse<T>(request: &Request<T>, deed: &str) -> Result<(), ApiError> {
    if request.metadata().contains_key(IDEMPOTENCY_KEY) {
        return Err(ApiError::new(ErrorCode::Invalid, format!("{deed} takes no idempotency key: its answer holds what is not kept"))
            .field(IDEMPOTENCY_KEY)
            .hint("send it without one, and look before sending it again"));
    }
    Ok(())
}
