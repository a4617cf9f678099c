//! The wire: generated types (`gen`) and their conversion to and from the checked types of this crate (`convert`).

pub mod convert;

#[rustfmt::skip]
#[allow(clippy::all, reason = "generated")]
#[path = "gen/rcluster.v1.rs"]
pub mod v1;
