//! Agents as managers hear them, and what they say of what is not theirs.

use std::cell::Cell;
use std::time::Duration;

use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::identity::JoinToken;
use rcluster_api::object::{Object, Task};
use rcluster_api::spec::{ServiceSpec, Spec};
use rcluster_api::task::TaskState;
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use rcluster_api::wire::v1::dispatcher_client::DispatcherClient;
use rcluster_api::wire::v1::manager_message::Kind;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::streams::relay;
use crate::support::{self, Cluster, until};

/// How long an agent waits for what its manager asks, before it begins again.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is said by an agent.
const SAID: &str = "as n2 says";

/// An agent, in so far as it has joined.
pub struct Agent {
    pub id: String,
    pub name: String,
    pub channel: Channel,
}

impl Agent {
    /// Its sessions are with the leader.
    pub async fn join(cluster: &Cluster, leader: &str, name: &str) -> Self {
        let token: JoinToken = cluster.founded.agent_token.parse().unwrap();
        let joined = support::join(&cluster.addrs(), &token, name, "").await.unwrap();
        let security = Security::new(joined.credentials.unwrap()).unwrap();
        let channel = support::connect(&[leader.to_owned()], &security).await.unwrap();
        Self { id: joined.id, name: name.to_owned(), channel }
    }

    /// Begins a session with what it has to say of tasks.
    pub async fn session(
        &self,
        tasks: Vec<v1::TaskReport>,
    ) -> Result<(mpsc::Sender<v1::AgentMessage>, Streaming<v1::ManagerMessage>), Status> {
        let (outbox, messages) = mpsc::channel(8);
        let addr = format!("10.0.0.{}", self.name.trim_start_matches('n'));
        let description = v1::NodeDescription { name: self.name.clone(), addr, ..v1::NodeDescription::default() };
        let register = v1::Register { node_id: self.id.clone(), incarnation: 1, description: Some(description), tasks };
        outbox.send(v1::AgentMessage { kind: Some(v1::agent_message::Kind::Register(register)) }).await.unwrap();
        let answers = DispatcherClient::new(self.channel.clone()).session(ReceiverStream::new(messages)).await?.into_inner();
        Ok((outbox, answers))
    }

    /// Takes the conversation that was asked for by this id.
    async fn take(&self, id: &str) -> Result<Streaming<v1::RelayInput>, ApiError> {
        let first = v1::RelayOutput { kind: Some(v1::relay_output::Kind::RequestId(id.to_owned())) };
        let answer = DispatcherClient::new(self.channel.clone()).relay(futures::stream::iter([first])).await?;
        Ok(answer.into_inner())
    }

    /// Sends one line for the request of this id.
    async fn publish(&self, id: &str) -> Result<(), Status> {
        let entry = v1::LogEntry { container: "c".to_owned(), text: self.name.clone(), ..v1::LogEntry::default() };
        let chunk = v1::LogChunk { request_id: id.to_owned(), entries: vec![entry], ..v1::LogChunk::default() };
        DispatcherClient::new(self.channel.clone()).publish_logs(futures::stream::iter([chunk])).await.map(drop)
    }
}

/// What its manager asks an agent for, of what is wanted.
pub async fn asked<T>(told: &mut Streaming<v1::ManagerMessage>, wanted: impl Fn(Kind) -> Option<T>) -> Option<T> {
    let asked = async {
        while let Ok(Some(message)) = told.message().await {
            if let Some(found) = message.kind.and_then(&wanted) {
                return Some(found);
            }
        }
        None
    };
    tokio::time::timeout(PATIENCE, asked).await.ok()?
}

/// A cluster with a service that is on every node, and two agents.
async fn two_agents() -> (Cluster, Agent, Agent) {
    let cluster = Cluster::found().await;
    let leader = cluster.addrs().remove(0);
    let spec = serde_json::json!({ "mode": "global", "containers": [{ "image": "none" }] });
    let web = ServiceSpec { name: "web".to_owned(), ..serde_json::from_value(spec).unwrap() };
    let spec = v1::Spec { kind: Some(Spec::Service(web).into()), expected_version: 0 };
    cluster.control(&cluster.admin).await.unwrap().apply(v1::ApplyRequest { specs: vec![spec] }).await.unwrap();
    let agents = (Agent::join(&cluster, &leader, "n1").await, Agent::join(&cluster, &leader, "n2").await);
    (cluster, agents.0, agents.1)
}

async fn tasks(cluster: &Cluster) -> Option<Vec<Task>> {
    let objects = cluster.list(&cluster.admin, v1::Kind::Task).await.ok()?;
    let tasks = objects.into_iter().filter_map(|object| match Object::try_from(object).unwrap() {
        Object::Task(task) => Some(*task),
        _ => None,
    });
    Some(tasks.collect())
}

fn running(task: &Task) -> v1::TaskReport {
    let status = v1::TaskStatus { state: v1::TaskState::Running.into(), message: SAID.to_owned(), ..v1::TaskStatus::default() };
    v1::TaskReport { task_id: task.id.to_string(), status: Some(status) }
}

// Agents begin again as often as it takes: whoever stands still for some seconds is taken for dead.

#[tokio::test]
async fn what_an_agent_reports_of_anothers_task_changes_nothing() {
    let (cluster, n1, n2) = two_agents().await;
    let told = until("what n2 says of its own is taken", || async {
        let _session = n1.session(Vec::new()).await.ok()?;
        let tasks = tasks(&cluster).await?;
        let told: Vec<String> = tasks.iter().filter(|task| task.status.message == SAID).map(|task| task.node.clone()).collect();
        if !told.is_empty() {
            return Some(told);
        }
        let assigned = |node: &str| tasks.iter().any(|task| task.node == node && task.status.state == TaskState::Assigned);
        let of_both = assigned("n1") && assigned("n2");
        let reports = if of_both { tasks.iter().map(running).collect() } else { Vec::new() };
        n2.session(reports).await.ok()?;
        None
    })
    .await;
    assert!(told.iter().all(|node| node == "n2"), "{told:?}");
}

#[tokio::test]
async fn an_agent_does_not_get_a_conversation_with_another() {
    let (cluster, n1, n2) = two_agents().await;
    let channel = cluster.connect(&cluster.admin).await.unwrap();
    until("who was asked has it", || async {
        let (_outbox, mut told) = n1.session(Vec::new()).await.ok()?;
        let _user = relay(&channel, &n1.id).await.ok()?;
        let wanted = |kind: Kind| if let Kind::Relay(command) = kind { Some(command.request_id) } else { None };
        let id = asked(&mut told, wanted).await?;
        match n2.take(&id).await {
            Ok(_) => panic!("another's conversation"),
            Err(error) if error.code == ErrorCode::NotFound => n1.take(&id).await.ok().map(drop),
            Err(_) => None,
        }
    })
    .await;
}

#[tokio::test]
async fn an_agents_lines_are_not_taken_for_anothers_and_end_nothing() {
    let (cluster, n1, n2) = two_agents().await;
    let channel = cluster.connect(&cluster.admin).await.unwrap();
    let line = until("who was asked is heard", || async {
        let own = tasks(&cluster).await?.iter().filter(|task| task.node == "n1").map(running).collect();
        let (_outbox, mut told) = n1.session(own).await.ok()?;
        // Nobody is asked for the lines of what has not begun.
        tasks(&cluster).await?.iter().find(|task| task.node == "n1" && task.status.state == TaskState::Running)?;
        let request = v1::LogsRequest { target: "web".to_owned(), follow: true, ..v1::LogsRequest::default() };
        let mut lines = ControlClient::new(channel.clone()).logs(request).await.ok()?.into_inner();
        let wanted = |kind: Kind| if let Kind::Logs(command) = kind { Some(command.request_id) } else { None };
        let id = asked(&mut told, wanted).await?;
        n2.publish(&id).await.ok()?;
        n1.publish(&id).await.ok()?;
        let line = tokio::time::timeout(PATIENCE, lines.message()).await.ok()?.ok()??;
        line.problem.is_empty().then_some(line.text)
    })
    .await;
    assert_eq!(line, "n1");
}

#[tokio::test]
async fn what_an_agent_says_of_its_host_is_kept_within_bounds() {
    let cluster = Cluster::found().await;
    let leader = cluster.addrs().remove(0);
    let agent = Agent::join(&cluster, &leader, "n1").await;
    let held = |port| v1::HeldPort { protocol: v1::Protocol::Tcp.into(), port, by: "nginx (pid 812)".to_owned() };
    let network = v1::NodeNetwork { mtu: 1400, held_ports: (1..=2000).map(held).collect(), ..v1::NodeNetwork::default() };
    let kept = until("it is kept", || async {
        let (outbox, _told) = agent.session(Vec::new()).await.ok()?;
        let said = v1::agent_message::Kind::Network(network.clone());
        outbox.send(v1::AgentMessage { kind: Some(said) }).await.ok()?;
        let nodes = cluster.list(&cluster.admin, v1::Kind::Node).await.ok()?;
        let network = nodes.into_iter().find_map(|object| match Object::try_from(object).unwrap() {
            Object::Node(node) => node.description.network,
            _ => None,
        });
        network.filter(|network| !network.held_ports.is_empty())
    })
    .await;
    assert_eq!((kept.mtu, kept.held_ports.len()), (1400, 1024));
}

/// A session that goes on: it beats, and keeps what it was told.
struct Talk {
    outbox: mpsc::Sender<v1::AgentMessage>,
    told: Streaming<v1::ManagerMessage>,
    /// Of the last view that came, and of the one that is in force here.
    view: (u64, u64),
    applied: (u64, u64),
    tasks: Vec<v1::Task>,
    released: Vec<String>,
}

impl Talk {
    async fn begin(agent: &Agent) -> Self {
        let (outbox, told) = agent.session(Vec::new()).await.unwrap();
        Self { outbox, told, view: (0, 0), applied: (0, 0), tasks: Vec::new(), released: Vec::new() }
    }

    fn take(&mut self, message: v1::ManagerMessage) {
        match message.kind {
            Some(Kind::View(view)) => self.view = (view.term, view.revision),
            Some(Kind::Assignments(set)) => self.tasks = set.tasks,
            Some(Kind::Released(released)) => self.released.extend(released.task_ids),
            _ => {}
        }
    }

    async fn say(&self, kind: v1::agent_message::Kind) {
        self.outbox.send(v1::AgentMessage { kind: Some(kind) }).await.unwrap();
    }

    async fn beat(&self) {
        let (view_term, view_revision) = self.applied;
        self.say(v1::agent_message::Kind::Heartbeat(v1::Heartbeat { sequence: 1, view_revision, view_term })).await;
    }

    async fn confirm(&mut self) {
        self.applied = self.view;
        let (term, revision) = self.applied;
        self.say(v1::agent_message::Kind::Applied(v1::ViewApplied { term, revision, problems: 0 })).await;
    }

    fn is_to_stop(&self) -> bool {
        self.tasks.iter().any(|task| task.desired_state() > v1::TaskState::Running)
    }
}

/// Hears both until what they were told fits.
async fn hear(what: &str, pair: &mut [Talk; 2], fits: impl Fn(&[Talk; 2]) -> bool) {
    let mut beats = tokio::time::interval(Duration::from_millis(200));
    let heard = async {
        while !fits(pair) {
            let [one, other] = &mut *pair;
            tokio::select! {
                message = one.told.message() => one.take(message.unwrap().unwrap()),
                message = other.told.message() => other.take(message.unwrap().unwrap()),
                _ = beats.tick() => {
                    one.beat().await;
                    other.beat().await;
                }
            }
        }
    };
    tokio::time::timeout(support::DEADLINE, heard).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_task_is_released_when_the_other_node_has_confirmed_too() {
    let cluster = Cluster::found().await;
    let leader = cluster.addrs().remove(0);
    let spec = serde_json::json!({ "mode": "global", "containers": [{ "image": "none" }], "networks": ["lab"] });
    let web = ServiceSpec { name: "web".to_owned(), ..serde_json::from_value(spec).unwrap() };
    let network = v1::NetworkSpec { name: "lab".to_owned(), ..v1::NetworkSpec::default() };
    let specs = [v1::spec::Kind::Network(network), Spec::Service(web).into()];
    let specs = specs.map(|kind| v1::Spec { kind: Some(kind), expected_version: 0 }).into();
    cluster.control(&cluster.admin).await.unwrap().apply(v1::ApplyRequest { specs }).await.unwrap();
    let agents = [Agent::join(&cluster, &leader, "n1").await, Agent::join(&cluster, &leader, "n2").await];
    let mut pair = [Talk::begin(&agents[0]).await, Talk::begin(&agents[1]).await];
    hear("both have a task", &mut pair, |pair| pair.iter().all(|talk| talk.tasks.len() == 1)).await;
    for talk in &mut pair {
        talk.confirm().await;
    }

    let before = pair[1].view;
    let refs = vec![v1::Ref { kind: v1::Kind::Service.into(), name: "web".to_owned() }];
    cluster.control(&cluster.admin).await.unwrap().remove(v1::RemoveRequest { refs }).await.unwrap();
    hear("both are to stop", &mut pair, |pair| pair.iter().all(|talk| talk.is_to_stop() && talk.view > before)).await;
    pair[0].confirm().await;
    let told = Cell::new(0);
    hear("some time passes", &mut pair, |_| told.replace(told.get() + 1) == 10).await;
    assert!(pair.iter().all(|talk| talk.released.is_empty()), "n2 may still send to both");
    pair[1].confirm().await;
    hear("both are released", &mut pair, |pair| pair.iter().all(|talk| talk.released.len() == 1)).await;
    for talk in &pair {
        assert_eq!(talk.released[0], talk.tasks[0].meta.as_ref().unwrap().id);
    }
}
