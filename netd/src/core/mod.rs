//! What the node's network shall be, and how to get there from what it is.
//!
//! Decides: which devices, neighbours, routes, rules and names follow from a picture and the pods attached here (`compile`), what the
//! host needs for the way out (`uplink`), who is behind published ports (`published`) and how nodes reach them (`ingress`), what a network's
//! policy lets pass (`policy`), which tunnels encrypted networks have and which keys are told (`encryption`), which operations lead from what
//! the kernel holds to that (`plan`), which connections it is to forget (`flows`), what a question about a name is answered with (`names`),
//! what others are asked, believed (`foreign`) and remembered of (`cache`), how much of the resolver one pod may have (`shares`), what is told
//! of the host's own routes (`routes`), of all that is held and wanted (`dump`), of a packet's way (`trace`), and of paths to other nodes
//! (`paths`).
//! In: a `Picture`, the `Attachment`s, the node's underlay address and MTU, the observed `Dataplane`. Out: `Dataplane`, `Plan`, `Answer`.
//! Never: await, clocks, randomness, IO, locks or maps with random order.

pub mod picture;

pub mod policy;

pub mod links;

pub mod published;

pub mod ingress;

pub mod neighbours;

pub mod uplink;

pub mod encryption;

pub mod rules;

pub mod dataplane;

pub mod plan;

pub mod flows;

pub mod names;

pub mod foreign;

pub mod cache;

pub mod shares;

pub mod routes;

pub mod dump;

pub mod trace;

pub mod paths;

#[cfg(test)]
pub mod fixtures;
