//! netd: see the crate's documentation.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rcluster_api::wire::v1::netd_server::NetdServer;
use rcluster_base::telemetry;
use rcluster_netd::config::Config;
use rcluster_netd::core::links::Underlay;
use rcluster_netd::dns::forward::Forwarder;
use rcluster_netd::dns::hold::{self, Keeping};
use rcluster_netd::dns::{Shared, server};
use rcluster_netd::drive::{Command, Owner, Parts, in_full};
use rcluster_netd::kernel::linux::{Linux, ResolverSockets};
use rcluster_netd::kernel::watch::Watch;
use rcluster_netd::kernel::{Kernel, KernelError, echo, host};
use rcluster_netd::service::{Service, listen};
use rcluster_netd::store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{error, info, warn};

/// Commands that may wait for the owner.
const COMMANDS_MAX: usize = 64;

/// The owner's sense of time.
const TICK: Duration = Duration::from_secs(1);

/// How often the owner is asked whose paths are to be looked at.
const PATHS: Duration = Duration::from_secs(5);

/// How often is seen to it that the resolver's sockets are kept. That nobody does is looked for and not waited for: a keeper that ends as soon
/// as it is started is not started for ever, and only a netd that is started anew within this time misses it.
const KEEPER: Duration = Duration::from_secs(5);

/// So often who keeps them is asked for them, a second each.
const KEEPER_TRIES: u32 = 3;

/// One who did not answer ends soon when it is not found any more; so long is waited for what it has.
const BIND_TRIES: u32 = 40;

/// Tried again and again, for there is nothing to wait for: the kernel tells nobody that a port is free, and who has it, whose end could be
/// waited for, is not known. It has not answered, and its listener bears the process id of the netd that made it.
const BIND_TRY_EVERY: Duration = Duration::from_millis(50);

/// Open files: three for each foreign question, one for each connection, two for each published port, two more where it is kept of IPv6, too,
/// two for each of the host's own connections to it, and what the kernel is spoken to with.
const OPEN_FILES: u64 = 16_384;

/// A picture of a very large cluster.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

fn main() -> ExitCode {
    if let [_, verb, path] = &env::args_os().collect::<Vec<_>>()[..]
        && verb == hold::VERB
    {
        return ExitCode::from(u8::from(hold::keep(Path::new(path)).is_err()));
    }
    let config = Config::parse();
    telemetry::start(config.log_format);
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("netd must run as root (CAP_NET_ADMIN and CAP_SYS_ADMIN): it makes network namespaces and devices");
    }
    for dir in [&config.state_dir, &config.run_dir] {
        fs::create_dir_all(dir).with_context(|| format!("make the directory {}", dir.display()))?;
    }
    let run_dir = config.run_dir.canonicalize().with_context(|| format!("find the directory {}", config.run_dir.display()))?;
    let _lock = lock(&run_dir)?;
    allow_open_files().context("raise how many files may be open")?;

    let (mut kernel, adopted) = Linux::start(&run_dir, config.addr).context("prepare the kernel")?;
    let forwarding = host::forwarding(&run_dir, config.no_forwarding).context("find out who has this host forward packets")?;
    let forwarding6 = host::forwarding6(&run_dir, config.no_forwarding).context("find out who has this host forward packets of IPv6")?;
    let underlay = Underlay {
        addr: config.addr,
        overlay_mtu: kernel.overlay_mtu()?,
        forwarding,
        forwarding6,
        turned_on6: host::turned_on6(&run_dir),
        six: kernel.has_six(),
    };
    let shared = Arc::new(Shared::default());
    let store = Store::start(&config.state_dir, &run_dir).context("start the thread that writes to the disk")?;
    let owner = Owner::start(Parts { kernel, store, shared: shared.clone(), pins: run_dir.join("netns"), underlay, adopted })?;
    let (sockets, keeping) = resolver_sockets(owner.kernel(), &run_dir.join("dns.hold"), adopted)?;
    let knock = owner.kernel().resolver_client().context("open a socket to the resolver")?;
    let forwarder = Forwarder::start(config.resolv_conf.clone()).context("start the thread that asks other resolvers")?;
    let answering = server::serve_udp(sockets.udp, shared.clone(), forwarder.clone()).context("start the resolver's thread")?;

    let watch = owner.kernel().watch().context("listen for what others change")?;

    let (commands, queue) = mpsc::channel(COMMANDS_MAX);
    let told = commands.downgrade();
    let listener = move || match listen_for_others(watch, &told) {
        Ok(()) => {}
        Err(error) => warn!(error = in_full(&error), "what others change is found by the regular check alone from here on"),
    };
    thread::Builder::new().name("watch".to_owned()).spawn(listener).context("start the thread that listens for what others change")?;
    let owner = thread::Builder::new().name("dataplane".to_owned()).spawn(move || owner.run(queue)).context("start the owner's thread")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.spawn(have_kept(keeping));
    let dns = server::serve_tcp(sockets.tcp, shared, forwarder);
    let served = runtime.block_on(serve(&run_dir.join("netd.sock"), commands, dns));
    // Nobody waits for a look at paths.
    runtime.shutdown_background();
    answering.end(&knock);
    match owner.join() {
        Ok(ended) => ended.context("give the dataplane's owner a sense of time")?,
        Err(_) => bail!("the dataplane's owner panicked"),
    }
    info!("stopped; the dataplane stays as it is");
    served
}

/// Has the owner look when someone else has changed something, and waits for the look; ends when the owner does.
fn listen_for_others(mut watch: Watch, owner: &mpsc::WeakSender<Command>) -> Result<(), KernelError> {
    loop {
        let news = watch.wait()?;
        let Some(commands) = owner.upgrade() else { return Ok(()) };
        let (done, looked) = oneshot::channel();
        let sent = commands.blocking_send(Command::Look { news, done });
        drop(commands);
        if sent.is_err() || looked.blocking_recv().is_err() {
            return Ok(());
        }
    }
}

/// The resolver's sockets: those that were kept while there was no netd, with what was asked meanwhile, or new ones. Without a keeper netd
/// serves as well, until it ends.
fn resolver_sockets(kernel: &Linux, keeper: &Path, adopted: bool) -> Result<(ResolverSockets, Keeping)> {
    // Those of a router namespace that is gone are of no use.
    if adopted {
        for _ in 0..KEEPER_TRIES {
            match hold::take(keeper) {
                Ok(Some((sockets, kept))) => {
                    let keeping = Keeping::new(keeper, &sockets, Some(kept)).context("copy the resolver's sockets")?;
                    return Ok((sockets, keeping));
                }
                Ok(None) => break,
                Err(error) => warn!(keeper = %keeper.display(), %error, "take the resolver's sockets from who keeps them"),
            }
        }
    }
    hold::dismiss(keeper).with_context(|| format!("remove {}", keeper.display()))?;
    let sockets = bind(kernel)?;
    let mut keeping = Keeping::new(keeper, &sockets, None).context("copy the resolver's sockets")?;
    renew(&mut keeping);
    Ok((sockets, keeping))
}

/// New sockets; a keeper that did not answer may have the old ones for a moment more.
fn bind(kernel: &Linux) -> Result<ResolverSockets> {
    let mut tries = 1;
    loop {
        match kernel.resolver_sockets() {
            Err(error) if error.errno() == Some(Errno::EADDRINUSE) && tries < BIND_TRIES => {
                tries += 1;
                thread::sleep(BIND_TRY_EVERY);
            }
            bound => return bound.context("open the resolver's sockets; if they are in use, by a process `rcluster-netd hold`, end it"),
        }
    }
}

/// Has the resolver's sockets kept as long as the runtime lives.
async fn have_kept(mut keeping: Keeping) {
    let mut looks = tokio::time::interval(KEEPER);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        renew(&mut keeping);
    }
}

fn renew(keeping: &mut Keeping) {
    if let Err(error) = keeping.renew() {
        warn!(%error, "have the resolver's sockets kept; what is asked while netd is started anew will be lost");
    }
}

async fn serve(socket: &Path, commands: mpsc::Sender<Command>, dns: impl Future<Output = io::Result<()>>) -> Result<()> {
    let listener = listen(socket).with_context(|| format!("listen at {}", socket.display()))?;
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let service = NetdServer::new(Service::new(commands.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX);
    info!(socket = %socket.display(), "serving");
    tokio::select! {
        served = Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener)) => served.context("serve"),
        served = dns => served.context("serve DNS over TCP"),
        () = look_at_paths(commands.clone()) => bail!("the dataplane's owner has ended"),
        () = tick(commands) => bail!("the dataplane's owner has ended"),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Has paths to other nodes looked at beside the owner, who waits for nobody. Ends when the owner does.
async fn look_at_paths(commands: mpsc::Sender<Command>) {
    let mut looks = tokio::time::interval(PATHS);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let (reply, due) = oneshot::channel();
        if commands.send(Command::Paths { reply }).await.is_err() {
            return;
        }
        let Ok((asked, mtu)) = due.await else { return };
        if asked.is_empty() {
            continue;
        }
        let nodes = asked.clone();
        let narrow = match tokio::task::spawn_blocking(move || echo::narrow(&nodes, mtu)).await {
            Ok(Ok(narrow)) => narrow,
            Ok(Err(error)) => {
                warn!(%error, "the paths to other nodes could not be looked at");
                BTreeSet::new()
            }
            Err(error) => {
                warn!(%error, "the look at the paths to other nodes panicked");
                BTreeSet::new()
            }
        };
        if !narrow.is_empty() {
            warn!(nodes = ?narrow, mtu, "paths do not carry packets as large as this host sends");
        }
        if commands.send(Command::Narrow { asked, narrow }).await.is_err() {
            return;
        }
    }
}

/// Ends when the owner does.
async fn tick(commands: mpsc::Sender<Command>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = commands.closed() => return,
        }
        if commands.send(Command::Tick).await.is_err() {
            return;
        }
    }
}

/// Raises the soft limit as far as is needed and the hard one allows.
fn allow_open_files() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = OPEN_FILES.min(hard);
    if soft < wanted { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
}

/// One netd per run directory: the kernel frees the lock when its process ends, however it ends.
fn lock(run_dir: &Path) -> Result<Flock<File>> {
    let path = run_dir.join("netd.lock");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)?;
            lock.rewind()?;
            write!(lock, "{}", std::process::id()).with_context(|| format!("write {}", path.display()))?;
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).with_context(|| format!("read {}", path.display()))?;
            bail!("another rcluster-netd (process {holder}) serves {}; stop it, or give another --run-dir", run_dir.display());
        }
        Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
    }
}
