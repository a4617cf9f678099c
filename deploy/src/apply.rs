//! Sends desired objects to the managers: all in one transaction, or none. The only IO of this crate.

use rcluster_api::client::keyed;
use rcluster_api::error::ApiError;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use tonic::transport::Channel;

use crate::native::Desired;

/// Applies all of `desired` or nothing, and once, however often this is called with one key.
///
/// # Errors
/// What the managers refuse, with the object to blame in the message.
pub async fn apply(client: &mut ControlClient<Channel>, key: &str, desired: &[Desired]) -> Result<v1::ApplyResponse, ApiError> {
    let specs = desired
        .iter()
        .map(|object| v1::Spec { kind: Some(object.spec.clone().into()), expected_version: object.expected_version })
        .collect();
    Ok(client.apply(keyed(key, v1::ApplyRequest { specs })).await?.into_inner())
}
