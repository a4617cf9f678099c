//! What the agent decides, without doing any of it: no await, clock, randomness, IO or lock in here.
//!
//! * [`reconcile`]: what to begin and what to end, from the managers' set and from what is known here.
//! * [`task`]: the next step of one task.
//! * [`health`]: what a container's checks mean.
//! * [`status`]: which report replaces which.
//! * [`seek`]: which manager to turn to next.
//! * [`bundle`]: the OCI configuration of a container.
//! * [`exec`]: the process of a command that is run in a container.
//! * [`usage`]: numbers from the kernel's texts on what containers use.
//! * [`user`]: who a container's process is, from the image's own `/etc/passwd` and `/etc/group`.
//! * [`reference`]: when two names of an image are the same name.

pub mod reconcile;
pub mod task;

pub mod health;
pub mod status;

pub mod seek;

pub mod bundle;
pub mod exec;
pub mod usage;
pub mod user;

pub mod reference;
