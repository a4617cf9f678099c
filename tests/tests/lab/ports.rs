//! Published ports, as someone from outside of the cluster meets them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use rcluster_tests::lab::{OUTSIDE, wait_for};
use serde::Deserialize;

use crate::update::server;
use crate::{Turn, balanced};

const SOON: Duration = Duration::from_secs(60);
/// How long someone from outside waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(5);

/// What the server says of itself.
#[derive(Debug, Deserialize)]
struct Who {
    node: String,
}

/// The server at a port of every node.
fn published(network: &str, service: &str, replicas: usize) -> String {
    with_ports(&balanced(network, service, replicas), "\"8080:8080\"")
}

fn with_ports(manifest: &str, ports: &str) -> String {
    manifest.replace("  containers:\n", &format!("  ports: [{ports}]\n  containers:\n"))
}

/// Asks the server, by a connection for this alone.
fn get(addr: &str, port: u16, path: &str) -> Result<Who> {
    let mut stream = TcpStream::connect_timeout(&(addr.parse::<IpAddr>()?, port).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(serde_json::from_str(body)?),
        _ => bail!("{addr} answered {answer:?}"),
    }
}

/// Asks again and again until the other end of the channel is gone; how often, and what went wrong.
fn keep_asking(addr: &str, ended: &Receiver<()>) -> (usize, Vec<String>) {
    let (mut requests, mut failures) = (0, Vec::new());
    loop {
        requests += 1;
        failures.extend(get(addr, 8080, "/").err().map(|error| format!("request {requests}: {error:#}")));
        if ended.recv_timeout(PACE) != Err(RecvTimeoutError::Timeout) {
            return (requests, failures);
        }
    }
}

#[test]
fn a_published_port_is_open_at_every_node_and_its_service_sees_the_client() {
    let turn = Turn::new("ports", 1, 3);
    let lab = turn.lab();
    lab.deploy(&published("lab", "web", 2)).unwrap();
    let homes: BTreeSet<String> = lab.wait_running("web", 2, SOON).unwrap().into_iter().map(|task| task.node).collect();
    let nodes = lab.nodes().unwrap();
    assert_eq!((homes.len(), nodes.len()), (2, 3));
    lab.outside(|| {
        for node in &nodes {
            wait_for(&format!("{} answers", node.name), SOON, || {
                let who = get(&node.addr, 8080, &format!("/?{}", node.name))?;
                // A node with a task sends to that one.
                Ok((who.node == node.name || !homes.contains(&node.name)).then_some(()))
            })
            .unwrap();
        }
    })
    .unwrap();
    let lines = wait_for("all requests are logged", SOON, || {
        let logs = lab.ctl(&["logs", "web"])?;
        let lines: Vec<String> = logs.lines().filter(|line| line.contains("GET /?")).map(str::to_owned).collect();
        Ok(nodes.iter().all(|node| lines.iter().any(|line| line.contains(&format!("GET /?{} ", node.name)))).then_some(lines))
    })
    .unwrap();
    assert!(lines.iter().all(|line| line.ends_with(&format!(" from {OUTSIDE}"))), "{lines:?}");
    let services = lab.ctl(&["get", "services"]).unwrap();
    assert!(services.contains("*:8080->8080/tcp"), "{services}");
    turn.finish();
}

#[test]
fn rolling_update_behind_a_published_port_fails_no_request_from_outside() {
    let turn = Turn::new("portroll", 1, 3);
    let lab = turn.lab();
    lab.deploy(&server(published, 1)).unwrap();
    let before = lab.wait_running("web", 3, SOON).unwrap();
    let nodes = lab.nodes().unwrap();
    lab.outside(|| {
        for node in &nodes {
            wait_for(&format!("{} answers", node.name), SOON, || get(&node.addr, 8080, "/").map(Some)).unwrap();
        }
    })
    .unwrap();
    let asked = thread::scope(|scope| {
        let asking = nodes.iter().map(|node| {
            let (go_on, ended) = channel();
            (go_on, scope.spawn(move || lab.outside(move || keep_asking(&node.addr, &ended))))
        });
        let asking: Vec<_> = asking.collect();
        for generation in 2..=4 {
            lab.deploy(&server(published, generation)).unwrap();
        }
        let ended = asking.into_iter().map(|(go_on, asking)| {
            drop(go_on);
            asking.join().unwrap().unwrap()
        });
        ended.collect::<Vec<_>>()
    });
    let after = lab.wait_running("web", 3, SOON).unwrap();
    assert!(after.iter().all(|task| before.iter().all(|old| old.id != task.id)), "all were replaced");
    for (node, (requests, failures)) in nodes.iter().zip(asked) {
        assert!(failures.is_empty(), "{} of {requests} at {}: {failures:?}", failures.len(), node.name);
        assert!(requests > 200, "{requests} at {}", node.name);
    }
    turn.finish();
}

#[test]
fn a_port_that_is_taken_is_refused_or_waited_for_with_who_has_it() {
    let turn = Turn::new("portheld", 1, 2);
    let lab = turn.lab();
    lab.deploy(&published("lab", "web", 1)).unwrap();
    let other = |ports: &str| with_ports(balanced("lab", "other", 3).split_once("---\n").unwrap().1, ports);
    for (ports, expected) in [
        ("\"8080:8080\"", "spec.ports[0] of service other: tcp port 8080 is published by service web already"),
        ("\"7443:8080\"", "tcp port 7443 is rcluster's own"),
    ] {
        let refused = lab.deploy(&other(ports)).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    assert!(lab.all_tasks().unwrap().iter().all(|task| task.service == "web"));

    let of_tasks = lab.write(&other("{target: 8080, published: 8081, mode: host}")).unwrap();
    wait_for("it is said why the third has no place", SOON, || {
        let refused = lab.ctl(&["deploy", "--timeout", "3s", &of_tasks]).unwrap_err();
        let said = refused.to_string();
        let is_said = said.contains("0/2 nodes fit other.") && said.contains("2 have tcp port 8081 taken (n1: other.");
        if is_said { Ok(Some(())) } else { Err(refused) }
    })
    .unwrap();
    lab.wait_running("other", 2, SOON).unwrap();
    let nodes = lab.nodes().unwrap();
    lab.outside(|| {
        for node in &nodes {
            let who = wait_for(&format!("{} answers", node.name), SOON, || get(&node.addr, 8081, "/").map(Some)).unwrap();
            assert_eq!(who.node, node.name);
        }
    })
    .unwrap();
    turn.finish();
}
