//! The verbs that only look: get, describe, ps, events, node ls, cluster status.

use std::collections::BTreeMap;

use rcluster_api::client::{Door, door};
use rcluster_api::data::DataKind;
use rcluster_api::object::{Kind, Task};
use rcluster_api::wire::v1;
use rcluster_base::clock::unix_ms;

use crate::args::Format;
use crate::error::CliError;
use crate::output::{self, Number, Out, rows};
use crate::session::Session;
use crate::views::{self, Objects, View};

/// `get KIND [NAME]`.
pub async fn get(session: Session, out: Out, kind: Kind, name: Option<&str>, watch: bool) -> Result<(), CliError> {
    let name = name.unwrap_or_default().to_owned();
    let number = if name.is_empty() { Number::Many } else { Number::One };
    if watch {
        let is_meant = |view: &View| name.is_empty() || view.name() == name || id(view) == name;
        return follow(session, out, kind, |views| views.into_iter().filter(is_meant).collect()).await;
    }
    let mut session = session;
    let views = Objects::read(&mut session, kind, &name).await?.views(kind);
    out.views(&views, number, unix_ms(), &format!("no {}s", kind.as_str()))
}

/// `node inspect`, `secret inspect`: all fields, as JSON unless another form was asked for.
pub async fn inspect(mut session: Session, out: Out, kind: Kind, name: &str) -> Result<(), CliError> {
    let views = Objects::read(&mut session, kind, name).await?.views(kind);
    let out = if out.is_table() { Out { format: Format::Json } } else { out };
    out.views(&views, Number::One, unix_ms(), "")
}

/// `ps [SERVICE]`.
pub async fn ps(mut session: Session, out: Out, service: Option<&str>, all: bool, watch: bool) -> Result<(), CliError> {
    let service = service.unwrap_or_default().to_owned();
    if !service.is_empty() && session.list(Kind::Service, &service, "").await?.is_empty() {
        return Err(CliError::refused(format!("there is no service {service}"), "see rclusterctl get services"));
    }
    let shown = |tasks: Vec<View>| {
        let tasks =
            tasks.into_iter().filter(|view| view.task().is_some_and(|task| service.is_empty() || task.service == service)).collect();
        if all { tasks } else { views::present(tasks) }
    };
    if watch {
        return follow(session, out, Kind::Task, shown).await;
    }
    let views = shown(Objects::read(&mut session, Kind::Task, "").await?.views(Kind::Task));
    let empty = if all { "no tasks" } else { "no tasks (rclusterctl ps -a shows those that have ended)" };
    out.views(&views, Number::Many, unix_ms(), empty)
}

/// `events`.
pub async fn events(mut session: Session, out: Out, since: Option<&str>, watch: bool) -> Result<(), CliError> {
    let since_ms = since.map(|since| views::since(since, unix_ms())).transpose()?.unwrap_or(0);
    let since = rcluster_api::rest::timestamp(since_ms);
    let wanted = |view: &View| matches!(view, View::Event(event) if event.time >= since);
    if watch {
        return follow(session, out, Kind::Event, |views| views.into_iter().filter(wanted).collect()).await;
    }
    let views: Vec<View> = Objects::read(&mut session, Kind::Event, "").await?.views(Kind::Event).into_iter().filter(wanted).collect();
    out.views(&views, Number::Many, unix_ms(), "no events")
}

/// `node ls`: the managers, then the nodes.
pub async fn nodes(mut session: Session, out: Out) -> Result<(), CliError> {
    let cluster = views::cluster(session.cluster().await?);
    let mut views = views::manager_nodes(&cluster);
    views.extend(Objects::read(&mut session, Kind::Node, "").await?.views(Kind::Node));
    out.views(&views, Number::Many, unix_ms(), "no nodes")
}

/// `cluster status`; fails when nobody leads.
pub async fn cluster(mut session: Session, out: Out) -> Result<(), CliError> {
    let mut answer = session.cluster().await?;
    mark_locked(&session, &mut answer).await;
    let needed = match answer.store.as_str() {
        "" | "raft" => "a majority of the managers must run and reach one another".to_owned(),
        etcd => format!("{etcd} must answer the managers, which keep the state there"),
    };
    let cluster = views::cluster(answer);
    let nodes = if cluster.leader.is_empty() { Vec::new() } else { Objects::read(&mut session, Kind::Node, "").await?.views(Kind::Node) };
    out.cluster(&cluster, &nodes)?;
    if cluster.leader.is_empty() {
        let reachable = cluster.managers.iter().filter(|manager| manager.reachable).count();
        return Err(CliError::Unreachable {
            message: format!("no manager leads: {reachable} of {} are reachable", cluster.managers.len()),
            hint: needed,
        });
    }
    views::warning(&cluster).map_or(Ok(()), output::talk)
}

/// The managers themselves cannot tell one that is locked from one that is away; whoever asks it can.
async fn mark_locked(session: &Session, cluster: &mut v1::ClusterResponse) {
    let Ok(security) = session.security() else { return };
    if security.is_plain() {
        return;
    }
    let away = cluster.managers.iter_mut().filter(|manager| !manager.reachable);
    let look = away.map(|manager| async {
        if let Door::Locked(_) = door(&manager.addr, &security).await {
            manager.role = "locked".to_owned();
        }
    });
    futures::future::join_all(look).await;
}

/// `describe KIND NAME`.
pub async fn describe(mut session: Session, out: Out, kind: Kind, name: &str) -> Result<(), CliError> {
    let objects = Objects::read(&mut session, kind, name).await?;
    let views = objects.views(kind);
    if !out.is_table() {
        return out.views(&views, Number::One, unix_ms(), "");
    }
    let events = Objects::read(&mut session, Kind::Event, "").await?.views(Kind::Event);
    for (index, view) in views.iter().enumerate() {
        let tasks: Vec<View> = objects.views(Kind::Task).into_iter().filter(|task| belongs(task, view, &objects)).collect();
        let events: Vec<View> = events.iter().filter(|event| concerns(event, view)).cloned().collect();
        let separator = if index > 0 { "\n---\n" } else { "" };
        output::data(&format!("{separator}{}", output::describe::describe(view, &tasks, &events, unix_ms())?))?;
    }
    Ok(())
}

/// Whether a task is one of a service, on a node, attached to a network, or a user of a secret or config.
fn belongs(task: &View, to: &View, objects: &Objects) -> bool {
    let View::Task(task) = task else { return false };
    let object = |wanted: &dyn Fn(&Task) -> bool| objects.tasks().any(|object| object.id.as_str() == task.id && wanted(object));
    match to {
        View::Service(service) => object(&|object| object.service_id.as_str() == service.id),
        View::Node(node) => !task.state.is_terminal() && object(&|object| object.node_id.as_ref().is_some_and(|id| id.as_str() == node.id)),
        View::Network(network) => {
            !task.state.is_terminal() && object(&|object| object.networks.iter().any(|on| on.network_id.as_str() == network.id))
        }
        View::Data(data) => {
            let key = |kind: DataKind| (kind.as_str() == to.kind()).then_some((kind, data.name.as_str()));
            let Some(key) = key(DataKind::Secret).or_else(|| key(DataKind::Config)) else { return false };
            !task.state.is_terminal() && object(&|object| object.template.data().any(|used| used == key))
        }
        View::Task(_) | View::Manager(_) | View::Event(_) | View::User(_) => false,
    }
}

/// Whether an event tells of an object; a service's are also those of its tasks.
fn concerns(event: &View, object: &View) -> bool {
    let View::Event(event) = event else { return false };
    let of_its_task =
        matches!(object, View::Service(_)) && event.object.strip_prefix(object.name()).is_some_and(|rest| rest.starts_with('.'));
    event.object_id == id(object) || of_its_task
}

fn id(view: &View) -> &str {
    match view {
        View::Service(view) => &view.id,
        View::Task(view) => &view.id,
        View::Node(view) => &view.id,
        View::Manager(view) => &view.id,
        View::Network(view) => &view.id,
        View::Event(view) => &view.id,
        View::Data(view) => &view.id,
        View::User(view) => &view.id,
    }
}

/// Prints what there is, then each change, until the managers are gone or the reader is.
async fn follow(session: Session, out: Out, kind: Kind, shown: impl Fn(Vec<View>) -> Vec<View>) -> Result<(), CliError> {
    let mut watch = session.watch(Objects::kinds_for(kind));
    let mut objects = Objects::default();
    let mut known: BTreeMap<String, View> = BTreeMap::new();
    let mut widths: Option<Vec<usize>> = None;
    loop {
        let change = watch.next().await?;
        let synced = change.synced;
        objects.update(change);
        if !synced {
            continue;
        }
        let views = shown(objects.views(kind));
        let changed: Vec<View> = views.iter().filter(|view| known.get(id(view)) != Some(view)).cloned().collect();
        let now: BTreeMap<String, View> = views.into_iter().map(|view| (id(&view).to_owned(), view)).collect();
        let gone: Vec<View> = known.iter().filter(|(id, _)| !now.contains_key(*id)).map(|(_, view)| view.clone()).collect();
        known = now;
        print_changes(out, &changed, &gone, &mut widths)?;
    }
}

fn print_changes(out: Out, changed: &[View], gone: &[View], widths: &mut Option<Vec<usize>>) -> Result<(), CliError> {
    if !changed.is_empty() && out.is_table() {
        let table = rows::table(changed, out.format == Format::Wide, unix_ms());
        match widths {
            None => {
                *widths = Some(table.widths());
                output::data(&table.to_string())?;
            }
            Some(widths) => output::data(&table.rows_in(widths))?,
        }
    } else if out.format == Format::Name {
        out.views(changed, Number::Many, unix_ms(), "")?;
    } else {
        changed.iter().try_for_each(|view| out.streamed(view))?;
    }
    gone.iter().try_for_each(|view| output::talk(&format!("{} {} is no longer there", view.kind(), view.name())))
}
