//! What the agent's tests share: images and registries made on the spot, a manager's side of the session, an agent process with everything it
//! leaves behind.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod agent;
pub mod image;
pub mod manager;
pub mod netd;
pub mod registry;
