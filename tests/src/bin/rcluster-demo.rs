//! `make demo`: the story that rcluster is for, told and checked step by step.
//!
//! Every claim that is printed was measured; the first that does not hold ends the demo with an error. Whatever happens, the lab goes.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rcluster_api::rest::TaskJson;
use rcluster_tests::lab::{Lab, Streamed, Watched, root, wait_for};
use rcluster_tests::leftovers::Inventory;

#[allow(clippy::print_stdout, reason = "the demo tells its story")]
fn say(text: &str) {
    println!("{text}");
    // A closed terminal ends the demo at the next step's check.
    drop(std::io::stdout().flush());
}

fn indent(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("      {line}")).collect::<Vec<_>>().join("\n")
}

/// Runs a step and says how long it took.
fn step<T>(number: &str, what: &str, act: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
    say(&format!("\n{number}  {what}"));
    let started = Instant::now();
    let (value, told) = act().with_context(|| format!("step {number}: {what}"))?;
    say(&indent(&told));
    say(&format!("      {:.2} s", started.elapsed().as_secs_f64()));
    Ok(value)
}

fn main() -> Result<()> {
    let started = Instant::now();
    let name = format!("demo-{}", std::process::id());
    tell(&name)?;
    wait_for("nothing is left behind", Duration::from_secs(10), || Inventory::check_nothing_of(&name).map(Some))?;
    say(&format!("\nEvery claim above was checked. Nothing is left behind. {:.0} s in all.", started.elapsed().as_secs_f64()));
    Ok(())
}

fn tell(name: &str) -> Result<()> {
    let lab = step("1", "rclusterctl lab up --managers 3 --agents 3", || {
        let lab = Lab::up(name, 3, 3)?;
        let picture = lab.ctl(&["node", "ls"])?;
        Ok((lab, picture))
    })?;
    let manifest = root().join("examples/web.yaml");
    step("2", "rclusterctl deploy examples/web.yaml", || Ok(((), lab.ctl(&["deploy", &manifest.to_string_lossy()])?)))?;
    let client = step("3", "rclusterctl ps", || {
        let web = lab.running("web")?;
        ensure!(web.len() == 3, "{} replicas of web run, not 3", web.len());
        let client = lab.running("client")?.pop().context("no client runs")?;
        Ok((client, lab.ctl(&["ps"])?))
    })?;
    discover(&lab, &client)?;
    let dead_agent = power_cut(&lab, &client)?;
    let dead_manager = leader_kill(&lab)?;
    restarts(&lab, &client)?;
    back(&lab, &dead_agent, &dead_manager)?;
    step("9", "rclusterctl lab down", || lab.down().map(|()| ((), "every host is off and its processes are gone".to_owned())))
}

/// Names and addresses from inside a container on another host.
fn discover(lab: &Lab, client: &TaskJson) -> Result<()> {
    step("4", &format!("inside {} on {}: resolve tasks.web, and fetch web over the overlay", client.name, client.node), || {
        let answers = lab.exec(client, &["/probe", "resolve", "tasks.web", "--count", "6"])?;
        let lines: Vec<&str> = answers.lines().collect();
        let orders: BTreeSet<&str> = lines.iter().copied().collect();
        let sets: BTreeSet<BTreeSet<&str>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
        ensure!(sets.len() == 1 && sets.iter().all(|set| set.len() == 3), "the answers are not the three replicas: {answers}");
        let mut more = 0;
        let mut seen = orders.len();
        while seen < 2 && more < 20 {
            seen += usize::from(!orders.contains(lab.exec(client, &["/probe", "resolve", "tasks.web", "--count", "1"])?.trim()));
            more += 1;
        }
        ensure!(seen > 1, "DNS answered in one order only: {answers}");
        let own = lab.resolve(client, "web")?;
        ensure!(own.len() == 1 && sets.iter().all(|set| !set.contains(own[0].as_str())), "web has no address of its own: {own:?}");
        let fetched = lab.exec(client, &["/probe", "get", "http://web:8080/", "--count", "9"])?;
        let web = lab.running("web")?;
        let elsewhere = web.iter().filter(|task| task.node != client.node && fetched.contains(&format!("\"{}\"", task.name)));
        ensure!(elsewhere.count() > 0, "no answer came from another host:\n{fetched}");
        Ok(((), format!("{answers}{fetched}")))
    })
}

/// An agent's host loses power while a client goes on asking.
fn power_cut(lab: &Lab, client: &TaskJson) -> Result<String> {
    let victims = lab.running("web")?;
    let victim = victims.iter().find(|task| task.node != client.node).context("every replica is on the client's host")?.clone();
    let address = victim.networks.first().context("the replica has no address")?.ip.clone();
    step("5", &format!("rclusterctl lab kill {}: a power cut on the host of {}", victim.node, victim.name), || {
        let load = lab.background(client, &["/probe", "watch", "http://web:8080/", "--interval-ms", "20", "--timeout-ms", "500"])?;
        let cut = Instant::now();
        lab.host("kill", &[&victim.node])?;
        let slot = |lab: &Lab| {
            let running = lab.running("web")?;
            let whole = running.len() == 3 && running.iter().all(|task| task.node != victim.node);
            Ok(whole.then(|| running.into_iter().find(|task| task.name == victim.name)).flatten())
        };
        let replacement = wait_for("the lost replica runs elsewhere", Duration::from_secs(20), || slot(lab))?;
        let replaced_s = cut.elapsed().as_secs_f64();
        wait_for("the dead address is out of DNS", Duration::from_secs(5), || {
            Ok((!lab.resolve(client, "tasks.web")?.contains(&address)).then_some(()))
        })?;
        let out_of_dns_s = cut.elapsed().as_secs_f64();
        let answers = lab.resolve(client, "tasks.web")?;
        let watched: Watched = load.finish()?;
        ensure!(watched.requests > watched.failures, "the service was gone altogether");
        let told = format!(
            "{} was lost with {} and runs on {} now: {replaced_s:.2} s after the cut\n\
             {address} is out of DNS ({} left): {out_of_dns_s:.2} s after the cut\n\
             the client made {} requests, {} failed (a third of the addresses was dead), at most {} ms without an answer\n{}",
            victim.name,
            victim.node,
            replacement.node,
            answers.join(" "),
            watched.requests,
            watched.failures,
            watched.longest_outage_ms,
            lab.ctl(&["ps"])?
        );
        Ok((victim.node.clone(), told))
    })
}

/// What must not change when a leader dies.
fn fingerprint(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut all = lab.fingerprint("web")?;
    all.extend(lab.fingerprint("client")?);
    Ok(all)
}

/// The leader's host loses power while writes are tried.
fn leader_kill(lab: &Lab) -> Result<String> {
    let before = fingerprint(lab)?;
    let old = lab.cluster()?;
    step("6", &format!("rclusterctl lab kill {}: a power cut on the leader", old.leader), || {
        let cut = Instant::now();
        lab.host("kill", &[&old.leader])?;
        wait_for("a write is accepted", Duration::from_secs(15), || lab.ctl(&["node", "label", "n1", "demo=after-the-cut"]).map(Some))?;
        let written_s = cut.elapsed().as_secs_f64();
        let new = lab.cluster()?;
        ensure!(new.leader != old.leader && new.term > old.term, "{} still leads", new.leader);
        let ready = lab.nodes()?.into_iter().filter(|node| node.status.as_str() == "ready").count();
        ensure!(ready == 2, "{ready} nodes are ready, not 2");
        let after = fingerprint(lab)?;
        ensure!(before == after, "containers changed:\n{before:#?}\n{after:#?}");
        let told = format!(
            "{} leads now (term {}); a write was accepted {written_s:.2} s after the cut\n\
             no container restarted, no healthy node was marked down",
            new.leader, new.term
        );
        Ok((old.leader.clone(), told))
    })
}

/// Agent and netd of one host are killed and started again under a TCP stream.
fn restarts(lab: &Lab, client: &TaskJson) -> Result<()> {
    let server = lab.running("web")?.into_iter().find(|task| task.node != client.node).context("every replica is on the client's host")?;
    let before = fingerprint(lab)?;
    let address = server.networks.first().context("the replica has no address")?.ip.clone();
    step("7", &format!("kill and start agent and netd of {} and {} under an open TCP stream", client.node, server.node), || {
        let stream = lab.background(client, &["/probe", "stream", &format!("{address}:8080"), "--interval-ms", "20"])?;
        for node in [&client.node, &server.node] {
            for daemon in ["agent", "netd"] {
                let process = format!("{node}/{daemon}");
                lab.host("kill", &[&process])?;
                lab.host("start", &[&process])?;
            }
            wait_for("the agent is back", Duration::from_secs(10), || {
                let node = lab.nodes()?.into_iter().find(|known| known.name == *node);
                Ok(node.filter(|node| node.status.as_str() == "ready"))
            })?;
            wait_for("DNS answers again", Duration::from_secs(5), || {
                Ok(Some(lab.resolve(client, "tasks.web")?).filter(|answers| answers.len() == 3))
            })?;
        }
        let streamed: Streamed = stream.finish()?;
        ensure!(!streamed.broken && streamed.echoed > 0, "the stream broke: {streamed:?}");
        let after = fingerprint(lab)?;
        ensure!(before == after, "containers changed:\n{before:#?}\n{after:#?}");
        let told = format!(
            "the same containers with the same PIDs; the stream of {} to {} went on: {} lines sent, {} echoed in order, longest gap {} ms",
            client.name, server.name, streamed.sent, streamed.echoed, streamed.longest_gap_ms
        );
        Ok(((), told))
    })
}

/// The hosts that lost power boot again on their old disks.
fn back(lab: &Lab, agent: &str, manager: &str) -> Result<()> {
    step("8", &format!("rclusterctl lab start {agent} {manager}"), || {
        lab.host("start", &[agent, manager])?;
        wait_for("all nodes are ready", Duration::from_secs(20), || {
            Ok(lab.nodes()?.iter().all(|node| node.status.as_str() == "ready").then_some(()))
        })?;
        wait_for("all managers are reachable", Duration::from_secs(20), || {
            Ok(lab.cluster()?.managers.iter().all(|manager| manager.reachable).then_some(()))
        })?;
        let web = lab.wait_running("web", 3, Duration::from_secs(20))?;
        let addresses: BTreeSet<String> = web.iter().flat_map(|task| &task.networks).map(|network| network.ip.clone()).collect();
        if addresses.len() != 3 {
            bail!("an address is held twice: {addresses:?}");
        }
        Ok((
            (),
            format!(
                "{}{}\nexactly 3 replicas run, each with an address of its own",
                lab.ctl(&["node", "ls"])?,
                lab.ctl(&["cluster", "status"])?
            ),
        ))
    })
}
