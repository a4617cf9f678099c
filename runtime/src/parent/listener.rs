//! Introduces a container to the process that answers its seccomp notifications (config-linux.md "The Container Process State").

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;

use crate::core::check::OCI_VERSION;
use crate::core::seccomp::Listener;
use crate::core::status::Status;
use crate::state::Record;

/// A listener that takes nothing for so long is stuck.
const SEND_WAIT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    oci_version: &'a str,
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: State<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    pid: i32,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// Sends the descriptor of a process's notifications, and whose they are, on a connection of its own. `pid` is the process, which for `exec`
/// is not the container's first one.
pub fn introduce(listener: &Listener, record: &Record, status: Status, pid: i32, notifications: &OwnedFd) -> Result<()> {
    let Record { id, bundle, annotations, init, .. } = record;
    let first = init.as_ref().map_or(pid, |init| init.pid);
    let state = State { oci_version: OCI_VERSION, id, status, pid: first, bundle, annotations };
    let metadata = listener.metadata.as_deref();
    let message = ContainerProcessState { oci_version: OCI_VERSION, fds: ["seccompFd"], pid, metadata, state };
    let text = serde_json::to_vec(&message)?;
    send(listener, &text, notifications).with_context(|| format!("linux.seccomp.listenerPath: {}", listener.path.display()))
}

fn send(listener: &Listener, text: &[u8], notifications: &OwnedFd) -> Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(SEND_WAIT))?;
    let address = SocketAddrUnix::new(&listener.path).context("no path for a socket")?;
    rustix::net::connect(&socket, &address).context("connect: is the listener there?")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [notifications.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let mut sent = rustix::net::sendmsg(&socket, &[IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL).context("send")?;
    while sent < text.len() {
        sent += rustix::net::send(&socket, &text[sent..], SendFlags::NOSIGNAL).context("send")?;
    }
    Ok(())
}
