//! `image pull`, `image load`, `image save`.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::thread;

use futures::future::join_all;
use rcluster_api::resource::Bytes;
use rcluster_api::wire::v1::{self, image_answer, image_request, relay_input, relay_output};
use serde::Serialize;
use tokio::fs as async_fs;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::progress::Board;
use super::{all, holders, images, next, on_each, open};
use crate::args::OnNodes;
use crate::cmd::exec;
use crate::cmd::nodes::{Failures, nodes};
use crate::cmd::relay::{Inputs, Relay};
use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;

const DATA_BYTES_MAX: usize = 32 << 10;
/// Pieces of an archive that wait for the slowest node.
const PIECES_MAX: usize = 4;

/// An image on a node, as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ArrivedJson {
    node: String,
    name: String,
    digest: String,
    bytes: u64,
}

/// `image pull IMAGE`.
pub async fn pull(mut session: Session, out: Out, name: &str, on: &OnNodes) -> Result<(), CliError> {
    let nodes = nodes(&mut session, on).await?;
    let mut failures = Failures::of(nodes.len());
    let ask = image_request::Kind::Pull(v1::ImagePull { name: name.to_owned() });
    let board = RefCell::new(Board::default());
    let drawn = output::talks_to_terminal();
    let draw = |text: String| if drawn { output::talk_raw(&text) } else { Ok(()) };
    let answers = on_each(&mut session, &nodes, &ask, async |node, relay| {
        let arrived = follow(relay, |progress| draw(board.borrow_mut().take(node, progress))).await;
        draw(board.borrow_mut().leave(node))?;
        arrived
    });
    let answers = answers.await?;
    print(out, failures.sift(answers)?)?;
    failures.end(&format!("pulling {name}"))
}

/// The images that came, once all has.
async fn follow(mut relay: Relay, tell: impl Fn(v1::ImageProgress) -> Result<(), CliError>) -> Result<Vec<v1::ImageSummary>, CliError> {
    let mut arrived = Vec::new();
    while let Some(answer) = next(&mut relay).await? {
        match answer {
            image_answer::Kind::Progress(progress) => tell(progress)?,
            other => arrived.extend(images(vec![other])),
        }
    }
    Ok(arrived)
}

/// A line for each image on each node.
pub fn print(out: Out, answers: Vec<(String, Vec<v1::ImageSummary>)>) -> Result<(), CliError> {
    let of_node = |(node, images): (String, Vec<v1::ImageSummary>)| {
        images.into_iter().map(move |v1::ImageSummary { name, digest, bytes, created: _, in_use: _ }| ArrivedJson {
            node: node.clone(),
            name,
            digest,
            bytes,
        })
    };
    let arrived: Vec<ArrivedJson> = answers.into_iter().flat_map(of_node).collect();
    if !out.is_table() {
        return out.value(&arrived);
    }
    let line = |ArrivedJson { node, name, digest, bytes }: &ArrivedJson| {
        format!("{node}: {name} {} ({})\n", super::look::short(digest), Bytes(*bytes).human())
    };
    output::data(&arrived.iter().map(line).collect::<String>())
}

/// `image load FILE`: the archive is read once and goes to all nodes at the pace of the slowest.
pub async fn load(mut session: Session, out: Out, file: &Path, on: &OnNodes) -> Result<(), CliError> {
    let (what, archive) = archive(file)?;
    let nodes = nodes(&mut session, on).await?;
    let mut failures = Failures::of(nodes.len());
    let (mut relays, mut ways) = (Vec::new(), Vec::new());
    for node in &nodes {
        match open(&mut session, node, image_request::Kind::Load(v1::ImageLoad {})).await? {
            Ok(relay) => {
                ways.push(relay.inputs());
                relays.push((node.clone(), relay));
            }
            Err(error) => failures.note(node.clone(), error)?,
        }
    }
    let answers = join_all(relays.into_iter().map(async |(node, relay)| (node, all(relay).await.map(images))));
    let sending = async { distribute(archive, ways).await.map_err(|error| CliError::refused(format!("read {what}: {error}"), "")) };
    // An archive that cannot be read ends the conversations, and with them what the nodes have begun.
    let ((), answers) = tokio::try_join!(sending, async { Ok(answers.await) })?;
    print(out, failures.sift(answers)?)?;
    failures.end(&format!("loading {what}"))
}

fn archive(file: &Path) -> Result<(String, Box<dyn Read + Send>), CliError> {
    if file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(CliError::usage(
                "standard input is a terminal, not an archive",
                "name a file, or pipe one in: docker save web:1 | …",
            ));
        }
        return Ok(("standard input".to_owned(), Box::new(io::stdin())));
    }
    let what = file.display().to_string();
    let failed = |error: &dyn std::fmt::Display| CliError::refused(format!("read {what}: {error}"), "");
    let opened = File::open(file).map_err(|error| failed(&error))?;
    if opened.metadata().map_err(|error| failed(&error))?.is_dir() {
        return Err(CliError::refused(format!("{what} is a directory"), format!("pack it: tar -C {what} -c . | rclusterctl image load -")));
    }
    Ok((what, Box::new(opened)))
}

/// Sends the archive to all who still listen; why another has stopped is in its answer.
async fn distribute(archive: Box<dyn Read + Send>, mut ways: Vec<Inputs>) -> io::Result<()> {
    let (sender, mut pieces) = mpsc::channel::<io::Result<Vec<u8>>>(PIECES_MAX);
    // A thread of its own: one that waits for standard input would keep the runtime from ending.
    thread::Builder::new().name("archive".to_owned()).spawn(move || read(archive, &sender))?;
    while let Some(piece) = pieces.recv().await {
        let piece = piece?;
        let sent = join_all(ways.iter().map(|way| way.send(relay_input::Kind::Data(piece.clone())))).await;
        let mut sent = sent.into_iter();
        ways.retain(|_| sent.next().is_some_and(|sent| sent.is_ok()));
        if ways.is_empty() {
            return Ok(());
        }
    }
    let end = || relay_input::Kind::CloseInput(v1::RelayCloseInput {});
    // Who does not listen any more has said why.
    join_all(ways.iter().map(|way| way.send(end()))).await;
    Ok(())
}

/// Reads the archive to its end, or to the first error, or until nobody wants more of it.
fn read(mut archive: Box<dyn Read + Send>, sender: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut piece = vec![0; DATA_BYTES_MAX];
        let read = match archive.read(&mut piece) {
            Ok(0) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(count) => {
                piece.truncate(count);
                Ok(piece)
            }
            Err(error) => Err(error),
        };
        let is_last = read.is_err();
        if sender.blocking_send(read).is_err() || is_last {
            return;
        }
    }
}

/// `image save IMAGE…`: from the first node that has all of them.
pub async fn save(mut session: Session, names: &[String], file: Option<&Path>, on: &OnNodes) -> Result<(), CliError> {
    let file = file.filter(|file| *file != Path::new("-"));
    if file.is_none() && output::is_terminal() {
        return Err(CliError::usage("a tar archive is not for a terminal", "give -o FILE, or send standard output to a file or a pipe"));
    }
    let mut common: Option<Vec<String>> = None;
    for name in names {
        let (holders, failures) = holders(&mut session, name, on).await?;
        if holders.is_empty() {
            return failures.end(&format!("looking for image {name}"));
        }
        let here: Vec<String> = holders.into_iter().map(|(node, _)| node).collect();
        common = Some(common.map_or(here.clone(), |common| common.into_iter().filter(|node| here.contains(node)).collect()));
    }
    let Some(node) = common.unwrap_or_default().into_iter().next() else {
        return Err(CliError::refused(format!("no node has all of {}", names.join(", ")), "save them one by one"));
    };
    let ask = image_request::Kind::Save(v1::ImageSave { names: names.to_vec() });
    let saved = match open(&mut session, &node, ask).await? {
        Ok(relay) => match file {
            Some(file) => receive_file(relay, file).await,
            None => receive(relay, &mut tokio::io::stdout()).await,
        },
        Err(error) => Err(error),
    };
    let bytes = saved.map_err(|error| match error {
        CliError::Refused { message, hint } => CliError::refused(format!("{node}: {message}"), hint),
        other => other,
    })?;
    let to = file.map_or("standard output".to_owned(), |file| file.display().to_string());
    output::talk(&format!("{} from {node} to {to}: {}", names.join(", "), Bytes(bytes).human()))
}

/// Written beside and then renamed: what stands there is whole.
async fn receive_file(relay: Relay, file: &Path) -> Result<u64, CliError> {
    let partial: PathBuf = file.with_added_extension("partial");
    let failed = |path: &Path, error: io::Error| CliError::refused(format!("write {}: {error}", path.display()), "");
    let mut to = async_fs::File::create(&partial).await.map_err(|error| failed(&partial, error))?;
    let received = match receive(relay, &mut to).await {
        Ok(bytes) => async_fs::rename(&partial, file).await.map(|()| bytes).map_err(|error| failed(file, error)),
        Err(error) => Err(error),
    };
    if received.is_err() {
        // The error tells; what is left of the attempt says nothing more.
        drop(async_fs::remove_file(&partial).await);
    }
    received
}

async fn receive(mut relay: Relay, to: &mut (impl AsyncWrite + Unpin)) -> Result<u64, CliError> {
    let mut bytes = 0;
    loop {
        match relay.next().await? {
            Some(relay_output::Kind::Stdout(data)) => {
                exec::print(to, &data).await?;
                bytes += data.len() as u64;
            }
            Some(relay_output::Kind::Exit(_)) => break,
            Some(_) => {}
            None => return Err(relay.ended()),
        }
    }
    to.flush().await.map_err(|error| CliError::refused(format!("write the archive: {error}"), ""))?;
    Ok(bytes)
}
