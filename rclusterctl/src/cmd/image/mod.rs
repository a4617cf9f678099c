//! `image`: what the nodes have. Each node is asked by itself, by way of the managers; what some could not do does not keep the others
//! from it, and is told with the node's name.

mod change;
mod look;
mod progress;
mod transfer;

use rcluster_api::wire::v1::{self, image_answer, image_request, relay_open, relay_output};

use super::nodes::{Answer, Failures, ask_each, ask_one, nodes};
use super::relay::Relay;
use crate::args::{ImageCommand, OnNodes};
use crate::error::CliError;
use crate::output::Out;
use crate::session::Session;

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

/// Asks each node the same of its images, and gathers what `take` makes of the answers.
async fn on_each<T>(
    session: &mut Session,
    nodes: &[String],
    ask: &image_request::Kind,
    take: impl AsyncFn(&str, Relay) -> Result<T, CliError>,
) -> Result<Vec<Answer<T>>, CliError> {
    ask_each(session, nodes, &about_images(ask.clone()), take).await
}

/// Asks one node of its images.
async fn open(session: &mut Session, node: &str, ask: image_request::Kind) -> Result<Result<Relay, CliError>, CliError> {
    ask_one(session, node, about_images(ask)).await
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
    if holders.is_empty() && failures.is_empty() {
        let message = format!("image {name} is not on {}", nodes.join(", "));
        return Err(CliError::refused(message, "rclusterctl image ls shows what is; image pull or image load bring it"));
    }
    Ok((holders, failures))
}
