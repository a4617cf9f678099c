//! `exec`: runs a command in a container and ends as it does.

use std::io::{IsTerminal, Read, stderr, stdin, stdout};
use std::thread;

use rcluster_api::wire::v1::{self, relay_input, relay_open, relay_output};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::relay::{Inputs, Relay};
use crate::args::Exec;
use crate::error::CliError;
use crate::session::Session;

/// Largest piece of input in a frame.
const DATA_BYTES_MAX: usize = 32 << 10;

/// `exec [-i] [-t] TASK COMMAND…`.
pub async fn exec(mut session: Session, args: Exec) -> Result<(), CliError> {
    let Exec { interactive, tty, env, workdir, user, container, target, command } = args;
    if tty && interactive && !stdin().is_terminal() {
        return Err(CliError::usage("-t needs a terminal on standard input, which is none", "leave -t out to pass a file or a pipe on"));
    }
    let asked = v1::RelayExec {
        args: command,
        env,
        workdir: workdir.unwrap_or_default(),
        user: user.unwrap_or_default(),
        tty,
        stdin: interactive,
        size: if tty { terminal_size() } else { None },
    };
    let mut relay = Relay::open(&mut session, &target, &container.unwrap_or_default(), relay_open::Kind::Exec(asked)).await?;
    relay.opened().await?;
    let raw = if tty && interactive { Some(RawTerminal::enter()?) } else { None };
    if interactive {
        pass_input(relay.inputs());
    }
    let code = converse(&mut relay, tty).await;
    drop(raw);
    match code? {
        0 => Ok(()),
        code => Err(CliError::Ended { code: u8::try_from(code).unwrap_or(u8::MAX) }),
    }
}

/// Prints what comes until the command has ended; the answer is its exit code.
async fn converse(relay: &mut Relay, tty: bool) -> Result<i32, CliError> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let mut resized = window_changes(tty)?;
    let inputs = relay.inputs();
    loop {
        let kind = tokio::select! {
            kind = relay.next() => kind?,
            () = next(&mut resized) => {
                if let Some(size) = terminal_size() {
                    // Refused when the command has ended: the answers tell.
                    let _ = inputs.send(relay_input::Kind::Resize(size)).await;
                }
                continue;
            }
        };
        match kind {
            Some(relay_output::Kind::Stdout(data)) => print(&mut out, &data).await?,
            Some(relay_output::Kind::Stderr(data)) => print(&mut err, &data).await?,
            Some(relay_output::Kind::Exit(v1::RelayExit { code })) => return Ok(code),
            Some(_) => {}
            None => return Err(relay.ended()),
        }
    }
}

/// Writes data as it is; waits for a slow reader without holding up the connection.
pub async fn print(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), CliError> {
    let written = async {
        to.write_all(data).await?;
        to.flush().await
    };
    written.await.map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => CliError::ReaderGone,
        _ => CliError::refused(format!("write output: {error}"), ""),
    })
}

/// Sends standard input up to its end, from a thread of its own: a read that waits does not hold up the end of this program.
pub fn pass_input(inputs: Inputs) {
    thread::spawn(move || {
        let mut buffer = vec![0; DATA_BYTES_MAX];
        loop {
            match stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    // Nobody who listens, nothing to say.
                    let _ = inputs.send_blocking(relay_input::Kind::CloseInput(v1::RelayCloseInput {}));
                    return;
                }
                Ok(count) => {
                    if inputs.send_blocking(relay_input::Kind::Data(buffer[..count].to_vec())).is_err() {
                        return;
                    }
                }
            }
        }
    });
}

pub fn window_changes(tty: bool) -> Result<Option<Signal>, CliError> {
    let watch =
        || signal(SignalKind::window_change()).map_err(|error| CliError::refused(format!("watch the terminal's size: {error}"), ""));
    tty.then(watch).transpose()
}

pub async fn next(changes: &mut Option<Signal>) {
    match changes {
        Some(changes) => drop(changes.recv().await),
        None => std::future::pending().await,
    }
}

/// The size of the terminal that one of the standard streams is.
pub fn terminal_size() -> Option<v1::RelayResize> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).or_else(|_| tcgetwinsize(stderr())).ok()?;
    Some(v1::RelayResize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// The terminal passes every key on, until this is dropped.
pub struct RawTerminal(Termios);

impl RawTerminal {
    pub fn enter() -> Result<Self, CliError> {
        let failed = |error| CliError::refused(format!("set the terminal: {error}"), "");
        let before = tcgetattr(stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}
