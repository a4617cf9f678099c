//! Every field of `config.json` that another runtime knows: the same bundle under this runtime and under it, which must do the same.
//!
//! The other is runc; for the few fields that runc 1.1.5 lacks and crun 1.8.1 has, it is crun. `docs/runtime-fields.md` names the test of
//! each field, and lists where the two differ on purpose.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod engine;

mod exec;
mod hooks;
mod linux;
mod mounts;
mod process;
mod resources;
mod terminal;
mod verbs;
