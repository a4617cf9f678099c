//! The words that managers, agents, netd and the command line share: what a user asks for, what the managers keep, how both stand
//! on the wire. Conversion and checking are pure; only `client` talks to anyone.

pub mod wire;
