//! Decisions without effects: no system call, clock, file or environment is reached from here.
//!
//! Decides what a bundle asks for (`spec` → `check`), which cgroups hold the container (`cgroup`) and how their limits change (`update`),
//! the ordered steps that turn a fresh process into the container's (`plan`, `exec`, `caller`), and what to call a container's state and
//! use (`status`, `stats`), and what a monitor is asked for (`request`). In: texts and facts that the caller read. Out: values that print. Never touches the kernel: `parent` and
//! `init` do.

pub mod spec;

pub mod capability;
pub mod cpu_list;
pub mod mount_options;
pub mod signal;
pub mod time;

pub mod check;
pub mod hooks;

pub mod cgroup;
pub mod device_filter;
pub mod limits;
pub mod resctrl;
pub mod seccomp;
pub mod update;

pub mod route;

pub mod plan;
pub mod template;

pub mod caller;
pub mod exec;
pub mod log_sink;
pub mod request;

pub mod members;
pub mod stats;
pub mod status;
pub mod table;
pub mod user;
