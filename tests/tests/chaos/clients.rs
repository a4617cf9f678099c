//! Clients that write and read configs through any of the managers, and write down what they saw.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rcluster_api::client;
use rcluster_api::error::{ApiError, ErrorCode};
use rcluster_api::tls::Security;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use rcluster_history::{Deed, Key, Operation, Outcome, Seen, Value};
use rcluster_tests::lab::wait_for;
use rcluster_tests::managers::{DEADLINE, Managers};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

/// Objects of one round: few, so that clients meet.
const KEYS: Key = 5;
/// How long a client waits for an answer. Nobody knows what becomes of what was not answered.
const PATIENCE: Duration = Duration::from_secs(4);
/// Clients that stay with one manager, and how often each calls it.
const VISITORS: usize = 6;
const VISITS_MAX: usize = 20;
const FIRST_VISITOR: usize = 1000;
/// The number of who reads everything at the end.
const LAST: usize = 9999;
/// A config's label with its value: lists show labels, and no contents.
const LABEL: &str = "value";

/// What all clients share.
struct Shared {
    started: Instant,
    addrs: Vec<String>,
    admin: Security,
    values: AtomicU64,
    round: AtomicU64,
    ended: AtomicBool,
    answers: AtomicUsize,
    failures: AtomicUsize,
    history: Mutex<Vec<Operation>>,
    /// Answers that no fault explains.
    nonsense: Mutex<Vec<String>>,
}

/// All clients.
pub struct Clients {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Clients {
    pub fn start(cluster: &Managers, count: usize, rng: &mut StdRng) -> Self {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            addrs: cluster.addrs(),
            admin: cluster.admin().clone(),
            values: AtomicU64::new(1),
            round: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            answers: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            history: Mutex::default(),
            nonsense: Mutex::default(),
        });
        let client = |number: usize| cluster.handle().spawn(Client::new(number, number, rng.random(), &shared).run());
        let tasks = (0..count).map(client).collect();
        Self { shared, tasks }
    }

    /// Other objects from now on: the history of each stays short.
    pub fn next_round(&self) {
        self.shared.round.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until clients have had so many more answers.
    pub fn wait_for_answers(&self, more: usize) {
        let enough = self.shared.answers.load(Ordering::Relaxed) + more;
        wait_for("clients are answered", DEADLINE, || Ok((self.shared.answers.load(Ordering::Relaxed) >= enough).then_some(()))).unwrap();
    }

    /// Waits until a call has failed.
    pub fn wait_for_failures(&self) {
        let enough = self.shared.failures.load(Ordering::Relaxed) + 1;
        wait_for("calls fail", DEADLINE, || Ok((self.shared.failures.load(Ordering::Relaxed) >= enough).then_some(()))).unwrap();
    }

    /// More clients, connected to this manager while it is well. They ask it once it is not, see [`Visitors::ask`].
    pub fn visitors(&self, cluster: &Managers, manager: usize) -> Visitors {
        let visitor = |number| {
            let mut visitor = Client::new(FIRST_VISITOR + number, manager, number as u64, &self.shared);
            wait_for("a visitor is connected", DEADLINE, || Ok(cluster.handle().block_on(visitor.connect()))).unwrap();
            visitor
        };
        Visitors((0..VISITORS).map(visitor).collect())
    }

    pub fn summary(&self) -> String {
        let load = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        format!("{} answers, {} failures so far", load(&self.shared.answers), load(&self.shared.failures))
    }

    /// Ends the clients, reads everything once more through every manager, and returns what was seen.
    pub fn end(self, cluster: &Managers) -> Vec<Operation> {
        self.shared.ended.store(true, Ordering::Relaxed);
        for task in self.tasks {
            cluster.handle().block_on(task).unwrap();
        }
        for manager in 0..cluster.count() {
            let mut last = Client::new(LAST, manager, 0, &self.shared);
            for round in 0..=self.shared.round.load(Ordering::Relaxed) {
                let mut read = async || {
                    last.connect().await?;
                    let answered = last.read_all(round).await;
                    if !answered {
                        last.control = None;
                    }
                    answered.then_some(())
                };
                wait_for(&format!("manager {manager} answers at the end"), DEADLINE, || Ok(cluster.handle().block_on(read()))).unwrap();
            }
        }
        assert_eq!(*self.shared.nonsense.lock().unwrap(), Vec::<String>::new());
        std::mem::take(&mut *self.shared.history.lock().unwrap())
    }
}

/// Clients that stay with one manager.
pub struct Visitors(Vec<Client>);

impl Visitors {
    /// They begin to call, and go on until it no longer answers, or has answered often.
    pub fn ask(self, cluster: &Managers) -> Vec<JoinHandle<()>> {
        let ask = |mut visitor: Client| {
            cluster.handle().spawn(async move {
                let round = visitor.shared.round.load(Ordering::Relaxed);
                for _ in 0..VISITS_MAX {
                    if !visitor.call(round).await {
                        return;
                    }
                }
            })
        };
        self.0.into_iter().map(ask).collect()
    }
}

/// One client, with a connection of its own.
struct Client {
    number: u32,
    manager: usize,
    control: Option<ControlClient<Channel>>,
    /// What it was told last of the objects of its round.
    told: BTreeMap<Key, Seen>,
    rng: StdRng,
    shared: Arc<Shared>,
}

fn name(key: Key) -> String {
    format!("c{key}")
}

fn seen(object: &v1::Object) -> Option<(String, Seen)> {
    let Some(v1::object::Kind::Data(data)) = &object.kind else { return None };
    let spec = data.spec.as_ref()?;
    Some((spec.name.clone(), Seen { version: data.meta.as_ref()?.version, value: spec.labels.get(LABEL)?.parse().ok()? }))
}

impl Client {
    fn new(number: usize, manager: usize, seed: u64, shared: &Arc<Shared>) -> Self {
        let (rng, number) = (StdRng::seed_from_u64(seed), u32::try_from(number).unwrap());
        Self { number, manager, control: None, told: BTreeMap::new(), rng, shared: shared.clone() }
    }

    async fn run(mut self) {
        let mut round = 0;
        while !self.shared.ended.load(Ordering::Relaxed) {
            let now = self.shared.round.load(Ordering::Relaxed);
            if now != round {
                round = now;
                self.told.clear();
            }
            if self.connect().await.is_none() || !self.call(round).await || self.rng.random_ratio(1, 100) {
                self.control = None;
                self.manager += 1;
                self.shared.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// None: this manager cannot be reached, and nothing was asked.
    async fn connect(&mut self) -> Option<()> {
        if self.control.is_none() {
            let addr = &self.shared.addrs[self.manager % self.shared.addrs.len()];
            self.control = Some(client::control(std::slice::from_ref(addr), &self.shared.admin).await.ok()?);
        }
        Some(())
    }

    /// One call, written down; whether it was answered.
    async fn call(&mut self, round: u64) -> bool {
        let key = Key::try_from(round).unwrap() * KEYS + self.rng.random_range(0..KEYS);
        let told = self.told.get(&key).copied();
        match self.rng.random_range(0..10) {
            0..2 => self.read_all(round).await,
            2..5 => match told {
                Some(_) => self.read(key).await,
                None => self.read_all(round).await,
            },
            5..7 => self.write(key, None, None).await,
            7 => self.write(key, told, told.map(|seen| seen.value)).await,
            _ => self.write(key, told, None).await,
        }
    }

    async fn list(&mut self, name: &str) -> Option<(Duration, v1::ListResponse)> {
        let request = v1::ListRequest { kind: v1::Kind::Config.into(), name: name.to_owned(), ..v1::ListRequest::default() };
        let called = self.shared.started.elapsed();
        let control = self.control.as_mut()?;
        match tokio::time::timeout(PATIENCE, control.list(request)).await {
            Ok(Ok(answer)) => Some((called, answer.into_inner())),
            Ok(Err(status)) => {
                self.explain(&status.into());
                None
            }
            Err(_) => None,
        }
    }

    async fn read(&mut self, key: Key) -> bool {
        let Some((called, answer)) = self.list(&name(key)).await else { return false };
        let found: Vec<(String, Seen)> = answer.objects.iter().filter_map(seen).collect();
        let [(_, seen)] = found[..] else { return self.nonsense(format!("config {key} is read as {answer:?}")) };
        self.record(called, Deed::Read { revision: answer.revision, objects: BTreeMap::from([(key, Some(seen))]) });
        self.told.insert(key, seen);
        true
    }

    async fn read_all(&mut self, round: u64) -> bool {
        let Some((called, answer)) = self.list("").await else { return false };
        let found: BTreeMap<String, Seen> = answer.objects.iter().filter_map(seen).collect();
        let first = Key::try_from(round).unwrap() * KEYS;
        let objects: BTreeMap<Key, Option<Seen>> = (first..first + KEYS).map(|key| (key, found.get(&name(key)).copied())).collect();
        self.told.extend(objects.iter().filter_map(|(key, seen)| Some((*key, (*seen)?))));
        self.record(called, Deed::Read { revision: answer.revision, objects });
        true
    }

    /// Writes a new value, or the one that it is told to have already.
    async fn write(&mut self, key: Key, expected: Option<Seen>, same: Option<Value>) -> bool {
        let value = same.unwrap_or_else(|| self.shared.values.fetch_add(1, Ordering::Relaxed));
        let data = v1::DataSpec {
            kind: v1::DataKind::Config.into(),
            name: name(key),
            labels: [(LABEL.to_owned(), value.to_string())].into(),
            payload: Some(v1::Payload { bytes: value.to_string().into_bytes() }),
            ..v1::DataSpec::default()
        };
        let expected_version = expected.map_or(0, |seen| seen.version);
        let specs = vec![v1::Spec { kind: Some(v1::spec::Kind::Data(data)), expected_version }];
        let called = self.shared.started.elapsed();
        let Some(control) = self.control.as_mut() else { return false };
        let outcome = match tokio::time::timeout(PATIENCE, control.apply(v1::ApplyRequest { specs })).await {
            Err(_) => Outcome::Unknown,
            Ok(Err(status)) => self.explain(&status.into()),
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                match answer.applied.first().map(v1::Applied::outcome) {
                    Some(v1::Outcome::Unchanged) => Outcome::Unchanged(answer.revision),
                    Some(v1::Outcome::Created | v1::Outcome::Updated) => Outcome::Written(answer.revision),
                    Some(v1::Outcome::Unspecified) | None => return self.nonsense(format!("{answer:?}")),
                }
            }
        };
        match outcome {
            Outcome::Written(version) => drop(self.told.insert(key, Seen { version, value })),
            Outcome::Conflict | Outcome::Unknown => drop(self.told.remove(&key)),
            Outcome::Unchanged(_) => {}
        }
        // What would have changed nothing and was not answered says nothing.
        if same.is_none() || outcome != Outcome::Unknown {
            self.record(called, Deed::Write { key, value, expected, outcome });
        }
        outcome != Outcome::Unknown
    }

    /// What a refusal says about a write.
    fn explain(&self, refusal: &ApiError) -> Outcome {
        // Whether a call that failed half-way was carried out, nobody knows.
        let half_way = matches!(refusal.code, ErrorCode::Unavailable | ErrorCode::NotLeader | ErrorCode::Internal);
        if refusal.code == ErrorCode::Conflict {
            return Outcome::Conflict;
        }
        if !half_way {
            self.nonsense(format!("{:?}: {refusal}", refusal.code));
        }
        Outcome::Unknown
    }

    fn nonsense(&self, what: String) -> bool {
        self.shared.nonsense.lock().unwrap().push(format!("client {}: {what}", self.number));
        false
    }

    fn record(&self, called: Duration, deed: Deed) {
        let ended = self.shared.started.elapsed();
        if !deed.is_unknown() {
            self.shared.answers.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.history.lock().unwrap().push(Operation { client: self.number, called, ended, deed });
    }
}
