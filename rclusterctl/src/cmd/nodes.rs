//! Many nodes that are asked the same, each by itself, by way of the managers: what one cannot do does not keep the others from it.

use futures::future::join_all;
use rcluster_api::object::{Kind, NodeState, Object};
use rcluster_api::wire::v1::relay_open;

use super::relay::Relay;
use crate::args::OnNodes;
use crate::error::CliError;
use crate::output;
use crate::session::Session;

/// So many nodes are asked at once.
const NODES_AT_ONCE: usize = 32;

/// What one node has answered.
pub type Answer<T> = (String, Result<T, CliError>);

/// The nodes that are meant: those named, else all that are not down; which are down is said.
pub async fn nodes(session: &mut Session, on: &OnNodes) -> Result<Vec<String>, CliError> {
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

/// Asks each node the same, and gathers what `take` makes of the answers.
pub async fn ask_each<T>(
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

/// Asks one node. The outer error is of the managers: no other node can be asked then either.
pub async fn ask_one(session: &mut Session, node: &str, ask: relay_open::Kind) -> Result<Result<Relay, CliError>, CliError> {
    match Relay::ask(session, node, ask).await {
        Err(error @ CliError::Unreachable { .. }) => Err(error),
        opened => Ok(opened),
    }
}

/// Which nodes have not done what was asked.
#[derive(Debug)]
pub struct Failures {
    asked: usize,
    nodes: Vec<String>,
    /// The only one there was, if there was one node only.
    only: Option<CliError>,
}

impl Failures {
    /// None so far, of so many nodes.
    pub fn of(asked: usize) -> Self {
        Self { asked, nodes: Vec::new(), only: None }
    }

    /// Whether none has failed so far.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What succeeded; what did not is told and kept in mind.
    pub fn sift<T>(&mut self, answers: Vec<Answer<T>>) -> Result<Vec<(String, T)>, CliError> {
        let mut done = Vec::new();
        for (node, answer) in answers {
            match answer {
                Ok(answer) => done.push((node, answer)),
                Err(error) => self.note(node, error)?,
            }
        }
        Ok(done)
    }

    /// One failed: it is told, unless it is the only one that was asked.
    pub fn note(&mut self, node: String, error: CliError) -> Result<(), CliError> {
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
    pub fn end(self, what: &str) -> Result<(), CliError> {
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
