//! What a deploy would change: desired specs against the objects that are there, field by field, and which tasks it would replace.
//!
//! In: desired objects, the current ones, optionally the stack to prune. Out: a [`Plan`] that prints and serialises; never sends anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rcluster_api::data::{Data, DataKind, DataSpec, Payload};
use rcluster_api::network::{NodePort, Port, Publishers};
use rcluster_api::object::{Kind, Network, Object, Service, Task};
use rcluster_api::spec::{Mode, ServiceSpec, Spec, UpdateOrder};
use rcluster_api::validate::nearest;
use rcluster_api::wire::convert::WireError;
use rcluster_api::wire::v1;
use serde::Serialize;

use crate::native::Desired;

/// The objects of the cluster that a plan looks at.
#[derive(Debug, Clone, Default)]
pub struct Current {
    pub services: Vec<Service>,
    pub networks: Vec<Network>,
    pub data: Vec<Data>,
    pub tasks: Vec<Task>,
}

impl Current {
    /// Sorts objects of any kind into their places; those of no interest are left out.
    pub fn from_objects(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut current = Self::default();
        for object in objects {
            match object {
                Object::Service(service) => current.services.push(service),
                Object::Network(network) => current.networks.push(network),
                Object::Task(task) => current.tasks.push(*task),
                Object::Data(data) => current.data.push(data),
                Object::Node(_) | Object::Event(_) | Object::Manager(_) | Object::Cluster(_) | Object::User(_) => {}
            }
        }
        current
    }
}

impl Current {
    fn find_data(&self, kind: DataKind, name: &str) -> Option<&Data> {
        self.data.iter().find(|data| (data.spec.kind, data.spec.name.as_str()) == (kind, name))
    }
}

/// A field that differs. `None`: not set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    pub field: String,
    pub before: Option<serde_json::Value>,
    pub after: Option<serde_json::Value>,
}

/// What would become of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    Create,
    Update {
        changes: Vec<FieldChange>,
        /// Tasks that would be stopped and made anew because their template changes.
        replaces: usize,
    },
    Unchanged,
    Remove,
}

/// One object of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub kind: Kind,
    pub name: String,
    #[serde(flatten)]
    pub action: Action,
    /// Services whose tasks it replaces although they are not changed themselves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rolls: Vec<String>,
    /// What a person should know besides.
    pub notes: Vec<String>,
}

/// What a deploy would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Why the managers will refuse it.
    pub problems: Vec<String>,
}

impl Plan {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.steps.iter().all(|step| step.action == Action::Unchanged)
    }

    /// The names of the services that the deploy wants to see running.
    pub fn services(&self) -> BTreeSet<String> {
        let wanted = |step: &&Step| step.kind == Kind::Service && step.action != Action::Remove;
        let own = self.steps.iter().filter(wanted).map(|step| step.name.clone());
        let going: BTreeSet<&str> = self.steps.iter().filter(|step| step.action == Action::Remove).map(|step| step.name.as_str()).collect();
        let rolled = self.steps.iter().flat_map(|step| &step.rolls).filter(|name| !going.contains(name.as_str()));
        own.chain(rolled.cloned()).collect()
    }

    /// The objects to be removed.
    pub fn removals(&self) -> Vec<(Kind, String)> {
        self.steps.iter().filter(|step| step.action == Action::Remove).map(|step| (step.kind, step.name.clone())).collect()
    }
}

/// Compares. Objects of the stack `prune` that are not desired would be removed.
///
/// # Errors
/// A spec that cannot stand on the wire.
pub fn plan(desired: &[Desired], current: &Current, prune: Option<&str>) -> Result<Plan, WireError> {
    let mut steps = Vec::new();
    for object in desired {
        steps.push(match &object.spec {
            Spec::Service(spec) => service_step(spec, current)?,
            Spec::Network(_) => network_step(&object.spec, current)?,
            Spec::Data(spec) => data_step(spec, current),
        });
    }
    if let Some(stack) = prune {
        steps.extend(removals(desired, current, stack));
    }
    Ok(Plan { problems: problems(desired, current), steps })
}

/// The spec as the managers keep it: with the defaults that the wire fills in.
fn normalised(spec: &Spec) -> Result<Spec, WireError> {
    v1::spec::Kind::from(spec.clone()).try_into()
}

fn service_step(spec: &ServiceSpec, current: &Current) -> Result<Step, WireError> {
    let step = |action, notes| Step { kind: Kind::Service, name: spec.name.clone(), action, rolls: Vec::new(), notes };
    let Some(before) = current.services.iter().find(|service| service.spec.name == spec.name) else {
        let notes = std::iter::once(shape(spec)).chain(port_notes(&[], &spec.ports));
        return Ok(step(Action::Create, notes.collect()));
    };
    let changes = changes(&normalised(&Spec::Service(before.spec.clone()))?, &normalised(&Spec::Service(spec.clone()))?);
    let mut notes = Vec::new();
    if before.removing {
        notes.push("it is being removed: deploy again once it has gone".to_owned());
    }
    if changes.is_empty() {
        return Ok(step(Action::Unchanged, notes));
    }
    let replaces = if before.spec.template() == spec.template() {
        0
    } else {
        current.tasks.iter().filter(|task| task.service_id == before.id && task.is_live()).count()
    };
    if replaces > 0 {
        notes.push(rollout_note(spec, replaces));
    }
    notes.extend(port_notes(&before.spec.ports, &spec.ports));
    Ok(step(Action::Update { changes, replaces }, notes))
}

fn shape(spec: &ServiceSpec) -> String {
    let images: Vec<&str> = spec.containers.iter().map(|container| container.image.as_str()).collect();
    let count = match spec.mode {
        Mode::Replicated => format!("{} of", count(spec.replicas() as usize, "task")),
        Mode::Global => "one task on each node that fits, of".to_owned(),
    };
    format!("{count} {}", images.join(" + "))
}

fn rollout_note(spec: &ServiceSpec, replaces: usize) -> String {
    let pace = match spec.update.parallelism {
        0 => "all at once".to_owned(),
        parallelism => format!("{parallelism} at a time"),
    };
    let order = match spec.update.order {
        UpdateOrder::StopFirst => "the old one stops first",
        UpdateOrder::StartFirst => "the new one starts first",
    };
    format!("the template changes: {} replaced, {pace}, {order}", count_verb(replaces, "task"))
}

/// Which ports the nodes open, and which they close.
fn port_notes(before: &[Port], after: &[Port]) -> Vec<String> {
    let all = |ports: &[Port]| ports.iter().flat_map(Port::node_ports).collect::<BTreeSet<_>>();
    let (before, after) = (all(before), all(after));
    let note = |verb: &str, ports: Vec<&(NodePort, bool)>| (!ports.is_empty()).then(|| format!("{verb} {}", in_rows(&ports)));
    let notes = [note("closes", before.difference(&after).collect()), note("opens", after.difference(&before).collect())];
    notes.into_iter().flatten().collect()
}

/// "tcp port 80 at every node, tcp ports 8000-8009 at its tasks' nodes"; the ports in their order.
fn in_rows(ports: &[&(NodePort, bool)]) -> String {
    let mut rows: Vec<(NodePort, u16, bool)> = Vec::new();
    for (port, of_tasks) in ports.iter().copied().copied() {
        match rows.last_mut() {
            Some((first, last, row)) if (first.protocol, *row) == (port.protocol, of_tasks) && last.checked_add(1) == Some(port.number) => {
                *last = port.number;
            }
            _ => rows.push((port, port.number, of_tasks)),
        }
    }
    let row = |(first, last, of_tasks): (NodePort, u16, bool)| {
        let place = if of_tasks { "at its tasks' nodes" } else { "at every node" };
        if first.number == last {
            format!("{first} {place}")
        } else {
            format!("{} ports {}-{last} {place}", first.protocol.as_str(), first.number)
        }
    };
    rows.into_iter().map(row).collect::<Vec<_>>().join(", ")
}

fn network_step(spec: &Spec, current: &Current) -> Result<Step, WireError> {
    let name = spec.name().to_owned();
    let step = |action, notes| Step { kind: Kind::Network, name: name.clone(), action, rolls: Vec::new(), notes };
    let Some(before) = current.networks.iter().find(|network| network.spec.name == name) else {
        return Ok(step(Action::Create, Vec::new()));
    };
    let changes = changes(&normalised(&Spec::Network(before.spec.clone()))?, &normalised(spec)?);
    let notes = if before.removing { vec!["it is being removed: deploy again once it has gone".to_owned()] } else { Vec::new() };
    Ok(if changes.is_empty() { step(Action::Unchanged, notes) } else { step(Action::Update { changes, replaces: 0 }, notes) })
}

/// Bytes are compared and shown by their digests.
fn data_step(spec: &DataSpec, current: &Current) -> Step {
    let kind = spec.kind.object_kind();
    let step = |action, rolls, notes| Step { kind, name: spec.name.clone(), action, rolls, notes };
    let Some(before) = current.find_data(spec.kind, &spec.name) else {
        return step(Action::Create, Vec::new(), Vec::new());
    };
    let bare = |spec: &DataSpec| Spec::Data(DataSpec { data: None, ..spec.clone() });
    let mut changes = changes(&bare(&before.spec), &bare(spec));
    let mut rolls = Vec::new();
    let mut replaces = 0;
    if let Some(digest) = spec.data.as_ref().map(Payload::digest).filter(|digest| *digest != before.digest) {
        changes.push(FieldChange { field: "digest".to_owned(), before: Some(before.digest.clone().into()), after: Some(digest.into()) });
        let uses = |service: &&Service| service.spec.data().any(|used| used == (spec.kind, spec.name.as_str()));
        for service in current.services.iter().filter(|service| !service.removing).filter(uses) {
            replaces += current.tasks.iter().filter(|task| task.service_id == service.id && task.is_live()).count();
            rolls.push(service.spec.name.clone());
        }
    }
    if changes.is_empty() {
        return step(Action::Unchanged, rolls, Vec::new());
    }
    let note = (!rolls.is_empty()).then(|| format!("the data changes: {} replaced, of {}", count_verb(replaces, "task"), rolls.join(", ")));
    step(Action::Update { changes, replaces }, rolls, note.into_iter().collect())
}

fn removals(desired: &[Desired], current: &Current, stack: &str) -> Vec<Step> {
    let wanted = |kind: Kind, name: &str| desired.iter().any(|object| object.kind() == kind && object.spec.name() == name);
    let step = |kind: Kind, name: &str| Step { kind, name: name.to_owned(), action: Action::Remove, rolls: Vec::new(), notes: Vec::new() };
    let services = current.services.iter().filter(|service| service.spec.stack == stack && !service.removing);
    let networks = current.networks.iter().filter(|network| network.spec.stack == stack && !network.removing);
    let data = current.data.iter().filter(|data| data.spec.stack == stack);
    services
        .map(|service| (Kind::Service, service.spec.name.as_str()))
        .chain(networks.map(|network| (Kind::Network, network.spec.name.as_str())))
        .chain(data.map(|data| (data.spec.kind.object_kind(), data.spec.name.as_str())))
        .filter(|(kind, name)| !wanted(*kind, name))
        .map(|(kind, name)| step(kind, name))
        .collect()
}

fn problems(desired: &[Desired], current: &Current) -> Vec<String> {
    let mut known: BTreeSet<&str> = current.networks.iter().filter(|network| !network.removing).map(|n| n.spec.name.as_str()).collect();
    known.extend(desired.iter().filter(|object| object.kind() == Kind::Network).map(|object| object.spec.name()));
    let mut problems = port_problems(desired, current);
    for object in desired {
        let Spec::Service(spec) = &object.spec else { continue };
        for attachment in spec.networks.iter().filter(|attachment| !known.contains(attachment.network.as_str())) {
            problems.push(format!(
                "{}: service {} joins network {}, which neither exists nor is in the files",
                object.origin, spec.name, attachment.network
            ));
        }
        problems.extend(data_problems(object, spec, desired, current));
        let version = current.services.iter().find(|service| service.spec.name == spec.name).map_or(0, |service| service.stamp.version);
        if object.expected_version != 0 && object.expected_version != version {
            problems.push(format!(
                "{}: service {} has version {version}, the file was made from version {}",
                object.origin, spec.name, object.expected_version
            ));
        }
    }
    problems
}

/// The ports that a service publishes and another one has: one that stays, or that comes before it in the files.
fn port_problems(desired: &[Desired], current: &Current) -> Vec<String> {
    let wanted = |name: &str| desired.iter().any(|object| object.kind() == Kind::Service && object.spec.name() == name);
    let mut publishers = Publishers::default();
    for service in current.services.iter().filter(|service| !wanted(&service.spec.name)) {
        publishers.add(&service.spec.name, &service.spec.ports);
    }
    let mut problems = Vec::new();
    for object in desired {
        let Spec::Service(spec) = &object.spec else { continue };
        if let Some((place, port, other)) = publishers.clash(&spec.ports) {
            let (origin, name) = (&object.origin, &spec.name);
            problems.push(format!("{origin}: spec.ports[{place}] of service {name}: {port} is published by service {other} already"));
        }
        publishers.add(&spec.name, &spec.ports);
    }
    problems
}

/// The secrets and configs that a service names and that are neither there nor in the files, each once.
fn data_problems(object: &Desired, spec: &ServiceSpec, desired: &[Desired], current: &Current) -> Vec<String> {
    let in_files = desired.iter().filter_map(|object| match &object.spec {
        Spec::Data(data) => Some((data.kind, data.name.as_str())),
        Spec::Service(_) | Spec::Network(_) => None,
    });
    let known: BTreeSet<(DataKind, &str)> = in_files.chain(current.data.iter().map(|d| (d.spec.kind, d.spec.name.as_str()))).collect();
    let unknown: BTreeSet<(DataKind, &str)> = spec.data().filter(|used| !known.contains(used)).collect();
    let problem = |(kind, name): (DataKind, &str)| {
        let meant = nearest(name, known.iter().filter(|(of, _)| *of == kind).map(|(_, name)| *name));
        let hint = meant.map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default();
        let (origin, service, kind) = (&object.origin, &spec.name, kind.as_str());
        format!("{origin}: service {service} uses {kind} {name}, which neither exists nor is in the files{hint}")
    };
    unknown.into_iter().map(problem).collect()
}

/// The leaves in which two specs differ, by path. A list of words is one leaf.
fn changes(before: &Spec, after: &Spec) -> Vec<FieldChange> {
    let (before, after) = (leaves(before), leaves(after));
    let fields: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    fields
        .into_iter()
        .filter(|field| before.get(*field) != after.get(*field))
        .map(|field| FieldChange { field: field.clone(), before: before.get(field).cloned(), after: after.get(field).cloned() })
        .collect()
}

fn leaves(spec: &Spec) -> BTreeMap<String, serde_json::Value> {
    let value = match spec {
        Spec::Service(spec) => serde_json::to_value(spec),
        Spec::Network(spec) => serde_json::to_value(spec),
        Spec::Data(spec) => serde_json::to_value(spec),
    };
    let mut leaves = BTreeMap::new();
    collect("spec", value.expect("specs have text keys and finite numbers, which JSON can hold"), &mut leaves);
    leaves
}

fn collect(path: &str, value: serde_json::Value, leaves: &mut BTreeMap<String, serde_json::Value>) {
    match value {
        serde_json::Value::Object(map) => map.into_iter().for_each(|(key, value)| collect(&format!("{path}.{key}"), value, leaves)),
        serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
            items.into_iter().enumerate().for_each(|(index, item)| collect(&format!("{path}[{index}]"), item, leaves));
        }
        leaf => drop(leaves.insert(path.to_owned(), leaf)),
    }
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn count_verb(number: usize, noun: &str) -> String {
    format!("{} {}", count(number, noun), if number == 1 { "is" } else { "are" })
}

fn leaf(value: Option<&serde_json::Value>) -> String {
    match value {
        None => "(not set)".to_owned(),
        Some(serde_json::Value::String(text)) if !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control()) => {
            text.clone()
        }
        Some(value) => value.to_string(),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tally = [0_usize; 4];
        for step in &self.steps {
            let (sign, place, ending) = match &step.action {
                Action::Create => ('+', 0, ""),
                Action::Update { .. } => ('~', 1, ""),
                Action::Unchanged => ('=', 2, " unchanged"),
                Action::Remove => ('-', 3, ""),
            };
            tally[place] += 1;
            writeln!(formatter, "{sign} {} {}{ending}", step.kind.as_str(), step.name)?;
            if let Action::Update { changes, .. } = &step.action {
                for change in changes {
                    writeln!(formatter, "    {}: {} -> {}", change.field, leaf(change.before.as_ref()), leaf(change.after.as_ref()))?;
                }
            }
            for note in &step.notes {
                writeln!(formatter, "    {note}")?;
            }
        }
        for problem in &self.problems {
            writeln!(formatter, "! {problem}")?;
        }
        let [create, update, unchanged, remove] = tally;
        write!(formatter, "{create} to create, {update} to update, {unchanged} unchanged")?;
        if remove > 0 { write!(formatter, ", {remove} to remove") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use rcluster_api::id::{ServiceId, TaskId};
    use rcluster_api::object::{Stamp, TaskStatus};
    use rcluster_api::task::TaskState;

    use super::*;
    use crate::native::{Source, parse};

    const WEB: &str = "kind: Network\nname: lab\nspec: {}\n---\nkind: Service\nname: web\nspec:\n  replicas: 3\n  containers:\n  - image: web:1\n    \
                       args: [serve, --port, 8080]\n  networks: [lab]\n";

    fn desired(text: &str) -> Vec<Desired> {
        parse(&[Source { name: "web.yaml", text }], Some("demo"), &|_, path| Ok(path.as_bytes().to_vec())).unwrap()
    }

    /// What the managers keep after `text` was deployed, with `tasks` running tasks of each service.
    fn deployed(text: &str, tasks: u32) -> Current {
        let mut current = Current::default();
        for object in desired(text) {
            match normalised(&object.spec).unwrap() {
                Spec::Service(spec) => {
                    let id = ServiceId::from(spec.name.as_str());
                    current.tasks.extend((1..=tasks).map(|slot| task(&spec, &id, slot)));
                    current.services.push(Service {
                        id,
                        stamp: Stamp { version: 7, ..Stamp::default() },
                        spec,
                        spec_version: 1,
                        removing: false,
                        vips: Vec::new(),
                    });
                }
                Spec::Network(spec) => {
                    current.networks.push(Network::new(spec.name.as_str().into(), spec));
                }
                Spec::Data(spec) => {
                    let payload = spec.data.clone().unwrap();
                    let (digest, size) = (payload.digest(), payload.0.len() as u64);
                    let stamp = Stamp { version: 7, ..Stamp::default() };
                    current.data.push(Data { id: spec.name.as_str().into(), stamp, spec, digest, size }.shown());
                }
            }
        }
        current
    }

    fn task(spec: &ServiceSpec, service: &ServiceId, slot: u32) -> Task {
        Task {
            id: TaskId::from(format!("{slot}")),
            stamp: Stamp::default(),
            service_id: service.clone(),
            service: spec.name.clone(),
            stack: String::new(),
            slot,
            name: format!("{}.{slot}", spec.name),
            template: spec.template(),
            spec_version: 1,
            desired_state: TaskState::Running,
            restarts: 0,
            restarts_in_window: 0,
            window_start_ms: 0,
            start_after_ms: 0,
            node_id: None,
            node: String::new(),
            networks: Vec::new(),
            status: TaskStatus { state: TaskState::Running, message: String::new(), since_ms: 0, containers: Vec::new(), ending: false },
            leave_ms: 0,
        }
    }

    fn check(text: &str, current: &Current, expected: &str) {
        let found = plan(&desired(text), current, Some("demo")).unwrap().to_string();
        assert_eq!(found.trim_end(), expected);
    }

    #[test]
    fn a_first_deploy_creates() {
        check(WEB, &Current::default(), "+ network lab\n+ service web\n    3 tasks of web:1\n2 to create, 0 to update, 0 unchanged");
    }

    #[test]
    fn the_same_again_changes_nothing() {
        let current = deployed(WEB, 3);
        check(WEB, &current, "= network lab unchanged\n= service web unchanged\n0 to create, 0 to update, 2 unchanged");
        assert!(plan(&desired(WEB), &current, None).unwrap().is_empty());
    }

    #[test]
    fn scaling_replaces_nothing() {
        check(
            &WEB.replace("replicas: 3", "replicas: 5"),
            &deployed(WEB, 3),
            "= network lab unchanged\n~ service web\n    spec.replicas: 3 -> 5\n0 to create, 1 to update, 1 unchanged",
        );
    }

    #[test]
    fn a_changed_template_says_what_restarts() {
        check(
            &WEB.replace("8080]", "9090]\n    env: {A: 'b c'}"),
            &deployed(WEB, 3),
            "= network lab unchanged\n~ service web\n    spec.containers[0].args: [\"serve\",\"--port\",\"8080\"] -> [\"serve\",\"--port\",\"9090\"]\n    \
             spec.containers[0].env.A: (not set) -> \"b c\"\n    the template changes: 3 tasks are replaced, 1 at a time, the old one stops first\n\
             0 to create, 1 to update, 1 unchanged",
        );
    }

    #[test]
    fn pruning_removes_what_the_files_no_longer_have() {
        check(
            "kind: Network\nname: lab\nspec: {internal: true}\n",
            &deployed(WEB, 1),
            "~ network lab\n    spec.internal: (not set) -> true\n- service web\n0 to create, 1 to update, 0 unchanged, 1 to remove",
        );
    }

    #[test]
    fn what_the_managers_will_refuse_is_told_at_once() {
        let text = WEB.replace("[lab]", "[lab, lag]") + "version: 3\n";
        check(
            &text,
            &deployed(WEB, 3),
            "= network lab unchanged\n~ service web\n    spec.networks: [\"lab\"] -> [\"lab\",\"lag\"]\n    \
             the template changes: 3 tasks are replaced, 1 at a time, the old one stops first\n\
             ! web.yaml:5:1: service web joins network lag, which neither exists nor is in the files\n\
             ! web.yaml:5:1: service web has version 7, the file was made from version 3\n0 to create, 1 to update, 1 unchanged",
        );
    }

    const OPEN: &str = "kind: Network\nname: lab\nspec: {}\n---\nkind: Service\nname: web\nspec:\n  containers: [{image: \"web:1\"}]\n  \
                        networks: [lab]\n  ports: [\"8080:80\", \"53:53/udp\"]\n";

    #[test]
    fn ports_are_told_with_the_nodes_that_open_and_close_them_and_replace_nothing() {
        let opens = "tcp port 8080 at every node, udp port 53 at every node";
        let created =
            format!("+ network lab\n+ service web\n    1 task of web:1\n    opens {opens}\n2 to create, 0 to update, 0 unchanged");
        check(OPEN, &Current::default(), &created);
        check(
            &OPEN.replace("\"8080:80\", \"53:53/udp\"", "\"8080-8082:80-82\", {target: 53, published: 53, protocol: udp, mode: host}"),
            &deployed(OPEN, 1),
            "= network lab unchanged\n~ service web\n    spec.ports: [\"8080:80\",\"53:53/udp\"] -> (not set)\n    \
             spec.ports[0]: (not set) -> 8080-8082:80-82\n    spec.ports[1].mode: (not set) -> host\n    \
             spec.ports[1].protocol: (not set) -> udp\n    spec.ports[1].published: (not set) -> 53\n    \
             spec.ports[1].target: (not set) -> 53\n    closes udp port 53 at every node\n    \
             opens tcp ports 8081-8082 at every node, udp port 53 at its tasks' nodes\n0 to create, 1 to update, 1 unchanged",
        );
        check(
            &OPEN.replace("8080:80", "9090:80"),
            &deployed(OPEN, 1),
            "= network lab unchanged\n~ service web\n    spec.ports: [\"8080:80\",\"53:53/udp\"] -> [\"9090:80\",\"53:53/udp\"]\n    \
             closes tcp port 8080 at every node\n    opens tcp port 9090 at every node\n0 to create, 1 to update, 1 unchanged",
        );
    }

    #[test]
    fn a_port_that_another_service_has_is_told_before_anything_is_sent() {
        let other = "kind: Service\nname: other\nspec:\n  containers: [{image: \"web:1\"}]\n  networks: [lab]\n  \
                     ports: [\"80:80\", \"8080:80\"]\n";
        let problem = |text: &str, current: &Current| plan(&desired(text), current, None).unwrap().problems;
        let taken = "spec.ports[1] of service other: tcp port 8080 is published by service web already";
        assert_eq!(problem(other, &deployed(OPEN, 1)), [format!("web.yaml:1:1: {taken}")]);
        assert_eq!(problem(&format!("{OPEN}---\n{other}"), &Current::default()), [format!("web.yaml:12:1: {taken}")]);
        let moved = OPEN.replace("8080:80", "8081:80");
        assert!(problem(&format!("{other}---\n{moved}"), &deployed(OPEN, 1)).is_empty(), "web gives it up");
    }

    #[test]
    fn what_get_prints_deploys_again_unchanged() {
        let current = deployed(WEB, 3);
        let service = rcluster_api::rest::ServiceJson::new(&current.services[0], &current.tasks);
        let network = rcluster_api::rest::NetworkJson::new(&current.networks[0], &current.tasks);
        let printed = format!("{}---\n{}", serde_yaml::to_string(&network).unwrap(), serde_yaml::to_string(&service).unwrap());
        let again = parse(&[Source { name: "again", text: &printed }], None, &|_, _| Err(String::new())).unwrap();
        assert_eq!(again[1].expected_version, 7);
        let plan = plan(&again, &current, None).unwrap();
        assert!(plan.is_empty() && plan.problems.is_empty(), "{plan}");
    }

    const SECRET: &str = "kind: Secret\nname: db\nspec: {text: hunter2}\n---\nkind: Service\nname: web\nspec:\n  containers:\n  - image: web:1\n    \
                          secrets: [db]\n";

    #[test]
    fn a_changed_secret_shows_its_digests_and_who_is_replaced() {
        let digest = |text: &str| Payload(text.as_bytes().to_vec()).digest();
        let expected = format!(
            "~ secret db\n    digest: {} -> {}\n    the data changes: 2 tasks are replaced, of web\n= service web unchanged\n\
             0 to create, 1 to update, 1 unchanged",
            digest("hunter2"),
            digest("./key")
        );
        check(&SECRET.replace("text: hunter2", "file: ./key"), &deployed(SECRET, 2), &expected);
        let plan = plan(&desired(&SECRET.replace("hunter2", "hunter3")), &deployed(SECRET, 2), None).unwrap();
        assert!(!format!("{plan:?} {}", serde_json::to_string(&plan).unwrap()).contains("hunter"));
        check(SECRET, &deployed(SECRET, 2), "= secret db unchanged\n= service web unchanged\n0 to create, 0 to update, 2 unchanged");
    }

    #[test]
    fn a_secret_that_is_nowhere_is_told_with_the_one_that_was_meant() {
        check(
            &SECRET.replace("secrets: [db]", "secrets: [dv]\n    configs: [db]"),
            &Current::default(),
            "+ secret db\n+ service web\n    1 task of web:1\n\
             ! web.yaml:5:1: service web uses secret dv, which neither exists nor is in the files; did you mean \"db\"?\n\
             ! web.yaml:5:1: service web uses config db, which neither exists nor is in the files\n2 to create, 0 to update, 0 unchanged",
        );
    }

    #[test]
    fn a_secret_that_get_prints_keeps_its_bytes() {
        let current = deployed(SECRET, 1);
        let printed = serde_yaml::to_string(&rcluster_api::rest::DataJson::from(&current.data[0])).unwrap();
        assert!(!printed.contains("data:") && printed.contains("digest: sha256:"), "{printed}");
        assert!(plan(&desired(&printed), &current, None).unwrap().is_empty());
    }
}
