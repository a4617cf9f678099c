//! What a lab is and how its hosts live, as pure functions.
//!
//! Decides: names, addresses and command lines ([`plan`]); what to do when a user asks, a host tells or a process dies ([`machine`]).
//! Never: a look at the machine, a clock, a process.

pub mod machine;
pub mod plan;
