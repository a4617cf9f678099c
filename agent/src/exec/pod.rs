//! The steps of one task, as `core::task` asks for them. Each may be repeated, also by an agent that was started anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rcluster_api::container::{MountSpec, PullPolicy};
use rcluster_api::object::Task;
use rcluster_api::spec::ContainerSpec;
use rcluster_api::wire::v1::{AttachNetwork, AttachRequest};
use rcluster_base::clock::unix_ms;
use rcluster_base::ledger::{self, LedgerError};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::netd_client::NetdError;
use super::runtime_cli::{MonitorCall, RuntimeError, read_exit};
use super::{Images, Tools, process};
use crate::core::bundle::{self, HostDevice, ImageConfig};
use crate::core::logging;
use crate::core::task::{ContainerRecord, Exit, Network, Phase, Record};
use crate::core::user::{Identity, identify};
use crate::data::{self, Bytes};
use crate::host;
use crate::image::ImageError;
use crate::image::mount::{Overlay, remove, unmount_all};
use crate::image::pull::Progress;
use crate::image::root::Root;
use crate::place::ContainerPlaces;

/// Why a step could not be done.
#[derive(Debug, Error)]
pub enum StepError {
    /// The task can never run here as it is.
    #[error("{0}")]
    Rejected(String),
    #[error("{0}")]
    Image(#[from] ImageError),
    #[error("pull image {image:?}")]
    Pull { image: String, source: ImageError },
    #[error("{what} of container {container}")]
    Io { what: &'static str, container: String, source: io::Error },
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Netd(#[from] NetdError),
    #[error("keep the record of the task")]
    Record(#[from] LedgerError),
}

impl StepError {
    /// Whether the task could never run on this node, however often it is tried.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Rejected(_) => true,
            Self::Image(error) | Self::Pull { source: error, .. } => error.is_final(),
            Self::Io { .. } | Self::Runtime(_) | Self::Netd(_) | Self::Record(_) => false,
        }
    }
}

/// How long a container that was sent SIGKILL may take to be gone before its monitor is killed too.
const KILLED: Duration = Duration::from_secs(5);

/// Sees to it that the node has the images, one after the other: their layers come in parallel. May be dropped at any point.
pub async fn pull(tools: &Tools, task: &Task, told: &watch::Sender<Progress>) -> Result<(), StepError> {
    let mut seen = BTreeSet::new();
    for spec in &task.template.containers {
        let policy = spec.pull.unwrap_or(tools.images.policy);
        // Containers of one image may want it in different ways; each way is gone once.
        if !seen.insert((&spec.image, policy.as_str())) {
            continue;
        }
        tools.images.puller.ensure(&spec.image, policy, told).await.map_err(|error| match error {
            ImageError::Absent { name, there } => absent(tools, spec, &name, &there),
            source => StepError::Pull { image: spec.image.clone(), source },
        })?;
    }
    Ok(())
}

fn absent(tools: &Tools, spec: &ContainerSpec, name: &str, there: &str) -> StepError {
    let hint = match (spec.pull, tools.images.policy) {
        (Some(PullPolicy::Never), _) => "its service does not want it pulled (pull: never): load it with `rclusterctl image load FILE`",
        (None, PullPolicy::Never) => "pulling is off on this node (--pull never): load it with `rcluster-agent image load FILE`",
        (Some(PullPolicy::Missing | PullPolicy::Always), _) | (None, PullPolicy::Missing | PullPolicy::Always) => {
            "it was removed after it had been pulled"
        }
    };
    StepError::Rejected(format!("image {name:?} is not on node {}; images there: {there}; {hint}", tools.node))
}

/// Root file systems, network, the pod's files, secrets and configs.
pub async fn prepare(tools: &Arc<Tools>, task: &Arc<Task>, data: &Bytes, record: &mut Record) -> Result<(), StepError> {
    check_names(record)?;
    check_host(tools, task)?;
    let in_turn = async {
        let _turn = tools.preparing.acquire().await.expect("it is never closed");
        roots(tools, task).await
    };
    // The network is not part of the turn: those who wait for netd hold up nobody else.
    let (roots, network) = tokio::join!(in_turn, attach(tools, task));
    let images = roots?;
    record.network = network?;
    write_files(tools, task, &record.network)?;
    let names: Vec<String> = record.containers.iter().map(|container| container.name.clone()).collect();
    let written = data::write(&tools.places.of_task(&task.id).data(), &task.template, &names, data);
    written.map_err(|source| StepError::Io { what: "write the secrets and configs", container: task.name.clone(), source })?;
    for ((container, image), spec) in record.containers.iter_mut().zip(&images).zip(&task.template.containers) {
        container.stop_signal = bundle::stop_signal(spec, image);
        container.healthcheck = bundle::healthcheck(spec, image);
    }
    record.prepared = true;
    Ok(())
}

/// What the task asks of the host is granted by the node's policy, and there. The scheduler has looked too, but at what it knew then.
fn check_host(tools: &Tools, task: &Task) -> Result<(), StepError> {
    if let Some(refusal) = tools.policy.refusal(&task.template) {
        let node = &tools.node;
        return Err(StepError::Rejected(format!(
            "node {node} does not {refusal}: start its agent with the flag that grants it (rcluster-agent run --help)"
        )));
    }
    for (spec, container) in task.template.containers.iter().zip(bundle_names(task)) {
        let rejected = |what: &str, why: String| StepError::Rejected(format!("container {container}: {what}: {why}"));
        if spec.init && !task.template.runtime.is_empty() {
            return Err(rejected("init", format!("the runtime {} has none: leave out init or runtime", task.template.runtime)));
        }
        for mount in &spec.mounts {
            match mount {
                MountSpec::Bind { source, .. } => drop(bind_source(tools, source).map_err(|why| rejected(source, why))?),
                MountSpec::Volume { source, .. } => {
                    let dir = tools.places.volumes().join(source);
                    let made = fs::create_dir_all(&dir);
                    made.map_err(|source| StepError::Io { what: "make a volume", container: container.clone(), source })?;
                }
                MountSpec::Tmpfs { .. } => {}
            }
        }
        for device in &spec.devices {
            match host::device(Path::new(&device.source)) {
                Ok(Some(_)) => {}
                Ok(None) => return Err(rejected(&device.source, "it is no device".to_owned())),
                Err(error) => return Err(rejected(&device.source, format!("node {} has no such device: {error}", tools.node))),
            }
        }
    }
    Ok(())
}

/// Where a bind mount's source really is. A link in a directory that containers may write must not lead out of what the policy allows.
fn bind_source(tools: &Tools, source: &str) -> Result<PathBuf, String> {
    let node = &tools.node;
    let real = fs::canonicalize(source).map_err(|error| format!("it cannot be mounted from node {node}: {error}"))?;
    // A directory that is not there allows nothing.
    let mut allowed = tools.policy.binds.iter().filter_map(|allowed| fs::canonicalize(allowed).ok());
    if allowed.any(|allowed| real.starts_with(allowed)) {
        Ok(real)
    } else {
        Err(format!("it leads to {}, which node {node} does not allow to be mounted", real.display()))
    }
}

/// Each source of a bind mount with where it really is, looked at right before it is mounted.
fn bind_sources(tools: &Tools, spec: &ContainerSpec) -> Result<BTreeMap<String, PathBuf>, String> {
    let sources = spec.mounts.iter().filter_map(|mount| match mount {
        MountSpec::Bind { source, .. } => Some(source),
        MountSpec::Volume { .. } | MountSpec::Tmpfs { .. } => None,
    });
    sources.map(|source| bind_source(tools, source).map(|real| (source.clone(), real)).map_err(|why| format!("{source}: {why}"))).collect()
}

fn bundle_names(task: &Task) -> impl Iterator<Item = String> {
    task.template.containers.iter().map(|spec| crate::core::task::container_name(&spec.name, &task.service))
}

/// Creates one container; `save` keeps the record on disk. What an agent that was killed here may have left is removed first.
pub async fn create(
    tools: &Tools,
    task: &Task,
    record: &mut Record,
    index: usize,
    save: impl Fn(&Record) -> Result<(), LedgerError>,
) -> Result<(), StepError> {
    let places = tools.places.of_task(&task.id);
    let container = &record.containers[index];
    let place = places.of_container(&container.name);
    if container.phase == Phase::Creating {
        tools.runtime(task).delete(&container.id).await?;
    }
    write_config(tools, task, record, index, &place)?;
    let failed = |what| io_error(what, &record.containers[index]);
    remove_file(&place.exit_file()).map_err(failed("remove the old exit file"))?;
    fs::create_dir_all(&places.logs).map_err(failed("make the directory of logs"))?;
    record.containers[index].phase = Phase::Creating;
    save(record)?;
    let container = &record.containers[index];
    let spec = &task.template.containers[index];
    // A terminal takes input by itself.
    let stdin = (spec.stdin && !spec.tty).then(|| place.stdin());
    let tty = spec.tty.then(|| place.tty_socket());
    let output = logging::plan(task, &container.name, spec.logging.as_ref());
    let created = tools
        .runtime(task)
        .monitor(&MonitorCall {
            id: &container.id,
            bundle: &place.bundle,
            log: &place.log,
            exit_file: &place.exit_file(),
            socket: &place.monitor_socket(),
            errors: &place.monitor_errors(),
            output: &output,
            stdin: stdin.as_deref(),
            tty: tty.as_deref(),
        })
        .await?;
    let failed = |what| io_error(what, &record.containers[index]);
    let monitor = process::look(created.monitor_pid).map_err(failed("look at the monitor"))?;
    let process = process::look(created.pid).map_err(failed("look at the process"))?;
    let container = &mut record.containers[index];
    (container.process, container.monitor, container.phase) = (process, monitor, Phase::Created);
    save(record)?;
    Ok(())
}

/// Starts one created container; `adopted` when an agent before this one may have started it already.
pub async fn start(tools: &Tools, task: &Task, record: &mut Record, index: usize, adopted: bool) -> Result<(), StepError> {
    let container = &mut record.containers[index];
    // It may have been started, and have ended since; how, watching tells.
    let exit_file = tools.places.of_task(&task.id).of_container(&container.name).exit_file();
    let was_started = adopted && (exit_file.exists() || tools.runtime(task).is_running(&container.id).await?);
    if !was_started {
        tools.runtime(task).start(&container.id).await?;
    }
    container.phase = Phase::Started;
    container.started_at_ms = unix_ms();
    Ok(())
}

/// Waits for the end of one container that was started.
pub async fn ended(tools: &Tools, task: &Task, container: &ContainerRecord) -> Exit {
    let exit_file = tools.places.of_task(&task.id).of_container(&container.name).exit_file();
    let watched = match container.monitor {
        Some(monitor) => process::ended(monitor).await,
        None => Ok(()),
    };
    let problem = match watched.and_then(|()| read_exit(&exit_file)) {
        Ok(Some(exit)) => return exit,
        Ok(None) => "its monitor was killed".to_owned(),
        Err(error) => format!("its end cannot be read: {error}"),
    };
    // Nobody holds the container any more: what is left of it must not run on unseen.
    if let Err(error) = tools.runtime(task).delete(&container.id).await {
        warn!(container = container.id, %error, "cannot remove what is left of a container without a monitor");
    }
    Exit { problem: Some(problem), ..Exit::default() }
}

/// Stops every container that may run, all at once, and fills in how they ended.
pub async fn stop(tools: &Tools, task: &Task, record: &mut Record) {
    let grace = task.template.stop_grace.duration();
    let stopping = record.containers.iter().map(|container| async {
        match container.phase {
            Phase::Absent | Phase::Ended => None,
            Phase::Creating | Phase::Created => Some(remove_unstarted(tools, task, container).await),
            Phase::Started => Some(stop_one(tools, task, container, grace).await),
        }
    });
    let exits = join_all(stopping).await;
    for (container, exit) in record.containers.iter_mut().zip(exits) {
        if let Some(exit) = exit {
            container.phase = Phase::Ended;
            container.exit = Some(exit);
        }
    }
}

/// Gives the pod's network back; what is under way to and from it is still delivered for `linger`.
pub async fn detach(tools: &Tools, task: &Task, linger: Duration) -> Result<(), NetdError> {
    if task.networks.is_empty() { Ok(()) } else { tools.netd.detach(&task.id, linger).await }
}

/// Removes what is left of the task on the node, but its record and logs. Every part is tried; what failed is told together.
pub async fn clean(tools: &Arc<Tools>, task: &Arc<Task>, record: &Record) -> Result<(), String> {
    let mut problems = Vec::new();
    for container in record.containers.iter().filter(|container| container.phase != Phase::Absent) {
        if let Err(error) = tools.runtime(task).delete(&container.id).await {
            problems.push(error.to_string());
        }
    }
    let attached = !record.prepared || !record.network.netns_path.is_empty();
    if attached && let Err(error) = detach(tools, task, Duration::ZERO).await {
        problems.push(error.to_string());
    }
    let names: Vec<String> = record.containers.iter().map(|container| container.name.clone()).collect();
    let (tools, task) = (Arc::clone(tools), Arc::clone(task));
    let swept = spawn_blocking(move || sweep(&tools, &task, &names)).await;
    problems.extend(swept.unwrap_or_else(|error| vec![error.to_string()]));
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

fn sweep(tools: &Tools, task: &Task, names: &[String]) -> Vec<String> {
    let places = tools.places.of_task(&task.id);
    let mut problems = Vec::new();
    let mut note = |what: &str, path: &Path, done: io::Result<()>| {
        if let Err(error) = done {
            problems.push(format!("{what} {}: {error}", path.display()));
        }
    };
    for name in names {
        let place = places.of_container(name);
        let unmounted = unmount_all(&place.rootfs());
        let mounted = unmounted.is_err();
        note("unmount", &place.rootfs(), unmounted);
        // Never through a mount that stands: that would empty what is mounted.
        if !mounted {
            note("remove", &place.bundle, remove(&place.bundle));
        }
    }
    note("remove", &places.writes, remove(&places.writes));
    note("remove", &places.files(), remove(&places.files()));
    note("remove", &places.data(), data::drop_files(&places.data()));
    if let Err(error) = host::remove_cgroup(&format!("{}/{}", tools.cgroup_parent, task.id)) {
        problems.push(format!("{error:#}"));
    }
    problems
}

/// Container names become names of files and cgroups.
fn check_names(record: &Record) -> Result<(), StepError> {
    let mut seen = BTreeSet::new();
    for container in &record.containers {
        let name = &container.name;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(StepError::Rejected(format!(
                "container name {name:?}: letters, digits, '-', '_' and '.' only, 64 at most, no '.' first"
            )));
        }
        if !seen.insert(name) {
            return Err(StepError::Rejected(format!("two containers of the task are named {name:?}")));
        }
    }
    if record.containers.is_empty() { Err(StepError::Rejected("the task has no containers".into())) } else { Ok(()) }
}

async fn roots(tools: &Arc<Tools>, task: &Arc<Task>) -> Result<Vec<ImageConfig>, StepError> {
    let (tools, task) = (Arc::clone(tools), Arc::clone(task));
    let work = spawn_blocking(move || {
        let places = tools.places.of_task(&task.id);
        let roots = task.template.containers.iter().map(|spec| {
            let name = crate::core::task::container_name(&spec.name, &task.service);
            root(&tools, &name, spec, &places.of_container(&name))
        });
        roots.collect()
    });
    work.await.unwrap_or_else(|error| Err(StepError::Rejected(format!("preparing the image failed: {error}"))))
}

fn root(tools: &Tools, container: &str, spec: &ContainerSpec, place: &ContainerPlaces) -> Result<ImageConfig, StepError> {
    let Images { store, .. } = &tools.images;
    // Held until it is mounted; from then on the mount keeps it.
    let (found, _lease) = store.hold(&spec.image).map_err(|error| match error {
        ImageError::Absent { name, there } => absent(tools, spec, &name, &there),
        other => other.into(),
    })?;
    let overlay = Overlay {
        layers: store.layers(&found)?,
        upper: place.writes.join("upper"),
        work: place.writes.join("work"),
        target: place.rootfs(),
    };
    let failed = |what| move |source| StepError::Io { what, container: container.to_owned(), source };
    overlay.mount().map_err(failed("mount the root file system"))?;
    ledger::write(&place.image_file(), &found.config)?;
    Ok(found.config)
}

async fn attach(tools: &Tools, task: &Task) -> Result<Network, StepError> {
    if task.networks.is_empty() {
        return Ok(Network::default());
    }
    let networks =
        task.networks.iter().map(|network| AttachNetwork { network_id: network.network_id.to_string(), ip: network.ip.to_string() });
    let dns = task.template.dns.iter().map(ToString::to_string);
    let request = AttachRequest { task_id: task.id.to_string(), networks: networks.collect(), dns: dns.collect() };
    let answer = tools.netd.attach(&request).await?;
    Ok(Network { netns_path: answer.netns_path, dns: answer.dns, search: answer.search })
}

fn write_files(tools: &Tools, task: &Task, network: &Network) -> Result<(), StepError> {
    let dir = tools.places.of_task(&task.id).files();
    let files = [
        ("hosts", bundle::hosts_file(task)),
        ("hostname", format!("{}\n", bundle::hostname(&task.name))),
        ("resolv.conf", bundle::resolv_file(task, network)),
    ];
    let written = fs::create_dir_all(&dir).and_then(|()| files.iter().try_for_each(|(name, text)| fs::write(dir.join(name), text)));
    written.map_err(|source| StepError::Io { what: "write /etc", container: task.name.clone(), source })
}

fn write_config(tools: &Tools, task: &Task, record: &Record, index: usize, place: &ContainerPlaces) -> Result<(), StepError> {
    let container = &record.containers[index];
    let failed = |what| io_error(what, container);
    let spec = &task.template.containers[index];
    let image: ImageConfig = ledger::read(&place.image_file())?
        .ok_or_else(|| StepError::Rejected(format!("container {}: its prepared image is gone from the run directory", container.name)))?;
    let root = Root::open(&place.rootfs()).map_err(failed("open the root file system"))?;
    let user = if spec.user.is_empty() { &image.user } else { &spec.user };
    let identity = identity(&root, user).map_err(|why| StepError::Rejected(format!("container {}: {why}", container.name)))?;
    let rejected = |why| StepError::Rejected(format!("container {}: {why}", container.name));
    let workdir = bundle::workdir(spec, &image).map_err(rejected)?;
    root.make_dir(Path::new(&workdir)).map_err(failed("make the working directory"))?;
    let image_volumes = image_volumes(&root, &image).map_err(failed("make the image's volumes"))?;
    let first = record.containers.first().filter(|_| index > 0);
    let devices = devices(spec).map_err(failed("look at the host's devices"))?;
    let config = bundle::config_json(&bundle::Input {
        task,
        spec,
        name: &container.name,
        image: &image,
        identity: &identity,
        network: &record.network,
        pod_pid: first.and_then(|first| first.process).map(|process| process.pid),
        node: &tools.node,
        cgroup_parent: &tools.cgroup_parent,
        rootfs: &place.rootfs(),
        files: &tools.places.of_task(&task.id).files(),
        data: &tools.places.of_task(&task.id).data().join(&container.name),
        volumes: &tools.places.volumes(),
        binds: &bind_sources(tools, spec).map_err(rejected)?,
        image_volumes: &image_volumes,
        devices: &devices,
    });
    fs::write(place.config_file(), config.map_err(rejected)?).map_err(failed("write the configuration"))
}

/// The devices that the spec names, links followed, and for a privileged container all others.
fn devices(spec: &ContainerSpec) -> io::Result<Vec<HostDevice>> {
    let named: Vec<_> = spec.devices.iter().map(|device| host::device(Path::new(&device.source))).collect::<io::Result<_>>()?;
    let mut found: Vec<HostDevice> = named.into_iter().flatten().collect();
    if spec.privileged {
        found.extend(host::devices()?);
    }
    Ok(found)
}

/// The image's volumes as directories of the container's own file system, so they hold what the image put there. The paths on the
/// node are resolved inside the image: a link in it leads nowhere else.
fn image_volumes(root: &Root, image: &ImageConfig) -> io::Result<Vec<(String, PathBuf)>> {
    let volumes = image.volumes.iter().map(|volume| {
        let dir = root.make_dir(Path::new(volume)).map_err(|error| io::Error::new(error.kind(), format!("{volume}: {error}")))?;
        Ok((volume.clone(), fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?))
    });
    volumes.collect()
}

fn identity(root: &Root, user: &str) -> Result<Identity, String> {
    let read = |path: &str| {
        let text = root.read_text(Path::new(path)).map_err(|error| format!("the image's /{path}: {error}"))?;
        Ok::<_, String>(text.unwrap_or_default())
    };
    identify(user, &read("etc/passwd")?, &read("etc/group")?)
}

async fn remove_unstarted(tools: &Tools, task: &Task, container: &ContainerRecord) -> Exit {
    if let Err(error) = tools.runtime(task).delete(&container.id).await {
        warn!(container = container.id, %error, "cannot remove a container that was not started");
    }
    Exit { problem: Some("it was not started".into()), ..Exit::default() }
}

async fn stop_one(tools: &Tools, task: &Task, container: &ContainerRecord, grace: Duration) -> Exit {
    let is_paused = tools.places.of_task(&task.id).of_container(&container.name).pause().is_set();
    if is_paused && let Err(error) = tools.runtime(task).resume(&container.id).await {
        warn!(container = container.id, %error, "cannot let a paused container go on");
    }
    let mut exit = std::pin::pin!(ended(tools, task, container));
    let signal = if grace.is_zero() { "SIGKILL" } else { &container.stop_signal };
    if let Err(error) = tools.runtime(task).kill(&container.id, signal).await {
        // It may have ended meanwhile; the wait below tells.
        debug!(container = container.id, %error, "cannot send the stop signal");
    }
    if let Ok(exit) = timeout(grace, &mut exit).await {
        return exit;
    }
    if let Err(error) = tools.runtime(task).kill(&container.id, "SIGKILL").await {
        debug!(container = container.id, %error, "cannot send SIGKILL");
    }
    if let Ok(exit) = timeout(KILLED, &mut exit).await {
        return exit;
    }
    warn!(container = container.id, "it outlived SIGKILL or its monitor does not see its end: its monitor is killed and it is removed");
    loop {
        for process in [container.process, container.monitor].into_iter().flatten() {
            if let Err(error) = process::kill(process) {
                warn!(container = container.id, pid = process.pid, %error, "cannot kill");
            }
        }
        if let Err(error) = tools.runtime(task).delete(&container.id).await {
            warn!(container = container.id, %error, "cannot remove");
        }
        tokio::select! {
            exit = &mut exit => return exit,
            () = sleep(KILLED) => {}
        }
    }
}

fn io_error(what: &'static str, container: &ContainerRecord) -> impl FnOnce(io::Error) -> StepError + use<> {
    let container = container.name.clone();
    move |source| StepError::Io { what, container, source }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
