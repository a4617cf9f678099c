//! `image ls`, `image history`, `image inspect`.

use std::collections::BTreeMap;

use rcluster_api::resource::Bytes;
use rcluster_api::wire::v1::{self, image_answer, image_request};
use rcluster_base::clock::unix_ms;
use serde::Serialize;
use serde_json::{Value, json};

use super::{all, holders, listed, open};
use crate::args::{Format, OnNodes};
use crate::cmd::nodes::{Failures, nodes};
use crate::error::CliError;
use crate::output::table::Table;
use crate::output::{self, Out, rows};
use crate::session::Session;

/// Digits of a digest that tell images apart for a person, as docker shows them.
const DIGEST_DIGITS: usize = 12;
/// More nodes than this are counted in a table.
const NODES_SHOWN: usize = 5;

/// An image as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct ImageJson {
    name: String,
    digest: String,
    bytes: u64,
    /// RFC 3339, as the image says; empty when it does not.
    created: String,
    nodes: Vec<String>,
    /// Those of the nodes on which a container runs on it.
    in_use: Vec<String>,
}

/// A step of an image's making as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct StepJson {
    created: String,
    created_by: String,
    comment: String,
    bytes: u64,
    diff_id: String,
}

/// `image ls [IMAGE]`: a name that means different images on different nodes is shown once for each.
pub async fn ls(mut session: Session, out: Out, name: Option<&str>, on: &OnNodes) -> Result<(), CliError> {
    let nodes = nodes(&mut session, on).await?;
    let mut failures = Failures::of(nodes.len());
    let answers = failures.sift(listed(&mut session, &nodes, name.unwrap_or_default()).await?)?;
    print(out, &merge(answers))?;
    failures.end("image ls")
}

fn merge(answers: Vec<(String, Vec<v1::ImageSummary>)>) -> Vec<ImageJson> {
    let mut images = BTreeMap::<(String, String), ImageJson>::new();
    for (node, summaries) in answers {
        for v1::ImageSummary { name, digest, bytes, created, in_use } in summaries {
            let new = ImageJson { name: name.clone(), digest: digest.clone(), bytes, created, nodes: Vec::new(), in_use: Vec::new() };
            let image = images.entry((name, digest)).or_insert(new);
            image.nodes.push(node.clone());
            if in_use {
                image.in_use.push(node.clone());
            }
        }
    }
    images.into_values().collect()
}

fn print(out: Out, images: &[ImageJson]) -> Result<(), CliError> {
    let wide = match out.format {
        Format::Json | Format::Yaml => return out.value(&images),
        Format::Name => return output::data(&images.iter().map(|image| format!("image/{}\n", image.name)).collect::<String>()),
        Format::Table => false,
        Format::Wide => true,
    };
    if images.is_empty() {
        return output::talk("no images");
    }
    let mut head = vec!["NAME", "DIGEST", "SIZE", "AGE", "NODES"];
    head.extend(wide.then_some("IN USE ON"));
    let mut table = Table::new(&head);
    let now = unix_ms();
    for ImageJson { name, digest, bytes, created, nodes, in_use } in images {
        let digest = if wide { digest.clone() } else { short(digest) };
        let size = Bytes(*bytes).human();
        let mut row = vec![name.clone(), digest, size, rows::age(created, now), names(nodes, wide)];
        row.extend(wide.then(|| names(in_use, wide)));
        table.row(row);
    }
    output::data(&table.to_string())
}

/// The first digits of a digest.
pub fn short(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, digits)| digits).chars().take(DIGEST_DIGITS).collect()
}

fn names(nodes: &[String], wide: bool) -> String {
    match nodes {
        [] => "-".to_owned(),
        nodes if wide || nodes.len() <= NODES_SHOWN => nodes.join(","),
        nodes => format!("{} and {} more", nodes[..NODES_SHOWN].join(","), nodes.len() - NODES_SHOWN),
    }
}

/// Asks the first node that has the image, and tells when others have another one of that name.
async fn of_one(
    session: &mut Session,
    name: &str,
    on: &OnNodes,
    ask: image_request::Kind,
) -> Result<(Vec<image_answer::Kind>, Vec<String>), CliError> {
    let (holders, failures) = holders(session, name, on).await?;
    let Some((node, image)) = holders.first() else {
        return Err(failures.end("looking for the image").err().unwrap_or_else(|| CliError::refused("no node has the image", "")));
    };
    let (same, other): (Vec<_>, Vec<_>) = holders.iter().partition(|(_, there)| there.digest == image.digest);
    for (other, there) in other {
        output::talk(&format!("{other} has another image of that name: {}", there.digest))?;
    }
    let answers = match open(session, node, ask).await? {
        Ok(relay) => all(relay).await,
        Err(error) => Err(error),
    };
    let answers = answers.map_err(|error| CliError::refused(format!("{node}: {error}"), error.hint()))?;
    Ok((answers, same.into_iter().map(|(node, _)| node.clone()).collect()))
}

/// `image history IMAGE`: the last step first, as docker shows it.
pub async fn history(mut session: Session, out: Out, name: &str, on: &OnNodes) -> Result<(), CliError> {
    let ask = image_request::Kind::History(v1::ImageHistory { name: name.to_owned() });
    let (answers, _) = of_one(&mut session, name, on, ask).await?;
    let steps = answers.into_iter().flat_map(|answer| match answer {
        image_answer::Kind::Steps(v1::ImageSteps { steps }) => steps,
        image_answer::Kind::Images(_)
        | image_answer::Kind::Progress(_)
        | image_answer::Kind::Collected(_)
        | image_answer::Kind::Document(_) => Vec::new(),
    });
    let mut steps: Vec<StepJson> = steps
        .map(|v1::ImageStep { created, created_by, comment, bytes, diff_id }| StepJson { created, created_by, comment, bytes, diff_id })
        .collect();
    steps.reverse();
    if !out.is_table() {
        return out.value(&steps);
    }
    let mut table = Table::new(&["LAYER", "AGE", "SIZE", "CREATED BY"]);
    let now = unix_ms();
    for StepJson { created, created_by, comment, bytes, diff_id } in &steps {
        let layer = if diff_id.is_empty() { "-".to_owned() } else { short(diff_id) };
        let by = [created_by.as_str(), comment.as_str()].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("  # ");
        table.row(vec![layer, rows::age(created, now), Bytes(*bytes).human(), by]);
    }
    output::data(&table.to_string())
}

/// `image inspect IMAGE`: all that is known, as JSON unless another form was asked for, with the nodes that have it.
pub async fn inspect(mut session: Session, out: Out, name: &str, on: &OnNodes) -> Result<(), CliError> {
    let ask = image_request::Kind::Inspect(v1::ImageInspect { name: name.to_owned() });
    let (answers, nodes) = of_one(&mut session, name, on, ask).await?;
    let document = answers.into_iter().find_map(|answer| match answer {
        image_answer::Kind::Document(document) => Some(document),
        image_answer::Kind::Images(_)
        | image_answer::Kind::Progress(_)
        | image_answer::Kind::Collected(_)
        | image_answer::Kind::Steps(_) => None,
    });
    let document: Value = serde_json::from_str(&document.unwrap_or_default()).map_err(|error| {
        CliError::refused(format!("the node's answer about {name} cannot be read: {error}"), "do the versions go together?")
    })?;
    let mut document = document;
    document["nodes"] = json!(nodes);
    let out = if out.is_table() { Out { format: Format::Json } } else { out };
    out.value(&document)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_one_name_are_told_apart_and_nodes_are_counted_when_they_are_many() {
        let image = |digest: &str, in_use| v1::ImageSummary {
            name: "web:1".to_owned(),
            digest: digest.to_owned(),
            in_use,
            ..v1::ImageSummary::default()
        };
        let merged = merge(vec![
            ("n1".to_owned(), vec![image("sha256:a", true)]),
            ("n2".to_owned(), vec![image("sha256:b", false)]),
            ("n3".to_owned(), vec![image("sha256:a", false)]),
        ]);
        let shown: Vec<_> = merged.iter().map(|image| (image.digest.as_str(), image.nodes.join(","), image.in_use.join(","))).collect();
        assert_eq!(shown, [("sha256:a", "n1,n3".to_owned(), "n1".to_owned()), ("sha256:b", "n2".to_owned(), String::new())]);
        let many: Vec<String> = (1..=7).map(|number| format!("n{number}")).collect();
        assert_eq!(names(&many, false), "n1,n2,n3,n4,n5 and 2 more");
        assert_eq!(names(&many, true), "n1,n2,n3,n4,n5,n6,n7");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
    }
}
