//! Managers as processes, each on a loopback address of its own.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rcluster_api::client::{self, Joined};
use rcluster_api::error::ApiError;
use rcluster_api::identity::JoinToken;
use rcluster_api::tls::{Credentials, Security, SigningRequest};
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::control_client::ControlClient;
use serde::Deserialize;
use tempfile::TempDir;
use tonic::transport::Channel;
use tower::{Service, ServiceExt};

/// Longest wait for what must happen.
pub const DEADLINE: Duration = Duration::from_secs(30);
const PROGRAM: &str = env!("CARGO_BIN_EXE_rcluster-manager");

/// Copies a state directory.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let there = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &there);
        } else {
            fs::copy(&path, there).unwrap();
        }
    }
}

/// Every file below a directory and what it holds; nobody reads a spare segment.
pub fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().unwrap() != "spare" {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// Asks again until there is an answer.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let started = Instant::now();
    while started.elapsed() < DEADLINE {
        if let Some(answer) = ask().await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// What `init` prints.
#[derive(Debug, Clone, Deserialize)]
pub struct Founded {
    pub cluster_id: String,
    pub manager_token: String,
    pub agent_token: String,
    pub admin_file: PathBuf,
}

/// What `init` writes for the administrator.
#[derive(Debug, Deserialize)]
struct Access {
    credentials: Option<Credentials>,
}

/// A manager; it is killed when this goes.
#[derive(Debug)]
pub struct Manager {
    pub name: String,
    pub addr: String,
    pub dir: PathBuf,
    pub process: Child,
}

impl Drop for Manager {
    #[allow(clippy::print_stderr, reason = "a failing test tells what it saw")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default();
            let from = log.lines().count().saturating_sub(30);
            eprintln!("{}:\n{}", self.name, log.lines().skip(from).collect::<Vec<_>>().join("\n"));
        }
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Manager {
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// How it has ended by itself.
    pub async fn end(&mut self) -> i32 {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code().expect("it was not killed");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("manager {} goes on: {}", self.name, self.log());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.with_extension("log")).unwrap()
    }
}

/// A cluster that began with one manager.
#[derive(Debug)]
pub struct Cluster {
    /// First to go: their logs are in the directory.
    pub managers: Vec<Manager>,
    pub dir: TempDir,
    pub founded: Founded,
    pub admin: Security,
    /// `--store` of each manager and the flags of its etcd, if there is one.
    pub store: Vec<String>,
}

/// An address of 127.0.0.0/8 that nobody else has.
pub fn addr() -> String {
    let [a, b, c] = rand::random::<[u8; 3]>();
    format!("{}:7443", Ipv4Addr::new(127, a.clamp(1, 250), b, c.clamp(1, 250)))
}

/// Where Debian has the library that gives a process a clock of its own; the loader puts its own directory in place of `$LIB`.
const CLOCK_LIBRARY: &str = "/usr/$LIB/faketime/libfaketime.so.1";

/// The program, with a clock that differs from the machine's so much, if that is not empty.
fn program(clock: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    // Last words are what it has to say, and not where it stood.
    command.env_remove("RCLUSTER_JOIN_TOKEN").env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    if !clock.is_empty() {
        command.env("LD_PRELOAD", CLOCK_LIBRARY).env("FAKETIME", clock).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    command
}

pub fn run_program(arguments: &[&str]) -> Output {
    program("").args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Starts `run` with these arguments; what it logs is beside its directory.
pub fn start(name: &str, dir: &Path, addr: &str, arguments: &[&str]) -> Manager {
    start_at("", name, dir, addr, arguments)
}

fn start_at(clock: &str, name: &str, dir: &Path, addr: &str, arguments: &[&str]) -> Manager {
    let log = std::fs::File::options().create(true).append(true).open(dir.with_extension("log")).unwrap();
    let mut command = program(clock);
    command.args(["run", "--state-dir", dir.to_str().unwrap(), "--listen", addr]).args(arguments);
    let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    Manager { name: name.to_owned(), addr: addr.to_owned(), dir: dir.to_owned(), process }
}

impl Cluster {
    /// One manager, m1, that leads.
    pub async fn found() -> Self {
        Self::found_with(&[]).await
    }

    /// `--store` and the flags of its etcd come last.
    pub async fn found_with(flags: &[&str]) -> Self {
        let cluster = Self::make("", flags);
        until("m1 leads", || async { cluster.status().await.ok().filter(|status| status.leader == "m1") }).await;
        cluster
    }

    /// One manager, whose clock differs from that of the machine.
    pub async fn found_at(clock: &str) -> Self {
        let cluster = Self::make(clock, &[]);
        until("m1 leads", || async { cluster.managers[0].log().contains("leading").then_some(()) }).await;
        cluster
    }

    fn make(clock: &str, flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (state, addr) = (dir.path().join("m1"), addr());
        let mut arguments = vec!["init", "--name", "m1", "--state-dir", state.to_str().unwrap(), "--advertise", &addr, "--json"];
        arguments.extend(flags);
        let output = program(clock).args(&arguments).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let founded: Founded = serde_json::from_slice(&output.stdout).unwrap();
        let access: Access = serde_json::from_slice(&fs::read(&founded.admin_file).unwrap()).unwrap();
        let admin = access.credentials.map_or_else(Security::plain, |credentials| Security::new(credentials).unwrap());
        let store = flags.iter().position(|flag| *flag == "--store").map(|at| flags[at..].to_vec()).unwrap_or_default();
        let mut flags = if admin.is_plain() { vec!["--insecure"] } else { Vec::new() };
        flags.extend(&store);
        let manager = start_at(clock, "m1", &state, &addr, &flags);
        let store = store.into_iter().map(str::to_owned).collect();
        Self { dir, founded, admin, managers: vec![manager], store }
    }

    /// Starts a manager that joins.
    pub fn join(&mut self, name: &str) {
        let (dir, addr) = (self.dir.path().join(name), addr());
        self.join_at(name, &dir, &addr);
    }

    /// One whose clock differs from that of the machine.
    pub fn join_with_clock(&mut self, clock: &str, name: &str) {
        let (dir, addr) = (self.dir.path().join(name), addr());
        self.join_as(clock, name, &dir, &addr);
    }

    pub fn join_at(&mut self, name: &str, dir: &Path, addr: &str) {
        self.join_as("", name, dir, addr);
    }

    fn join_as(&mut self, clock: &str, name: &str, dir: &Path, addr: &str) {
        let token = self.dir.path().join("token");
        std::fs::write(&token, &self.founded.manager_token).unwrap();
        let all: Vec<&str> = self.managers.iter().map(|manager| manager.addr.as_str()).collect();
        let all = all.join(",");
        let mut arguments = vec!["--name", name, "--join", &all];
        if self.admin.is_plain() {
            arguments.push("--insecure");
        } else {
            arguments.extend(["--token-file", token.to_str().unwrap()]);
        }
        arguments.extend(self.store.iter().map(String::as_str));
        self.managers.push(start_at(clock, name, dir, addr, &arguments));
    }

    pub fn manager(&mut self, name: &str) -> &mut Manager {
        self.managers.iter_mut().rev().find(|manager| manager.name == name).unwrap()
    }

    pub fn addrs(&self) -> Vec<String> {
        self.managers.iter().map(|manager| manager.addr.clone()).collect()
    }

    /// A connection to any of the managers.
    pub async fn connect(&self, security: &Security) -> Result<Channel, ApiError> {
        connect(&self.addrs(), security).await
    }

    pub async fn control(&self, security: &Security) -> Result<ControlClient<Channel>, ApiError> {
        control(&self.addrs(), security).await
    }

    pub async fn status(&self) -> Result<v1::ClusterResponse, ApiError> {
        Ok(self.control(&self.admin).await?.cluster(v1::ClusterRequest {}).await?.into_inner())
    }

    /// Waits until exactly these are managers, vote, are reachable, and one of them leads.
    pub async fn settled(&self, voters: &[&str]) -> v1::ClusterResponse {
        let what = format!("{voters:?} vote");
        until(&what, || async {
            let status = self.status().await.ok().filter(|status| !status.leader.is_empty())?;
            let voting = status.managers.iter().filter(|manager| manager.voter);
            let mut names: Vec<&str> = voting.clone().map(|manager| manager.name.as_str()).collect();
            names.sort_unstable();
            let alone = names == voters && status.managers.len() == voters.len();
            (alone && voting.clone().all(|manager| manager.reachable)).then(|| status.clone())
        })
        .await
    }

    /// Waits until all three are there and have all that the leader has.
    pub async fn whole(&self) -> v1::ClusterResponse {
        until("all have all", || async {
            let status = self.status().await.ok().filter(|status| status.answered_by == status.leader)?;
            let has_all = |manager: &v1::ManagerStatus| manager.voter && manager.reachable && manager.matched >= status.committed;
            (status.managers.len() == 3 && status.managers.iter().all(has_all)).then(|| status.clone())
        })
        .await
    }

    /// Has a second manager join, m2, and takes the vote of the one that does not lead. Their names, the leader's first.
    pub async fn join_without_vote(&mut self) -> [String; 2] {
        self.join("m2");
        let leader = self.lead_alone(&["m1", "m2"]).await;
        let other = if leader == "m1" { "m2" } else { "m1" };
        [leader, other.to_owned()]
    }

    /// Waits until these are the managers, and takes the votes of those that do not lead: the other leads on, whatever stands still for a
    /// while. Its name.
    pub async fn lead_alone(&self, names: &[&str]) -> String {
        let leader = self.settled(names).await.leader;
        until("one votes alone", || async {
            let status = self.status().await.ok()?;
            let as_asked = |manager: &v1::ManagerStatus| manager.reachable && manager.voter == (manager.name == leader);
            if status.leader == leader && status.managers.len() == names.len() && status.managers.iter().all(as_asked) {
                return Some(());
            }
            for other in status.managers.iter().filter(|manager| manager.voter && manager.name != leader) {
                let (manager, role) = (other.name.clone(), v1::ManagerRole::Standby.into());
                let request = v1::UpdateManagerRequest { manager, role, addr: String::new() };
                self.control(&self.admin).await.ok()?.update_manager(request).await.ok()?;
            }
            None
        })
        .await;
        leader
    }

    /// Writes a network called `name`, trying on while there is no leader; the revision since which it is there.
    pub async fn write(&self, name: &str) -> u64 {
        until(&format!("{name} is written"), || async { self.try_write(&self.admin, name).await.ok() }).await
    }

    pub async fn try_write(&self, security: &Security, name: &str) -> Result<u64, ApiError> {
        let network = v1::NetworkSpec { name: name.to_owned(), ..v1::NetworkSpec::default() };
        let spec = v1::Spec { kind: Some(v1::spec::Kind::Network(network)), expected_version: 0 };
        let answer = self.control(security).await?.apply(v1::ApplyRequest { specs: vec![spec] }).await?;
        Ok(answer.into_inner().revision)
    }

    pub async fn list(&self, security: &Security, kind: v1::Kind) -> Result<Vec<v1::Object>, ApiError> {
        led(async || self.list_once(security, kind).await).await
    }

    async fn list_once(&self, security: &Security, kind: v1::Kind) -> Result<Vec<v1::Object>, ApiError> {
        let request = v1::ListRequest { kind: kind.into(), ..v1::ListRequest::default() };
        Ok(self.control(security).await?.list(request).await?.into_inner().objects)
    }

    pub async fn networks(&self) -> usize {
        self.list(&self.admin, v1::Kind::Network).await.unwrap().len()
    }
}

pub async fn user(cluster: &Cluster, name: &str, role: v1::UserRole) -> Security {
    let signing = SigningRequest::new().unwrap();
    let request = v1::CreateUserRequest { name: name.to_owned(), role: role.into(), ttl_ms: 0, signing_request: signing.request };
    let answer = led(async || create_user(cluster, request.clone()).await).await.unwrap();
    Security::new(Credentials::new(answer.credentials.unwrap(), signing.key)).unwrap()
}

pub async fn token(cluster: &Cluster, name: &str, role: v1::UserRole) -> String {
    let request = v1::CreateUserRequest { name: name.to_owned(), role: role.into(), ..v1::CreateUserRequest::default() };
    led(async || create_user(cluster, request.clone()).await).await.unwrap().token
}

async fn create_user(cluster: &Cluster, request: v1::CreateUserRequest) -> Result<v1::CreateUserResponse, ApiError> {
    Ok(cluster.control(&cluster.admin).await?.create_user(request).await?.into_inner())
}

/// Asks again for as long as it was not done for want of a leader.
pub async fn led<T>(ask: impl AsyncFn() -> Result<T, ApiError>) -> Result<T, ApiError> {
    let undone = ["the managers have no leader", "the request was not carried out"];
    let until = Instant::now() + DEADLINE;
    loop {
        match ask().await {
            Err(error) if undone.iter().any(|why| error.message.contains(why)) && Instant::now() < until => {}
            answer => return answer,
        }
    }
}

/// A connection to any of these managers.
pub async fn connect(addrs: &[String], security: &Security) -> Result<Channel, ApiError> {
    patient(async || client::connect(addrs, security).await).await
}

pub async fn control(addrs: &[String], security: &Security) -> Result<ControlClient<Channel>, ApiError> {
    patient(async || client::control(addrs, security).await).await
}

/// Joins the cluster of these managers, as an agent when there is no `addr`.
pub async fn join(addrs: &[String], token: &JoinToken, name: &str, addr: &str) -> Result<Joined, ApiError> {
    patient(async || led(async || client::join(addrs, Some(token), name, addr).await).await).await
}

/// Connects as often as it takes: on a busy machine a handshake may take longer than a client waits for it.
async fn patient<T>(connect: impl AsyncFn() -> Result<T, ApiError>) -> Result<T, ApiError> {
    let until = Instant::now() + DEADLINE;
    loop {
        match connect().await {
            Err(error) if error.message.contains("deadline has elapsed") && Instant::now() < until => {}
            connected => return connected,
        }
    }
}

/// A call of the REST interface: status and body.
pub async fn rest(channel: &Channel, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, String) {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
    rest_with(channel, method, path, &headers, body).await
}

/// The same with any headers.
pub async fn rest_with(channel: &Channel, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let mut request = http::Request::builder().method(method).uri(format!("http://manager{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = tonic::body::Body::new(http_body_util::Full::new(bytes::Bytes::from(body.to_owned())));
    let answer = channel.clone().ready().await.unwrap().call(request.body(body).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let bytes = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}
