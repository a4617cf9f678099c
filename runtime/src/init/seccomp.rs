//! Installs the filter and hands its notifications over (seccomp(2)). In: a compiled [`Seccomp`]. Decides nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::{Doing, Failure};
use crate::core::seccomp::{HandOver, Seccomp};
use crate::sync::{Channel, Message};
use crate::sys;

/// From here on only calls that the filter allows are answered, so nothing but the handing over is done.
pub fn install(filter: &Seccomp, channel: &Channel) -> Result<(), Failure> {
    let installed = sys::install_seccomp(&filter.program, filter.flags).map_err(explained)?;
    let (Some(descriptor), Some(listener)) = (installed, &filter.listener) else { return Ok(()) };
    let message = Message::Listener { number: descriptor.as_raw_fd() };
    let sent = match listener.hand_over {
        HandOver::Message => channel.send_with_file(&message, descriptor.as_fd()),
        // The parent takes its copy while it waits for what comes next; the descriptor itself closes at exec.
        HandOver::Number => channel.send(&message).map(|()| std::mem::forget(descriptor)),
    };
    sent.doing(|| "hand the notifications over".to_owned())
}

fn explained(error: io::Error) -> Failure {
    let why = match error.raw_os_error() {
        Some(libc::EACCES) => "a filter without process.noNewPrivileges needs CAP_SYS_ADMIN, which this runtime does not hold",
        Some(libc::EINVAL) => "does this kernel know each of linux.seccomp.flags?",
        Some(libc::EBUSY) => "this runtime runs under a filter that notifies already, and the kernel allows one",
        _ => "",
    };
    Failure { errno: error.raw_os_error().unwrap_or(0), detail: why.to_owned() }
}
