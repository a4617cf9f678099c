//! What the node's network shall be, and how to get there from what it is.
//!
//! Decides: which devices, neighbours, routes, rules and names follow from a picture and the pods attached here (`compile`), which
//! operations lead from what the kernel holds to that (`plan`), and what a question about a name is answered with (`names`).
//! In: a `Picture`, the `Attachment`s, the node's underlay address and MTU, the observed `Dataplane`. Out: `Dataplane`, `Plan`, `Zone`.
//! Never: await, clocks, randomness, IO, locks or maps with random order.

pub mod picture;

pub mod links;

pub mod neighbours;

pub mod rules;

pub mod dataplane;

pub mod plan;

pub mod names;
