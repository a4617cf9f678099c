//! `/metrics`: this manager's figures as OpenMetrics text.
//!
//! What the store and the process know is read when it is asked for; what happens is counted where it does. Labels come from closed sets:
//! methods that exist, outcomes, kinds, the managers' names.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::figures::Figures;
use super::route::Router;
use crate::core::state::State;
use crate::drive::Leadership;
use crate::meter::{Histogram, StoreMeter, Times};
use crate::store::{RoleKind, Store};

/// The text's media type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All figures of the manager that `router` is of. Looks at every object.
pub fn text(router: &Router) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("rcluster");
    let (store, leadership, figures) = (router.store.clone(), router.leadership.clone(), router.figures.clone());
    registry.register_collector(Box::new(Exposition { store, leadership, figures }));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Exposition {
    store: Store,
    leadership: Leadership,
    figures: Arc<Figures>,
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut out = Out(encoder);
        self.raft(&mut out)?;
        log(&mut out, self.store.meter())?;
        tables(&mut out, &self.store.state())?;
        self.calls(&mut out)?;
        process(&mut out)
    }
}

/// One label and a value.
type Labelled<'a> = ((&'static str, &'a str), u64);

/// Writes metrics.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges<'a>(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = Labelled<'a>>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values.into_iter().try_for_each(|(label, value)| metric.encode_family(&[label])?.encode_gauge(&value))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        count(&mut self.0.encode_descriptor(name, help, None, MetricType::Counter)?, value)
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
        times(&mut self.0.encode_descriptor(name, help, None, MetricType::Histogram)?, histogram)
    }
}

fn count(metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

fn times(metric: &mut MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    let Times { sum, count, buckets } = histogram.times();
    metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
}

impl Exposition {
    fn raft(&self, out: &mut Out<'_>) -> fmt::Result {
        let (status, role) = (self.store.status(), self.store.role().borrow().clone());
        let roles = [RoleKind::Leader, RoleKind::Follower, RoleKind::Candidate];
        let roles = roles.map(|kind| (("role", kind.as_str()), u64::from(role.kind == kind)));
        out.gauges("raft_role", "1 for what this manager is", roles)?;
        let leads = |name: &str| u64::from(role.leader.as_ref().is_some_and(|leader| leader.name == name));
        let members = || status.members.iter().map(|member| (("manager", member.name.as_str()), member));
        out.gauges(
            "raft_leader",
            "1 for the manager that leads, as this one knows",
            members().map(|(of, member)| (of, leads(&member.name))),
        )?;
        out.gauge("raft_term", "Raft's term", role.term)?;
        out.gauge("raft_committed_index", "Last entry known to be committed", status.committed)?;
        out.gauge("raft_applied_index", "Last entry that the tables hold", status.applied)?;
        out.gauge("raft_last_index", "Last entry of this manager's log", status.last)?;
        let reachable = members().map(|(of, member)| (of, u64::from(member.reachable)));
        out.gauges("raft_reachable", "1 for managers that were heard lately", reachable)?;
        let writes = members().map(|(of, member)| (of, member.write_us));
        out.gauges("raft_last_write_microseconds", "What a manager's last write to its log took, as it said", writes)?;
        if role.kind == RoleKind::Leader {
            let lags = members().map(|(of, member)| (of, status.committed.saturating_sub(member.matched)));
            out.gauges("raft_lag_entries", "Committed entries that a manager is not known to have, as the leader knows", lags)?;
        }
        let sessions = self.leadership.term().map_or(0, |term| term.sessions.len() as u64);
        out.gauge("agent_sessions", "Agents that are connected to this manager, if it leads", sessions)
    }

    fn calls(&self, out: &mut Out<'_>) -> fmt::Result {
        let figures = &self.figures;
        let mut metric = out.0.encode_descriptor("api_requests", "Calls answered", None, MetricType::Counter)?;
        for (method, calls) in figures.calls() {
            for (outcome, value) in calls.outcomes() {
                count(&mut metric.encode_family(&[("method", method.as_str()), ("outcome", outcome)])?, value)?;
            }
        }
        let told = "From a call's headers to the head of its answer; of a stream: to its beginning";
        let mut metric = out.0.encode_descriptor("api_request_duration_seconds", told, None, MetricType::Histogram)?;
        for (method, calls) in figures.calls() {
            times(&mut metric.encode_family(&[("method", method.as_str())])?, &calls.took)?;
        }
        let connections = figures.connections().map(|(part, count)| (("part", part), count));
        out.gauges("connections", "Connections that stand, by who is at the other end", connections)?;
        out.counter("connections_accepted", "Connections that were accepted", figures.accepted.value())?;
        out.counter("handshakes_failed", "Connections that did not get through the TLS handshake", figures.handshakes_failed.value())?;
        out.counter(
            "limited",
            "Calls and connections that were refused because their callers had or made too many",
            figures.limited.value(),
        )?;
        let streams = [("watch", &figures.watches), ("logs", &figures.logs), ("relay", &figures.relays)];
        let streams = streams.map(|(kind, gauge)| (("kind", kind), gauge.value()));
        out.gauges("streams", "Streams of users that this manager serves", streams)
    }
}

fn log(out: &mut Out<'_>, meter: &StoreMeter) -> fmt::Result {
    out.histogram("proposal_duration_seconds", "From a transaction to word of its commit", &meter.proposals)?;
    out.counter("proposals_failed", "Transactions that became no revision, or of which that is not known", meter.proposals_failed.value())?;
    out.counter("transactions_applied", "Transactions that the tables have taken in", meter.applied.value())?;
    out.counter("transactions_refused", "Transactions without effect: an object had another version", meter.conflicts.value())?;
    out.histogram("log_write_duration_seconds", "A batch of the log, with its sync", &meter.log_writes)?;
    out.histogram("log_sync_duration_seconds", "The sync of a batch", &meter.log_syncs)?;
    out.counter("log_written_bytes", "Bytes written to the log", meter.log_bytes.value())?;
    let mut metric = out.0.encode_descriptor("snapshots", "Snapshots of the tables", None, MetricType::Counter)?;
    let deeds = [("made", &meter.snapshots_made), ("sent", &meter.snapshots_sent), ("installed", &meter.snapshots_installed)];
    deeds.into_iter().try_for_each(|(deed, counter)| count(&mut metric.encode_family(&[("deed", deed)])?, counter.value()))
}

fn tables(out: &mut Out<'_>, state: &State) -> fmt::Result {
    let sizes = state.sizes();
    let of = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
    out.gauges("store_objects", "Objects", sizes.iter().map(|(kind, size)| (("kind", kind.as_str()), of(size.objects))))?;
    out.gauges("store_bytes", "Bytes of objects, roughly", sizes.iter().map(|(kind, size)| (("kind", kind.as_str()), of(size.bytes))))?;
    out.gauge("store_answers", "Answers kept under idempotency keys", of(state.answers().len()))?;
    out.gauge("store_revision", "Revision of the tables", state.revision())?;
    out.gauge("store_oldest_revision", "Oldest revision that a watch can go on from", state.history().oldest())
}

/// What cannot be read is left out.
fn process(out: &mut Out<'_>) -> fmt::Result {
    if let Some(bytes) = resident_bytes() {
        out.gauge("process_resident_memory_bytes", "Memory of this process", bytes)?;
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        out.gauge("process_open_fds", "Open file descriptors of this process", open.count() as u64)?;
    }
    Ok(())
}

/// `VmRSS` of proc(5).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
