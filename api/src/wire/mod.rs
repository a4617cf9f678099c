//! The wire: generated types (`gen`) and their conversion to and from the checked types of this crate (`convert`).

pub mod convert;

#[rustfmt::skip]
#[allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]
#[path = "gen/rcluster.v1.rs"]
pub mod v1;
