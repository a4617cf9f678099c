//! `cp`: files out of a container and into it, by docker's rules; `-` is a tar archive on standard input or output.

use std::fs;
use std::io::{self, Read, Write, stdin};
use std::path::Path;

use rcluster_api::copy::{Destination, Source, contents_only, land, split};
use rcluster_api::wire::v1::{self, relay_input, relay_open, relay_output};
use tar::{Archive, Builder, EntryType, HeaderMode};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::exec::print;
use super::relay::{Inputs, Relay};
use crate::args::Copy;
use crate::error::CliError;
use crate::output;
use crate::session::Session;

const DATA_BYTES_MAX: usize = 32 << 10;
/// Pieces of an archive that wait to be unpacked.
const PIECES_MAX: usize = 4;

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Container {
        target: String,
        path: String,
    },
    Local(String),
    /// Standard input or output.
    Stream,
}

/// `cp SOURCE DESTINATION`.
pub async fn copy(mut session: Session, args: Copy) -> Result<(), CliError> {
    let container = args.container.as_deref().unwrap_or_default();
    match (place(&args.source)?, place(&args.destination)?) {
        (Place::Container { target, path }, to @ (Place::Local(_) | Place::Stream)) => {
            copy_out(&mut session, &target, container, &path, &to, args.follow_link).await
        }
        (from @ (Place::Local(_) | Place::Stream), Place::Container { target, path }) => {
            copy_in(&mut session, &target, container, &path, &from, args.follow_link).await
        }
        (Place::Container { .. }, Place::Container { .. }) => {
            Err(CliError::usage("both ends are in containers", "copy to this machine first, or pipe: cp A:DIR - | rclusterctl cp - B:DIR"))
        }
        (Place::Local(_) | Place::Stream, Place::Local(_) | Place::Stream) => {
            Err(CliError::usage("neither end is in a container", "write the one that is as TASK:PATH; a local path with a colon as ./PATH"))
        }
    }
}

/// `TASK:PATH`, unless what is before the colon cannot be a task's name.
fn place(text: &str) -> Result<Place, CliError> {
    if text == "-" {
        return Ok(Place::Stream);
    }
    match text.split_once(':') {
        Some((target, path)) if !target.is_empty() && !target.contains('/') && !target.starts_with('.') => {
            // As docker: a path in a container is counted from its root.
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            Ok(Place::Container { target: target.to_owned(), path })
        }
        _ if text.is_empty() => Err(CliError::usage("a path is empty", "")),
        _ => Ok(Place::Local(text.to_owned())),
    }
}

fn local(what: &str, path: impl AsRef<Path>, error: &io::Error) -> CliError {
    CliError::refused(format!("{what} {}: {error}", path.as_ref().display()), "")
}

fn there(path: &str) -> Result<Destination, CliError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(Destination::Directory),
        Ok(_) => Ok(Destination::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Destination::Absent),
        // `FILE/`.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Destination::File),
        Err(error) => Err(local("look at", path, &error)),
    }
}

async fn copy_out(session: &mut Session, target: &str, container: &str, path: &str, to: &Place, follow_link: bool) -> Result<(), CliError> {
    let name = split(path).1;
    let (to, root_name) = match to {
        Place::Local(to) => {
            let found = there(to)?;
            // What the source is shows with the first entry; the name is the same for both, but for what is then refused.
            let source = Source { name, is_dir: found != Destination::File, contents_only: contents_only(path) };
            let landing = land(source, to, found).map_err(|error| CliError::refused(error.to_string(), ""))?;
            let is_dir = fs::metadata(&landing.directory).is_ok_and(|found| found.is_dir());
            if !is_dir {
                return Err(CliError::refused(format!("there is no directory {}", landing.directory), "make it first"));
            }
            (Some((to.clone(), found, landing.directory)), landing.root_name)
        }
        Place::Stream | Place::Container { .. } if output::is_terminal() => {
            return Err(CliError::usage("a tar archive is not for a terminal", "send standard output to a file or a pipe"));
        }
        Place::Stream | Place::Container { .. } => {
            (None, if name.is_empty() || contents_only(path) { ".".to_owned() } else { name.to_owned() })
        }
    };
    let asked = v1::RelayCopyFrom { path: path.to_owned(), root_name, follow_link };
    let mut relay = Relay::open(session, target, container, relay_open::Kind::CopyFrom(asked)).await?;
    relay.opened().await?;
    let Some((to, found, directory)) = to else {
        let mut out = tokio::io::stdout();
        return receive(&mut relay, async |data| print(&mut out, &data).await).await;
    };
    let (pieces, queue) = mpsc::channel(PIECES_MAX);
    let source = (name.to_owned(), contents_only(path));
    let unpacking = spawn_blocking(move || unpack(Pieces { queue, piece: Vec::new(), at: 0 }, &source, &to, found, &directory));
    // When the unpacker ends early, its reason is the one to tell.
    let received = receive(&mut relay, async |data| pieces.send(data).await.map_err(|_| CliError::ReaderGone)).await;
    let complete = received.is_ok();
    if complete {
        drop(pieces.send(Vec::new()).await);
    }
    drop(pieces);
    let unpacked = unpacking.await.map_err(|error| CliError::refused(format!("unpack: {error}"), ""))?;
    match received {
        Err(CliError::ReaderGone) | Ok(()) => unpacked,
        Err(error) => Err(error),
    }
}

/// Hands the data on until the container's side has said that it is all.
async fn receive(relay: &mut Relay, mut take: impl AsyncFnMut(Vec<u8>) -> Result<(), CliError>) -> Result<(), CliError> {
    loop {
        match relay.next().await? {
            Some(relay_output::Kind::Stdout(data)) => take(data).await?,
            Some(relay_output::Kind::Exit(_)) => return Ok(()),
            Some(_) => {}
            None => return Err(relay.ended()),
        }
    }
}

/// The container's archive as it comes; an empty piece is its end.
struct Pieces {
    queue: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ended before its end");
            (self.piece, self.at) = (self.queue.blocking_recv().ok_or_else(broken)?, 0);
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Unpacks below `directory`. The archive may be anyone's: what leads out of the directory is not unpacked.
fn unpack(pieces: Pieces, source: &(String, bool), to: &str, found: Destination, directory: &str) -> Result<(), CliError> {
    let mut archive = Archive::new(pieces);
    let failed = |error: io::Error| local("unpack below", directory, &error);
    let mut is_first = true;
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let kind = entry.header().entry_type();
        if std::mem::take(&mut is_first) {
            let (name, contents_only) = source;
            let source = Source { name, is_dir: kind == EntryType::Directory, contents_only: *contents_only };
            land(source, to, found).map_err(|error| CliError::refused(error.to_string(), ""))?;
        }
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let is_known = matches!(
            kind,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse | EntryType::Directory | EntryType::Symlink | EntryType::Link
        );
        if !is_known {
            output::talk(&format!("{shown}: not copied, as it is no file, directory or link"))?;
        } else if !entry.unpack_in(directory).map_err(failed)? {
            output::talk(&format!("{shown}: not copied, as it leads out of {directory}"))?;
        }
    }
    Ok(())
}

async fn copy_in(
    session: &mut Session,
    target: &str,
    container: &str,
    path: &str,
    from: &Place,
    follow_link: bool,
) -> Result<(), CliError> {
    let asked = match from {
        Place::Local(from) => {
            let look = if follow_link || from.ends_with('/') { fs::metadata(from) } else { fs::symlink_metadata(from) };
            let source_is_dir = look.map_err(|error| local("read", from, &error))?.is_dir();
            let name = local_name(from)?;
            let contents_only = source_is_dir && contents_only(from);
            v1::RelayCopyTo { path: path.to_owned(), source_name: name, source_is_dir, contents_only, archive: false }
        }
        Place::Stream | Place::Container { .. } => v1::RelayCopyTo { path: path.to_owned(), archive: true, ..v1::RelayCopyTo::default() },
    };
    let mut relay = Relay::open(session, target, container, relay_open::Kind::CopyTo(asked)).await?;
    relay.opened().await?;
    let Some(relay_output::Kind::Landing(v1::RelayLanding { root_name })) = relay.next().await? else { return Err(relay.ended()) };
    let (inputs, from) = (relay.inputs(), from.clone());
    let packing = spawn_blocking(move || {
        let mut frames = Frames { inputs, data: Vec::new() };
        let packed = match &from {
            Place::Local(from) => pack(from, &root_name, follow_link, &mut frames),
            Place::Stream | Place::Container { .. } => io::copy(&mut stdin().lock(), &mut frames).map(drop),
        };
        let what = if let Place::Local(from) = from { from } else { "standard input".to_owned() };
        packed.and_then(|()| frames.finish()).map_err(|error| (error, what))
    });
    let mut packing = std::pin::pin!(packing);
    let mut is_packed = false;
    let mut received = std::pin::pin!(receive(&mut relay, async |_| Ok(())));
    loop {
        tokio::select! {
            packed = &mut packing, if !is_packed => {
                is_packed = true;
                match packed.map_err(|error| CliError::refused(format!("pack: {error}"), ""))? {
                    // A packer that meets the end of the conversation has nothing to say of it.
                    Err((error, what)) if error.kind() != io::ErrorKind::BrokenPipe => return Err(local("read", what, &error)),
                    Ok(()) | Err(_) => {}
                }
            }
            done = &mut received => return done,
        }
    }
}

/// The last name of a local path, also of `.` and `..`.
fn local_name(path: &str) -> Result<String, CliError> {
    let name = split(path).1;
    if !matches!(name, "" | "." | "..") {
        return Ok(name.to_owned());
    }
    let full = fs::canonicalize(path).map_err(|error| local("find", path, &error))?;
    Ok(full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
}

fn pack(from: &str, root_name: &str, follow_link: bool, frames: &mut Frames) -> io::Result<()> {
    let mut archive = Builder::new(frames);
    archive.mode(HeaderMode::Complete);
    archive.follow_symlinks(false);
    archive.sparse(false);
    let linked;
    let from = if follow_link || from.ends_with('/') {
        linked = fs::canonicalize(from)?;
        linked.as_path()
    } else {
        Path::new(from)
    };
    if fs::symlink_metadata(from)?.is_dir() {
        archive.append_dir_all(root_name, from)?
    } else {
        archive.append_path_with_name(from, root_name)?
    }
    archive.finish()
}

/// Sends an archive piece by piece.
struct Frames {
    inputs: Inputs,
    data: Vec<u8>,
}

impl Frames {
    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        let end = relay_input::Kind::CloseInput(v1::RelayCloseInput {});
        self.inputs.send_blocking(end).map_err(|()| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Frames {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = buffer.len().min(DATA_BYTES_MAX - self.data.len());
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
        self.inputs.send_blocking(relay_input::Kind::Data(data)).map_err(|()| io::ErrorKind::BrokenPipe.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_after_a_name_means_a_container() {
        let container = |target: &str, path: &str| Place::Container { target: target.to_owned(), path: path.to_owned() };
        for (text, expected) in [
            ("web.1:/etc", container("web.1", "/etc")),
            ("web.1:etc/", container("web.1", "/etc/")),
            ("web.1:", container("web.1", "/")),
            ("./a:b", Place::Local("./a:b".to_owned())),
            ("/a:b", Place::Local("/a:b".to_owned())),
            ("a", Place::Local("a".to_owned())),
            ("-", Place::Stream),
        ] {
            assert_eq!(place(text).unwrap(), expected, "{text}");
        }
        place("").unwrap_err();
    }
}
