//! Archives that pass through a relay, between its frames and a thread that reads or writes them as a file.

use std::io::{self, Read, Write};
use std::time::Duration;

use rcluster_api::wire::v1::{relay_input, relay_output};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{DATA_BYTES_MAX, Gone, Line, Speaker};

/// Pieces of an archive that wait to be read.
const PIECES_MAX: usize = 4;

/// A piece of the user's archive.
#[derive(Debug)]
pub enum Piece {
    Data(Vec<u8>),
    End,
}

/// The user's archive as it comes. It ends only where the user says so.
#[derive(Debug)]
pub struct Pieces {
    queue: mpsc::Receiver<Piece>,
    piece: Vec<u8>,
    at: usize,
    over: bool,
}

impl Pieces {
    /// An archive, and the end into which its pieces go.
    pub fn new() -> (mpsc::Sender<Piece>, Self) {
        let (sender, queue) = mpsc::channel(PIECES_MAX);
        (sender, Self { queue, piece: Vec::new(), at: 0, over: false })
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() && !self.over {
            match self.queue.blocking_recv() {
                Some(Piece::Data(data)) => (self.piece, self.at) = (data, 0),
                Some(Piece::End) => self.over = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ended before its end")),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Why no more of an archive comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Gone,
    /// The archive is not over, and nothing came for as long as the user may take.
    Stalled,
}

/// Passes the archive on, and stays after its end to hear that the user has gone. `stall`: how long nothing may come of it.
pub async fn pass_in(line: &mut Line, pieces: mpsc::Sender<Piece>, mut stall: Option<Duration>) -> Ended {
    loop {
        let heard = match stall {
            None => line.hear().await,
            Some(stall) => match timeout(stall, line.hear()).await {
                Ok(heard) => heard,
                Err(_) => return Ended::Stalled,
            },
        };
        let piece = match heard {
            Err(Gone) => return Ended::Gone,
            Ok(relay_input::Kind::Data(data)) => Piece::Data(data),
            Ok(relay_input::Kind::CloseInput(_)) => {
                stall = None;
                Piece::End
            }
            Ok(_) => continue,
        };
        // Refused when the reader has ended: its answer is what counts.
        let _ = pieces.send(piece).await;
    }
}

/// Returns when the user has gone.
pub async fn deaf(line: &mut Line) -> Gone {
    while line.hear().await.is_ok() {}
    Gone
}

/// Sends an archive piece by piece.
#[derive(Debug)]
pub struct Frames {
    speaker: Speaker,
    data: Vec<u8>,
}

impl Frames {
    /// An archive that is written to the user.
    pub fn new(speaker: Speaker) -> Self {
        Self { speaker, data: Vec::new() }
    }
}

impl Write for Frames {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let room = DATA_BYTES_MAX - self.data.len();
        let count = buffer.len().min(room);
        self.data.extend_from_slice(&buffer[..count]);
        if self.data.len() == DATA_BYTES_MAX {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.data, Vec::with_capacity(DATA_BYTES_MAX));
        self.speaker.say_blocking(relay_output::Kind::Stdout(data)).map_err(|Gone| io::ErrorKind::BrokenPipe.into())
    }
}
