//! From a user's files to a verdict: parse (`native`), compare with what is there (`plan`), send (`apply`, the only IO), follow (`watch`).
//!
//! `native`, `plan` and `watch` are pure: text, objects and the time go in; specs, a diff that prints and a verdict come out.

pub mod apply;
pub mod native;
pub mod plan;
pub mod watch;
