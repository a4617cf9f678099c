//! What a container's first process writes from now on, until it ends; and what the user writes to it, if its standard input stays open.
//! Its output is what its monitor keeps, line by line; that of a container with a terminal is what its monitor shows, as it comes.

use std::io::ErrorKind;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::wire::v1::{self, LogEntry, relay_input, relay_output};
use rustix::io::Errno;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::terminal::{self, Control};
use super::{Gone, Line, Speaker, Target, chain, internal, opened};
use crate::core::task::container_name;
use crate::exec::monitor::{self, Screen, Seen};
use crate::exec::runtime_cli::read_exit;
use crate::exec::{Tools, process};
use crate::logs::read::{Reader, Selection};

/// How soon a new line is seen.
const LOOK: Duration = Duration::from_millis(50);

/// How long a monitor may take to show a terminal, and to end when the terminal has.
const MONITOR: Duration = Duration::from_secs(3);

/// Sends what the container writes until it ends, and then how it ended.
pub async fn attach(tools: &Tools, target: &Target, line: &mut Line) -> Result<(), ApiError> {
    let Target { task, container, .. } = target;
    let spec = task.template.containers.iter().find(|spec| container_name(&spec.name, &task.service) == container.name);
    let (takes_input, has_terminal) = spec.map_or((false, false), |spec| (spec.stdin, spec.tty));
    let (mut ends, screen) = if has_terminal {
        let (screen, master) = monitor::terminal(&target.place.tty_socket(), MONITOR).await.map_err(|error| {
            ApiError::new(ErrorCode::Conflict, format!("the terminal of container {}: {}", container.name, chain(&error)))
                .hint("try again; rclusterctl ps -a says whether the container still runs")
        })?;
        let (input, control) = terminal::of_container(master).map_err(|error| internal("use the container's terminal", &error))?;
        // Without an open standard input a terminal is only looked at, as in Docker.
        (Ends { input: Some(input).filter(|_| takes_input), control: Some(control), has_size: false }, Some(screen))
    } else {
        (Ends { input: stdin(target)?, control: None, has_size: false }, None)
    };
    let mut opened = opened(tools, target);
    if let relay_output::Kind::Opened(opened) = &mut opened {
        (opened.stdin, opened.tty) = (ends.input.is_some(), has_terminal);
    }
    if line.say(opened).await.is_err() {
        return Ok(());
    }
    let (speaker, line) = line.split();
    let output = async {
        match &screen {
            Some(screen) => show(target, screen, &speaker).await,
            None => follow(tools, target, &speaker).await,
        }
    };
    tokio::select! {
        shown = output => shown,
        Gone = hear(line, target, &mut ends) => Ok(()),
        () = speaker.closed() => Ok(()),
    }
}

/// Where goes what the user sends.
struct Ends {
    input: Option<pipe::Sender>,
    control: Option<Control>,
    /// Whether the user has said how large the terminal is.
    has_size: bool,
}

/// The way to the container's standard input, if it has one.
fn stdin(target: &Target) -> Result<Option<pipe::Sender>, ApiError> {
    match pipe::OpenOptions::new().open_sender(target.place.stdin()) {
        Ok(sender) => Ok(Some(sender)),
        // No FIFO, or nobody reads it any more: the container's end is seen by its monitor.
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(internal("open the container's standard input", &error)),
    }
}

async fn follow(tools: &Tools, target: &Target, speaker: &Speaker) -> Result<(), ApiError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let mut reader = Reader::new(tools.places.of_task(&target.task.id).logs, Selection { tail: 0, since_ms });
    let mut monitor_ended = std::pin::pin!(async {
        match target.container.monitor {
            Some(monitor) => process::ended(monitor).await,
            None => Ok(()),
        }
    });
    let mut over = false;
    loop {
        let read = spawn_blocking(move || {
            let lines = reader.read();
            (reader, lines)
        });
        let lines;
        (reader, lines) = read.await.map_err(|error| internal("read the log", &error))?;
        let lines = lines.map_err(|error| internal("read the log", &error))?;
        if lines.is_empty() && over {
            return finish(target, speaker).await;
        }
        let pause = lines.is_empty();
        for kind in lines.into_iter().filter(|entry| entry.container == target.container.name).map(frame) {
            if speaker.say(kind).await.is_err() {
                return Ok(());
            }
        }
        if pause {
            tokio::select! {
                () = sleep(LOOK) => {}
                // What it wrote before its end is read once more.
                ended = &mut monitor_ended, if !over => {
                    ended.map_err(|error| internal("wait for the container's end", &error))?;
                    over = true;
                }
            }
        }
    }
}

/// Sends what the terminal shows.
async fn show(target: &Target, screen: &Screen, speaker: &Speaker) -> Result<(), ApiError> {
    loop {
        let kind = match screen.next().await.map_err(|error| internal("look at the container's terminal", &error))? {
            Seen::Output(bytes) => relay_output::Kind::Stdout(bytes),
            Seen::Missed(bytes) => relay_output::Kind::Stderr(
                format!("\r\nrcluster: {bytes} bytes were left out: they were not taken in time\r\n").into_bytes(),
            ),
            Seen::End => break,
        };
        if speaker.say(kind).await.is_err() {
            return Ok(());
        }
    }
    if let Some(monitor) = target.container.monitor {
        let ended = timeout(MONITOR, process::ended(monitor)).await;
        ended.unwrap_or(Ok(())).map_err(|error| internal("wait for the container's end", &error))?;
    }
    finish(target, speaker).await
}

async fn finish(target: &Target, speaker: &Speaker) -> Result<(), ApiError> {
    match read_exit(&target.place.exit_file()) {
        Ok(Some(exit)) => {
            let code = exit.exit_code.or_else(|| exit.signal.map(|signal| 128 + signal)).unwrap_or(i32::from(u8::MAX));
            // A user who has gone misses nothing.
            let _ = speaker.say(relay_output::Kind::Exit(v1::RelayExit { code })).await;
            Ok(())
        }
        Ok(None) | Err(_) => {
            let message = format!("container {} has ended, and how is not known any more", target.container.name);
            Err(ApiError::new(ErrorCode::Conflict, message).hint("rclusterctl ps -a says what became of its task"))
        }
    }
}

fn frame(entry: LogEntry) -> relay_output::Kind {
    let mut data = entry.text.into_bytes();
    data.push(b'\n');
    if entry.stream == "stderr" { relay_output::Kind::Stderr(data) } else { relay_output::Kind::Stdout(data) }
}

/// Passes data, the terminal's size and signals on to the container's first process; returns when the user has gone. While the container does not read, the
/// user is not heard.
async fn hear(line: &mut Line, target: &Target, ends: &mut Ends) -> Gone {
    loop {
        match line.hear().await {
            Err(Gone) => return Gone,
            Ok(relay_input::Kind::Signal(name)) => {
                let sent = super::exec::signal(&name).map(|signal| process::signal(target.process, signal));
                if let Some(Err(error)) = sent {
                    warn!(container = target.container.id, %error, "cannot pass a signal on");
                }
            }
            Ok(relay_input::Kind::Data(data)) => {
                if let Some(sender) = &mut ends.input
                    && sender.write_all(&data).await.is_err()
                {
                    // It has ended, which its monitor tells.
                    ends.input = None;
                }
            }
            Ok(relay_input::Kind::Resize(v1::RelayResize { rows, columns })) => {
                if let Some(control) = &ends.control {
                    let set = if ends.has_size { control.resize(rows, columns) } else { control.change(rows, columns) };
                    ends.has_size = true;
                    if let Err(error) = set {
                        debug!(container = target.container.id, %error, "a terminal keeps its size");
                    }
                }
            }
            // The container's input stays open for whoever attaches next.
            Ok(_) => {}
        }
    }
}
