//! Checks health: commands through the runtime, HTTP and TCP from inside the pod's network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rcluster_api::health::{Health, HealthCheck, HttpCheck};
use rcluster_base::clock::unix_ms;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::core::health::Checks;
use crate::exec::monitor::{self, MonitorError};
use crate::exec::process::PidFile;
use crate::exec::runtime_cli::Runtime;
use crate::place::PauseMark;

/// The most that is kept of what a check says.
const OUTPUT_BYTES_MAX: usize = 1000;

/// How long a monitor may take to begin a check.
const ANSWER: Duration = Duration::from_secs(2);

/// The clock may be set between two checks: it is looked at again this often.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Where a container's checks are made.
#[derive(Debug, Clone)]
pub struct Place {
    /// The runtime's name for the container.
    pub container: String,
    /// Of its first process.
    pub pid: u32,
    /// The pod's first address, if it is on a network.
    pub ip: Option<Ipv4Addr>,
    /// Where the container's monitor executes commands; a monitor of another runtime's container does not.
    pub monitor: Option<PathBuf>,
    /// Takes the number of a check's process that is executed without the monitor.
    pub pid_file: PathBuf,
    pub pause: PauseMark,
}

/// A health that differs from the one before, and what the check said that brought it about.
#[derive(Debug)]
pub struct Change {
    pub health: Health,
    pub output: String,
}

/// Checks until the health changes.
///
/// What a user has paused is not asked how it is, and a failure counts only if the container was not paused meanwhile.
pub async fn change(runtime: &Runtime, place: &Place, checks: &mut Checks) -> Change {
    loop {
        let left = checks.due_ms().saturating_sub(unix_ms());
        if left > 0 {
            sleep(Duration::from_millis(left).min(WAIT_MAX)).await;
            continue;
        }
        let pauses = place.pause.pauses();
        if pauses.paused {
            sleep(WAIT_MAX).await;
            continue;
        }
        let before = checks.health();
        let result = probe(runtime, place, checks.check()).await;
        if result.is_err() && place.pause.pauses() != pauses {
            continue;
        }
        let health = checks.take(result.is_ok(), unix_ms());
        if health != before {
            let mut output = result.err().unwrap_or_default();
            output.truncate(output.floor_char_boundary(OUTPUT_BYTES_MAX));
            return Change { health, output };
        }
    }
}

/// One check; the error is a sentence for the user.
async fn probe(runtime: &Runtime, place: &Place, check: &HealthCheck) -> Result<(), String> {
    let limit = check.timeout.duration();
    let done = async {
        match (&check.http, &check.tcp) {
            (Some(http), _) => get(place, http).await,
            (None, Some(tcp)) => connect(place, tcp.port).await.map(drop),
            (None, None) => execute(runtime, place, &check.command, limit).await,
        }
    };
    timeout(limit, done).await.unwrap_or_else(|_| Err(format!("the check did not end within {}", check.timeout)))
}

/// A command in the container, by its monitor. One that does not answer is no fault of the container's: then the runtime's command line
/// executes it, in what is left of the time.
async fn execute(runtime: &Runtime, place: &Place, command: &[String], limit: Duration) -> Result<(), String> {
    if let Some(socket) = &place.monitor {
        match monitor::run(socket, command, ANSWER.min(limit / 2)).await {
            // It has ended, or an agent of an earlier release started it without one.
            Err(MonitorError::Unreachable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.is_of_monitor() => {
                let error = &error as &dyn std::error::Error;
                warn!(container = place.container, error, "its monitor executes no check: the runtime's command line does");
            }
            done => return done.map_err(|error| error.to_string()),
        }
    }
    runtime.exec(&place.container, command, PidFile::new(place.pid_file.clone())).await
}

/// A connection to a port of the pod, made as by a process in it.
async fn connect(place: &Place, port: u16) -> Result<tokio::net::TcpStream, String> {
    let address = SocketAddr::new(IpAddr::V4(place.ip.unwrap_or(Ipv4Addr::LOCALHOST)), port);
    let failed = |error: io::Error| format!("connect to {address}: {error}");
    let socket = socket_inside(place.pid).await.map_err(failed)?;
    socket.connect(address).await.map_err(failed)
}

/// A socket belongs to the network namespace of the thread that makes it; that thread is not used again.
async fn socket_inside(pid: u32) -> io::Result<TcpSocket> {
    let (made, socket) = oneshot::channel();
    let make = move || -> io::Result<TcpStream> {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?.into())
    };
    std::thread::Builder::new().name("health".to_owned()).spawn(move || {
        // Nobody waits for it any more when the check was given up meanwhile.
        drop(made.send(make()));
    })?;
    let socket = socket.await.map_err(|_| io::Error::other("the thread that makes the socket died"))??;
    Ok(TcpSocket::from_std_stream(socket))
}

async fn get(place: &Place, check: &HttpCheck) -> Result<(), String> {
    let stream = connect(place, check.port).await?;
    let failed = |error: &dyn std::fmt::Display| format!("GET {}: {error}", check.path);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let request = hyper::Request::get(&check.path)
        .header(hyper::header::HOST, format!("localhost:{}", check.port))
        .header(hyper::header::USER_AGENT, concat!("rcluster-agent/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    // The connection ends with the sender and the answer's body, both dropped once the status is there.
    let ask = async move { sender.send_request(request).await.map(|answer| answer.status()) };
    let (status, _ended) = tokio::join!(ask, connection);
    let status = status.map_err(|error| failed(&error))?;
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(failed(&status)) }
}
