//! `image`: what the nodes have. Each node is asked by itself, by way of the managers; what some could not do does not keep the others
//! from it, and is told with the node's name.

mod change;
mod look;
mod progress;
mod transfer;

use futures::future::join_all;
use rcluster_api::object::{Kind, NodeState, Object};
use rcluster_api::wire::v1::{self, image_answer, image_request, relay_open, relay_output};

use super::relay::Relay;
use crate::args::{ImageCommand, OnNodes};
use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;

/// So many nodes are asked at once.
const NODES_AT_ONCE: usize = 32;

/// Carries out an `image` verb.
pub async fn run(session: Session, out: Out, command: ImageCommand) -> Result<(), CliError> {
    match command {
        ImageCommand::Ls { image, on } => look::ls(session, out, image.as_deref(), &on).await,
        ImageCommand::History { image, on } => look::history(session, out, &image, &on).await,
        ImageCommand::Inspect { image, on } => look::inspect(session, out, &image, &on).await,
        ImageCommand::Pull { image, on, all: _ } => transfer::pull(session, out, &image, &on).await,
        ImageCommand::Load { file, on } => transfer::load(session, out, &file, &on).await,
        ImageCommand::Save { images, file, on } => transfer::save(session, &images, file.as_deref(), &on).await,
        ImageCommand::Rm { images, force, on } => change::rm(session, out, &images, force, &on).await,
        ImageCommand::Tag { source, target, on } => change::tag(session, out, &source, &target, &on).await,
        ImageCommand::Prune { all, dry_run, on } => change::prune(session, out, all, dry_run, &on).await,
    }
}

/// What one node has answered.
type Answer<T> = (String, Result<T, CliError>);

/// The nodes that are meant: those named, else all that are not down; which are down is said.
pub(super) async fn nodes(session: &mut Session, on: &OnNodes) -> Result<Vec<String>, CliError> {
    let nodes = session.list(Kind::Node, "", "").await?.into_iter().filter_map(|object| match object {
        Object::Node(node) => Some(node),
        _ => None,
    });
    let mut nodes: Vec<_> = nodes.collect();
    if !on.nodes.is_empty() {
        let find = |name: &String| {
            let found = nodes.iter().find(|node| node.name() == name || node.id.as_str() == name);
            found
                .map(|node| node.name().to_owned())
                .ok_or_else(|| CliError::refused(format!("there is no node {name}"), "rclusterctl get nodes lists them"))
        };
        let mut named = on.nodes.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        named.sort();
        named.dedup();
        return Ok(named);
    }
    nodes.sort_by(|a, b| a.name().cmp(b.name()));
    let (down, up): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.state == NodeState::Down);
    for node in &down {
        output::talk(&format!("node {} is down: left out", node.name()))?;
    }
    if up.is_empty() {
        return Err(CliError::refused("no node is ready", "rclusterctl get nodes shows the nodes and why they are not"));
    }
    Ok(up.iter().map(|node| node.name().to_owned()).collect())
}

/// Asks each node the same of its images, and gathers what `take` makes of the answers.
async fn on_each<T>(
    session: &mut Session,
    nodes: &[String],
    ask: &image_request::Kind,
    take: impl AsyncFn(&str, Relay) -> Result<T, CliError>,
) -> Result<Vec<Answer<T>>, CliError> {
    ask_each(session, nodes, &about_images(ask.clone()), take).await
}

/// The same of whatever a node is asked by itself.
pub(super) async fn ask_each<T>(
    session: &mut Session,
    nodes: &[String],
    ask: &relay_open::Kind,
    take: impl AsyncFn(&str, Relay) -> Result<T, CliError>,
) -> Result<Vec<Answer<T>>, CliError> {
    let mut answers = Vec::new();
    for nodes in nodes.chunks(NODES_AT_ONCE) {
        let mut opened = Vec::new();
        for node in nodes {
            opened.push((node, ask_one(session, node, ask.clone()).await?));
        }
        let taken = opened.into_iter().map(async |(node, relay)| {
            let answer = match relay {
                Ok(relay) => take(node, relay).await,
                Err(error) => Err(error),
            };
            (node.clone(), answer)
        });
        answers.extend(join_all(taken).await);
    }
    Ok(answers)
}

/// Asks one node of its images.
async fn open(session: &mut Session, node: &str, ask: image_request::Kind) -> Result<Result<Relay, CliError>, CliError> {
    ask_one(session, node, about_images(ask)).await
}

/// Asks one node. The outer error is of the managers: no other node can be asked then either.
async fn ask_one(session: &mut Session, node: &str, ask: relay_open::Kind) -> Result<Result<Relay, CliError>, CliError> {
    match Relay::ask(session, node, ask).await {
        Err(error @ CliError::Unreachable { .. }) => Err(error),
        opened => Ok(opened),
    }
}

fn about_images(kind: image_request::Kind) -> relay_open::Kind {
    relay_open::Kind::Image(v1::ImageRequest { kind: Some(kind) })
}

/// The next answer about images; `None` when all is done.
async fn next(relay: &mut Relay) -> Result<Option<image_answer::Kind>, CliError> {
    loop {
        match relay.next().await? {
            Some(relay_output::Kind::Image(v1::ImageAnswer { kind: Some(kind) })) => return Ok(Some(kind)),
            Some(relay_output::Kind::Exit(_)) => return Ok(None),
            Some(_) => {}
            None => return Err(relay.ended()),
        }
    }
}

/// All answers up to the end.
async fn all(mut relay: Relay) -> Result<Vec<image_answer::Kind>, CliError> {
    let mut answers = Vec::new();
    while let Some(answer) = next(&mut relay).await? {
        answers.push(answer);
    }
    Ok(answers)
}

/// The images among answers.
fn images(answers: Vec<image_answer::Kind>) -> Vec<v1::ImageSummary> {
    let of = |answer| match answer {
        image_answer::Kind::Images(v1::ImageSummaries { images }) => images,
        image_answer::Kind::Progress(_)
        | image_answer::Kind::Collected(_)
        | image_answer::Kind::Steps(_)
        | image_answer::Kind::Document(_) => Vec::new(),
    };
    answers.into_iter().flat_map(of).collect()
}

/// The images on each of the nodes; only those called `name` if that is given.
async fn listed(session: &mut Session, nodes: &[String], name: &str) -> Result<Vec<Answer<Vec<v1::ImageSummary>>>, CliError> {
    let ask = image_request::Kind::Ls(v1::ImageLs { name: name.to_owned() });
    on_each(session, nodes, &ask, async |_, relay| all(relay).await.map(images)).await
}

/// The nodes that have an image, and what went wrong while they were sought.
async fn holders(session: &mut Session, name: &str, on: &OnNodes) -> Result<(Vec<(String, v1::ImageSummary)>, Failures), CliError> {
    let nodes = nodes(session, on).await?;
    let mut failures = Failures::of(nodes.len());
    let mut holders = Vec::new();
    for (node, images) in failures.sift(listed(session, &nodes, name).await?)? {
        holders.extend(images.into_iter().map(|image| (node.clone(), image)));
    }
    if holders.is_empty() && failures.nodes.is_empty() {
        let message = format!("image {name} is not on {}", nodes.join(", "));
        return Err(CliError::refused(message, "rclusterctl image ls shows what is; image pull or image load bring it"));
    }
    Ok((holders, failures))
}

/// Which nodes have not done what was asked.
#[derive(Debug)]
pub(super) struct Failures {
    asked: usize,
    nodes: Vec<String>,
    /// The only one there was, if there was one node only.
    only: Option<CliError>,
}

impl Failures {
    /// None so far, of so many nodes.
    pub(super) fn of(asked: usize) -> Self {
        Self { asked, nodes: Vec::new(), only: None }
    }

    /// What succeeded; what did not is told and kept in mind.
    pub(super) fn sift<T>(&mut self, answers: Vec<Answer<T>>) -> Result<Vec<(String, T)>, CliError> {
        let mut done = Vec::new();
        for (node, answer) in answers {
            match answer {
                Ok(answer) => done.push((node, answer)),
                Err(error) => self.note(node, error)?,
            }
        }
        Ok(done)
    }

    fn note(&mut self, node: String, error: CliError) -> Result<(), CliError> {
        if self.asked > 1 {
            let hint = if error.hint().is_empty() { String::new() } else { format!(" ({})", error.hint()) };
            output::talk(&format!("{node}: {error}{hint}"))?;
        } else {
            self.only = Some(CliError::refused(format!("{node}: {error}"), error.hint()));
        }
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
        Ok(())
    }

    /// An error if there was any failure.
    pub(super) fn end(self, what: &str) -> Result<(), CliError> {
        match (self.only, self.nodes.as_slice()) {
            (Some(error), _) => Err(error),
            (None, []) => Ok(()),
            (None, nodes) => Err(CliError::refused(
                format!("{what} failed on {} of {} nodes: {}", nodes.len(), self.asked, nodes.join(", ")),
                if nodes.len() < self.asked {
                    "it was done on the others; what went wrong is told above"
                } else {
                    "what went wrong is told above"
                },
            )),
        }
    }
}
