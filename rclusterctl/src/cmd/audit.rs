//! `audit`: what the managers want of every node's network beside what its kernel and DNS hold; `trace`: what becomes of a task's packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rcluster_api::wire::v1::{self, relay_open, relay_output};
use rcluster_base::backoff::Backoff;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::nodes::{Failures, ask_each, nodes};
use super::relay::Relay;
use crate::args::{Audit, TraceArgs, TraceTarget};
use crate::audit::{Difference, differences, gathered, holders};
use crate::error::CliError;
use crate::output::{self, Out};
use crate::session::Session;

/// What is under way is no difference: one is told that has been there for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// One node as it is printed.
#[derive(Debug, Serialize)]
struct NodeJson {
    node: String,
    /// Of the view that it obeys.
    term: u64,
    revision: u64,
    /// What its netd could not do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

/// An audit as it is printed.
#[derive(Debug, Serialize)]
struct AuditJson {
    nodes: Vec<NodeJson>,
    differences: Vec<Difference>,
}

/// `audit [--node N]…`.
pub async fn audit(mut session: Session, out: Out, args: Audit) -> Result<(), CliError> {
    let mut asked = nodes(&mut session, &args.on).await?;
    let mut failures = Failures::of(asked.len());
    let mut seen: BTreeMap<String, NodeJson> = BTreeMap::new();
    // Of the nodes on which something has differed at every look so far.
    let mut open: BTreeMap<String, BTreeSet<Difference>> = BTreeMap::new();
    let until = Instant::now() + PATIENCE;
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(1));
    let ask = relay_open::Kind::NetDump(v1::RelayNetDump { conntrack: true });
    loop {
        let last = Instant::now() >= until;
        let mut before = std::mem::take(&mut open);
        let dumps = ask_each(&mut session, &asked, &ask, async |_, relay| dump(relay).await).await?;
        for (node, dump) in failures.sift(dumps)? {
            let found = differences(&node, &dump, &known(&mut session, &node, &dump).await?);
            let kept: BTreeSet<Difference> = match before.remove(&node) {
                Some(before) => before.into_iter().filter(|difference| found.contains(difference)).collect(),
                None => found,
            };
            if !kept.is_empty() {
                open.insert(node.clone(), kept);
            }
            seen.insert(node.clone(), NodeJson { node, term: dump.term, revision: dump.revision, problems: dump.problems });
        }
        // Who does not answer any more has failed, and is not asked again.
        before.keys().for_each(|node| drop(seen.remove(node)));
        if open.is_empty() || last {
            break;
        }
        asked = open.keys().cloned().collect();
        sleep(backoff.delay()).await;
    }
    let found: Vec<Difference> = open.into_values().flatten().collect();
    show(out, seen.into_values().collect(), &found)?;
    failures.end("the audit")?;
    if found.is_empty() {
        return Ok(());
    }
    let count = if found.len() == 1 { "1 difference".to_owned() } else { format!("{} differences", found.len()) };
    Err(CliError::refused(
        format!("{count} between what the managers want and what nodes hold"),
        "each netd mends what it finds within 30 s; what stays is told in its log, and by rclusterctl check",
    ))
}

fn show(out: Out, nodes: Vec<NodeJson>, found: &[Difference]) -> Result<(), CliError> {
    if !out.is_table() {
        return out.value(&AuditJson { nodes, differences: found.to_vec() });
    }
    for node in &nodes {
        node.problems.iter().try_for_each(|problem| output::talk(&format!("{}: netd says: {problem}", node.node)))?;
    }
    output::data(&found.iter().map(|difference| format!("{difference}\n")).collect::<String>())?;
    if found.is_empty() && !nodes.is_empty() {
        let names: Vec<&str> = nodes.iter().map(|node| node.node.as_str()).collect();
        output::talk(&format!("as wanted: {}", names.join(", ")))?;
    }
    Ok(())
}

/// Who has which address, for nodes on which something differs.
async fn known(session: &mut Session, node: &str, dump: &v1::DumpResponse) -> Result<BTreeMap<IpAddr, String>, CliError> {
    if differences(node, dump, &BTreeMap::new()).is_empty() {
        return Ok(BTreeMap::new());
    }
    let request = v1::ViewRequest { node: node.to_owned() };
    let view = session
        .call(|mut client| {
            let request = request.clone();
            async move { client.view(request).await }
        })
        .await?;
    Ok(holders(&view))
}

/// What a node holds and is to hold.
async fn dump(mut relay: Relay) -> Result<v1::DumpResponse, CliError> {
    let mut parts = Vec::new();
    loop {
        match relay.next().await? {
            Some(relay_output::Kind::NetDump(part)) => parts.push(part),
            Some(relay_output::Kind::Exit(_)) => return Ok(gathered(parts)),
            Some(_) => {}
            None => return Err(relay.ended()),
        }
    }
}

/// A trace as it is printed.
#[derive(Debug, Serialize)]
struct TraceJson {
    task: String,
    node: String,
    target: String,
    steps: Vec<String>,
    verdict: String,
}

/// `trace TASK TARGET`.
pub async fn trace(mut session: Session, out: Out, args: TraceArgs) -> Result<(), CliError> {
    let TraceArgs { task, target: TraceTarget { said, target, protocol } } = args;
    let asked = protocol.map_or(v1::Protocol::Unspecified, v1::Protocol::from);
    let kind = relay_open::Kind::NetTrace(v1::RelayNetTrace { target, protocol: asked.into() });
    let mut relay = Relay::open(&mut session, &task, "", kind).await?;
    let opened = relay.opened().await?;
    let v1::TraceResponse { steps, verdict, protocol } = loop {
        match relay.next().await? {
            Some(relay_output::Kind::NetTrace(trace)) => break trace,
            Some(_) => {}
            None => return Err(relay.ended()),
        }
    };
    relay.leave().await;
    if asked == v1::Protocol::Udp && protocol != i32::from(asked) {
        return Err(CliError::refused(
            format!("no trace of {said}: the leader, or agent and netd of node {}, are of a version that follows TCP alone", opened.node),
            "bring the managers to this version, then the node; rclusterctl trace follows TCP, and pings, until then",
        ));
    }
    if out.is_table() {
        let steps: String = steps.iter().map(|step| format!("  {step}\n")).collect();
        return output::data(&format!("{} on {} to {said}\n{steps}{verdict}\n", opened.task, opened.node));
    }
    out.value(&TraceJson { task: opened.task, node: opened.node, target: said, steps, verdict })
}
