//! `image rm`, `image tag`, `image prune`.

use rcluster_api::resource::Bytes;
use rcluster_api::wire::v1::{self, image_answer, image_request};
use serde::Serialize;

use super::{all, holders, on_each};
use crate::args::OnNodes;
use crate::cmd::nodes::{Failures, nodes};
use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;

/// What was taken away on one node, as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct CollectedJson {
    node: String,
    names: Vec<String>,
    layers: u64,
    blobs: u64,
    bytes: u64,
}

/// `image rm IMAGE…`.
pub async fn rm(mut session: Session, out: Out, names: &[String], force: bool, on: &OnNodes) -> Result<(), CliError> {
    let mut rest = None;
    for name in names {
        if let Err(error) = rm_one(&mut session, out, name, force, on).await {
            // The next images may go all the same.
            if let Some(before) = rest.replace(error) {
                output::failure(&before);
            }
        }
    }
    rest.map_or(Ok(()), Err)
}

async fn rm_one(session: &mut Session, out: Out, name: &str, force: bool, on: &OnNodes) -> Result<(), CliError> {
    let (holders, mut failures) = holders(session, name, on).await?;
    let nodes: Vec<String> = holders.into_iter().map(|(node, _)| node).collect();
    let ask = image_request::Kind::Rm(v1::ImageRm { name: name.to_owned(), force });
    let answers = on_each(session, &nodes, &ask, async |_, relay| all(relay).await.map(collected)).await?;
    print(out, failures.sift(answers)?, false)?;
    failures.end(&format!("removing image {name}"))
}

/// `image tag SOURCE TARGET`.
pub async fn tag(mut session: Session, out: Out, source: &str, target: &str, on: &OnNodes) -> Result<(), CliError> {
    let (holders, mut failures) = holders(&mut session, source, on).await?;
    let nodes: Vec<String> = holders.into_iter().map(|(node, _)| node).collect();
    let ask = image_request::Kind::Tag(v1::ImageTag { source: source.to_owned(), target: target.to_owned() });
    let answers = on_each(&mut session, &nodes, &ask, async |_, relay| all(relay).await.map(super::images)).await?;
    super::transfer::print(out, failures.sift(answers)?)?;
    failures.end(&format!("naming image {source}"))
}

/// `image prune`.
pub async fn prune(mut session: Session, out: Out, all_unused: bool, dry_run: bool, on: &OnNodes) -> Result<(), CliError> {
    let nodes = nodes(&mut session, on).await?;
    let mut failures = Failures::of(nodes.len());
    let ask = image_request::Kind::Prune(v1::ImagePrune { all: all_unused, dry_run });
    let answers = on_each(&mut session, &nodes, &ask, async |_, relay| all(relay).await.map(collected)).await?;
    print(out, failures.sift(answers)?, dry_run)?;
    failures.end("image prune")
}

fn collected(answers: Vec<image_answer::Kind>) -> v1::ImageCollected {
    let of = |answer| match answer {
        image_answer::Kind::Collected(collected) => Some(collected),
        image_answer::Kind::Images(_)
        | image_answer::Kind::Progress(_)
        | image_answer::Kind::Steps(_)
        | image_answer::Kind::Document(_) => None,
    };
    answers.into_iter().find_map(of).unwrap_or_default()
}

/// A line for each name that is gone, and one for each node with what came free there.
fn print(out: Out, answers: Vec<(String, v1::ImageCollected)>, dry_run: bool) -> Result<(), CliError> {
    let of = |(node, v1::ImageCollected { names, layers, blobs, bytes })| CollectedJson { node, names, layers, blobs, bytes };
    let collected: Vec<CollectedJson> = answers.into_iter().map(of).collect();
    if !out.is_table() {
        return out.value(&collected);
    }
    let (removed, gone) = if dry_run { ("would remove", "would be freed") } else { ("removed", "freed") };
    let mut text = String::new();
    for CollectedJson { node, names, layers, blobs, bytes } in &collected {
        names.iter().for_each(|name| text.push_str(&format!("{node}: {removed} {name}\n")));
        text.push_str(&format!("{node}: {} {gone}: {layers} layers, {blobs} blobs\n", Bytes(*bytes).human()));
    }
    output::data(&text)
}
