//! What the containers of a task use of the host, and which processes they have.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcluster_api::error::ApiError;
use rcluster_api::wire::v1::{self, relay_output};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::{Gone, Line, Target, internal, opened};
use crate::core::usage;
use crate::exec::Tools;
use crate::host::{self, CgroupMount};

/// From one look to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// Sends a sample every period, two when the user does not follow.
pub async fn stats(tools: &Tools, target: &Target, asked: v1::RelayStats, line: &mut Line) -> Result<(), ApiError> {
    if line.say(opened(tools, target)).await.is_err() {
        return Ok(());
    }
    let mounts = mounts()?;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = if asked.follow { u64::MAX } else { 2 };
    while left > 0 {
        left -= 1;
        tokio::select! {
            _ = ticks.tick() => {}
            Err(Gone) = line.hear() => return Ok(()),
        }
        let (parent, target, mounts) = (tools.cgroup_parent.clone(), target.clone(), mounts.clone());
        let sample = spawn_blocking(move || sample(&parent, &target, &mounts)).await;
        let sample = sample.map_err(|error| internal("read the statistics", &error))?;
        if line.say(relay_output::Kind::Stats(sample)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Sends the processes of all containers of the task.
pub async fn top(tools: &Tools, target: &Target, line: &mut Line) -> Result<(), ApiError> {
    if line.say(opened(tools, target)).await.is_err() {
        return Ok(());
    }
    let (mounts, parent, target) = (mounts()?, tools.cgroup_parent.clone(), target.clone());
    let listed = spawn_blocking(move || {
        let names = target.record.containers.iter().map(|container| container.name.clone());
        names.flat_map(|name| processes(&dirs(&mounts, &parent, &target, &name), &name)).collect::<Vec<_>>()
    });
    let processes = listed.await.map_err(|error| internal("list the processes", &error))?;
    // A user who has gone misses nothing.
    let _ = line.say(relay_output::Kind::Processes(v1::RelayProcesses { processes })).await;
    Ok(())
}

fn mounts() -> Result<Vec<CgroupMount>, ApiError> {
    host::cgroup_mounts().map_err(|error| internal("find the cgroups", error.as_ref()))
}

/// The container's directory in each hierarchy that has one.
fn dirs(mounts: &[CgroupMount], parent: &str, target: &Target, container: &str) -> Vec<PathBuf> {
    let path = format!("{}/{}/{container}", parent.trim_start_matches('/'), target.task.id);
    mounts.iter().map(|mount| mount.path.join(&path)).filter(|dir| dir.is_dir()).collect()
}

fn sample(parent: &str, target: &Target, mounts: &[CgroupMount]) -> v1::RelayStatsSample {
    let containers = target.record.containers.iter().map(|container| {
        let dirs = dirs(mounts, parent, target, &container.name);
        container_stats(&dirs, &container.name)
    });
    let dev = fs::read_to_string(format!("/proc/{}/net/dev", target.process.pid)).unwrap_or_default();
    let interfaces = usage::interfaces(&dev).into_iter();
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    v1::RelayStatsSample {
        at_ns: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
        containers: containers.collect(),
        interfaces: interfaces.map(|(name, received_bytes, sent_bytes)| v1::InterfaceStats { name, received_bytes, sent_bytes }).collect(),
    }
}

/// Each number from whichever hierarchy has it. On a hybrid host the v2 one has a cgroup of the container too, in which nothing is
/// counted: the largest is the one that counts.
fn container_stats(dirs: &[PathBuf], container: &str) -> v1::ContainerStats {
    let texts = |file: &'static str| dirs.iter().filter_map(move |dir| fs::read_to_string(dir.join(file)).ok());
    let most = |numbers: Vec<Option<u64>>| numbers.into_iter().flatten().max();
    let number = |v1: &'static str, v2: &'static str| most(texts(v1).chain(texts(v2)).map(|text| usage::number(&text)).collect());
    let limit = |v1: &'static str, v2: &'static str| most(texts(v1).chain(texts(v2)).map(|text| usage::limit(&text)).collect());
    let cpu_ns = most(
        texts("cpuacct.usage")
            .map(|text| usage::number(&text))
            .chain(texts("cpu.stat").map(|text| usage::keyed(&text, "usage_usec").map(|us| us.saturating_mul(1000))))
            .collect(),
    );
    let reclaimable = most(
        texts("memory.stat")
            .map(|text| usage::keyed(&text, "total_inactive_file").or_else(|| usage::keyed(&text, "inactive_file")))
            .collect(),
    );
    let memory = number("memory.usage_in_bytes", "memory.current").unwrap_or_default();
    let io =
        texts("blkio.throttle.io_service_bytes").map(|text| usage::io_v1(&text)).chain(texts("io.stat").map(|text| usage::io_v2(&text)));
    let (read_bytes, written_bytes) = io.max().unwrap_or_default();
    v1::ContainerStats {
        container: container.to_owned(),
        cpu_ns: cpu_ns.unwrap_or_default(),
        memory_bytes: memory.saturating_sub(reclaimable.unwrap_or_default()),
        memory_limit: limit("memory.limit_in_bytes", "memory.max").unwrap_or_default(),
        // The same file in both.
        pids: number("pids.current", "pids.current").unwrap_or_default(),
        pids_limit: limit("pids.max", "pids.max").unwrap_or_default(),
        read_bytes,
        written_bytes,
    }
}

fn processes(dirs: &[PathBuf], container: &str) -> Vec<v1::RelayProcess> {
    let mut pids = BTreeSet::new();
    dirs.iter().for_each(|dir| gather(dir, &mut pids));
    pids.into_iter().filter_map(|pid| process(pid, container)).collect()
}

/// The processes in a cgroup and in those that the container has made below it.
fn gather(dir: &Path, pids: &mut BTreeSet<u32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process of another PID namespace.
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            gather(&entry.path(), pids);
        }
    }
}

/// `None` for one that has just ended.
fn process(pid: u32, container: &str) -> Option<v1::RelayProcess> {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let stat = usage::stat(&read("stat")?)?;
    let (uid, pid_in_container) = usage::status(&read("status")?)?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let page_bytes = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    Some(v1::RelayProcess {
        container: container.to_owned(),
        pid,
        pid_in_container,
        parent_pid: stat.parent,
        uid,
        cpu_ms: stat.cpu_ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1),
        memory_bytes: stat.resident_pages.saturating_mul(page_bytes),
        command: usage::command_line(&command, &stat.name),
        state: stat.state,
    })
}
