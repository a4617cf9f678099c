//! The thread that a node runs on: the process's clock and its inputs, in the node's own rounds.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::log::LogStore;
use super::node::Node;
use super::{Environment, Fatal, Input, Job, Transport};

/// Inputs taken in before the log is written once for all of them.
const DRAIN_MAX: usize = 1024;

/// The process: the machine's clock, since this was made, and threads for what is done beside the node.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    started: Instant,
}

impl Process {
    /// The clock begins now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Environment for Process {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn beside(&mut self, job: Job) -> io::Result<()> {
        std::thread::Builder::new().name("snapshot".to_owned()).spawn(job).map(drop)
    }
}

/// Runs a node until it is shut down; who wants to be told is to be told once this has returned, and the log is closed.
pub fn run<L: LogStore, T: Transport>(
    mut node: Node<L, T>,
    inputs: &Receiver<Input>,
    tick: Duration,
    clock: Process,
) -> Result<Option<oneshot::Sender<()>>, Fatal> {
    node.start(clock.now())?;
    let mut next_tick = clock.now() + tick;
    loop {
        let now = clock.now();
        node.work(now)?;
        if node.is_stopped(now) {
            return Ok(node.end());
        }
        match inputs.recv_timeout(next_tick.saturating_sub(clock.now())) {
            Ok(input) => node.handle(clock.now(), input)?,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
        let now = clock.now();
        for input in inputs.try_iter().take(DRAIN_MAX) {
            node.handle(now, input)?;
        }
        if now >= next_tick {
            // Ticks that a stall swallowed are not made up for: what came in meanwhile has been heard above, and silence that was not
            // listened to proves nothing.
            next_tick += tick;
            if next_tick <= now {
                next_tick = now + tick;
            }
            node.tick(now);
        }
    }
}
