//! What one node must run and must reach, as views of the replicated state.

pub mod assignments;
pub mod leave;
pub mod netview;
pub mod told;
