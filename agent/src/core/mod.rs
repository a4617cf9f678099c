//! What the agent decides, without doing any of it: no await, clock, randomness, IO or lock in here.
//!
//! * [`owner`]: what is known of all tasks, and what follows from what is heard of them.
//! * [`reconcile`]: what to begin and what to end, from the managers' set and from what is known here.
//! * [`task`]: the next step of one task.
//! * [`health`]: what a container's checks mean.
//! * [`status`]: which report replaces which.
//! * [`beat`]: when a session is lost, and what its manager has not been told.
//! * [`seek`]: which manager to turn to next.
//! * [`bundle`]: the OCI configuration of a container.
//! * [`exec`]: the process of a command that is run in a container.
//! * [`monitor_message`]: what is said to a container's monitor, and what it answers.
//! * [`usage`]: numbers from the kernel's texts on what containers use.
//! * [`seccomp_profile`]: the system calls a container may make.
//! * [`user`]: who a container's process is, from the image's own `/etc/passwd` and `/etc/group`.
//! * [`reference`]: what the name of an image means, and when two names are the same name.
//! * [`platform`]: which of an index's images is for this host.
//! * [`image`]: what an image's configuration says of the container it becomes.
//! * [`mounts`]: which layers are under root file systems that are mounted.
//! * [`challenge`]: how to answer a registry that asks who we are.

pub mod owner;
pub mod reconcile;
pub mod task;

pub mod health;
pub mod status;

pub mod beat;
pub mod seek;

pub mod bundle;
pub mod exec;
pub mod monitor_message;
pub mod seccomp_profile;
pub mod usage;
pub mod user;

pub mod platform;
pub mod reference;

pub mod challenge;

pub mod logging;
pub mod mounts;

pub mod image;
pub mod image_gc;
