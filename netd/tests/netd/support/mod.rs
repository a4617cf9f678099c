//! Hosts made of namespaces on one wire, each with a real netd, and the means to be in their pods.
//!
//! A host is a thread with a network and a mount namespace of its own; jobs are sent to it. A netd is its child and dies with it, however the
//! test ends; so do the pins it makes, for they are in the host's mount namespace.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use ipnet::Ipv4Net;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rcluster_api::wire::v1;
use rcluster_api::wire::v1::netd_client::NetdClient;
use rcluster_netd::kernel::messages::Next;
use rcluster_netd::kernel::netlink::{NETLINK_ROUTE, Netlink};
use rcluster_netd::kernel::{messages, netns};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

pub mod dns;

pub mod resolver;

pub mod seen;

pub mod traffic;

/// More than any step needs on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce() + Send>;

/// A thread with a network and a mount namespace of its own.
struct Space {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Space {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("the tests run as root");
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mounts stay here");
            queue.into_iter().for_each(|job| job());
        });
        Self { jobs: Some(jobs), thread: Some(thread) }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (reply, answer) = mpsc::channel();
        let job = Box::new(move || reply.send(work()).expect("the test waits"));
        self.jobs.as_ref().expect("until dropped").send(job).expect("the space lives");
        answer.recv().expect("the job ends")
    }

    fn namespace(&self) -> std::fs::File {
        self.run(|| std::fs::File::open("/proc/thread-self/ns/net").expect("proc is mounted"))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Several hosts on one wire.
pub struct Lab {
    pub hosts: Vec<Host>,
    switch: Space,
}

/// One host; its netd, while it runs.
pub struct Host {
    space: Space,
    pub addr: Ipv4Addr,
    /// What its netd is started with besides what it needs.
    pub flags: Vec<&'static str>,
    dir: TempDir,
    netd: Option<Child>,
    runtime: Runtime,
}

impl Lab {
    /// Hosts 10.90.0.101 and following, each with a netd that serves.
    pub fn start(count: u8) -> Self {
        let lab = Self::wire(count);
        let hosts = lab.hosts.into_iter().map(|mut host| {
            host.start();
            host
        });
        Self { hosts: hosts.collect(), switch: lab.switch }
    }

    /// The hosts without netd.
    pub fn wire(count: u8) -> Self {
        let switch = Space::new();
        switch.run(|| {
            let mut bridge = LinkMessage::default();
            bridge.header.flags = LinkFlags::Up;
            bridge.header.change_mask = LinkFlags::Up;
            bridge.attributes.push(LinkAttribute::IfName("wire".into()));
            bridge.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
            let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
            netlink.request("bridge", RouteNetlinkMessage::NewLink(bridge), messages::CREATE).unwrap();
        });
        let host = |number: u8| Host::new(&switch, format!("host{number}"), Ipv4Addr::new(10, 90, 0, 100 + number));
        let hosts = (1..=count).map(host).collect();
        Self { hosts, switch }
    }

    /// The world, as one more host on the wire, without netd: 203.0.113.1. The hosts and it reach each other; it knows no other address.
    pub fn outside(&self) -> Host {
        let outside = Host::new(&self.switch, "outside".to_owned(), Ipv4Addr::new(203, 0, 113, 1));
        outside.reaches(Ipv4Net::new_assert(Ipv4Addr::new(10, 90, 0, 0), 24));
        for host in &self.hosts {
            host.reaches(Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24));
        }
        outside
    }

    /// Runs `work` on the wire, which sees what hosts send each other.
    pub fn on_wire<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.switch.run(work)
    }

    /// A picture for the host at `index`: the same networks for all.
    pub fn view(&self, index: usize, revision: u64, networks: &[v1::NetworkView]) -> v1::NetView {
        let nodes = self.hosts.iter().enumerate().map(|(number, host)| v1::NodeView {
            id: node_id(number),
            name: node_id(number),
            addr: host.addr.to_string(),
            incarnation: 1,
            ..Default::default()
        });
        let (node_id, nodes, networks) = (node_id(index), nodes.collect(), networks.to_vec());
        v1::NetView { term: 1, revision, node_id, nodes, networks, ..Default::default() }
    }

    /// Has the wire drop what is larger than `mtu` on its way to the host at `index`, and say nothing.
    pub fn narrow(&self, index: usize, mtu: u32) {
        self.switch.run(move || {
            seen::run(&format!("ip link set host{} mtu {mtu}", index + 1));
        });
    }

    /// Gives every host the picture.
    pub fn apply(&self, revision: u64, networks: &[v1::NetworkView]) {
        for (index, host) in self.hosts.iter().enumerate() {
            let response = host.apply(self.view(index, revision, networks)).unwrap();
            assert_eq!((response.revision, response.problems), (revision, vec![]));
        }
    }
}

/// A pod on each of two hosts, t1 and t2 of network `front`.
pub fn two_pods() -> Lab {
    let lab = Lab::start(2);
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    lab.hosts[1].attach("t2", &[("front", "10.128.0.3")]).unwrap();
    lab
}

/// A picture with a number for each node, without which no ports are published.
pub fn numbered(mut view: v1::NetView) -> v1::NetView {
    for (number, node) in (1..).zip(&mut view.nodes) {
        node.number = number;
    }
    view
}

/// TCP port `published` of every node, with tasks at port `target` behind it: (task, host's index, last octet of its address in 10.128.0.0/24).
pub fn published(published: u32, target: u32, tasks: &[(&str, usize, u8)]) -> v1::PublishedView {
    let port = v1::Port {
        protocol: v1::Protocol::Tcp.into(),
        target,
        published,
        mode: v1::PublishMode::Ingress.into(),
        policy: v1::IngressPolicy::Spread.into(),
        ..Default::default()
    };
    let backend = |(task, host, last): &(&str, usize, u8)| v1::BackendView {
        task_id: (*task).to_owned(),
        node_id: node_id(*host),
        ip: Ipv4Addr::new(10, 128, 0, *last).to_string(),
        state: v1::EndpointState::Serving.into(),
        ..Default::default()
    };
    v1::PublishedView { service_id: "web".into(), ports: vec![port], backends: tasks.iter().map(backend).collect() }
}

pub fn node_id(index: usize) -> String {
    format!("node-{index}")
}

/// A network `10.128.<third>.0/24`; the endpoints are (task, host's index, last octet of the address).
pub fn network(name: &str, third: u8, endpoints: &[(&str, usize, u8)]) -> v1::NetworkView {
    let endpoint = |(task, host, last): &(&str, usize, u8)| v1::EndpointView {
        task_id: (*task).to_owned(),
        node_id: node_id(*host),
        ip: format!("10.128.{third}.{last}"),
        serving: true,
        names: vec!["web".into(), "web.shop".into(), format!("{last}.web")],
        task: format!("web.{last}"),
        service_id: "web".to_owned(),
        ..Default::default()
    };
    v1::NetworkView {
        id: format!("net-{name}"),
        name: name.to_owned(),
        vni: 4096 + u32::from(third),
        subnet: format!("10.128.{third}.0/24"),
        internal: false,
        names: vec!["web".into(), "idle".into()],
        endpoints: endpoints.iter().map(endpoint).collect(),
        subnet6: String::new(),
        encrypted: false,
        policy: None,
    }
}

impl Host {
    /// At a port of that name.
    fn new(switch: &Space, port_name: String, addr: Ipv4Addr) -> Self {
        let space = Space::new();
        let namespace = space.namespace();
        switch.run(move || {
            let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
            let wire = netlink.ask("wire", messages::get_link("wire")).unwrap();
            let Some(RouteNetlinkMessage::NewLink(wire)) = wire.into_iter().next() else { panic!("no bridge") };
            let mut peer = LinkMessage::default();
            peer.attributes.push(LinkAttribute::IfName("up0".into()));
            peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
            let mut port = LinkMessage::default();
            port.header.flags = LinkFlags::Up;
            port.header.change_mask = LinkFlags::Up;
            port.attributes.push(LinkAttribute::IfName(port_name));
            port.attributes.push(LinkAttribute::Controller(wire.header.index));
            let data = InfoData::Veth(InfoVeth::Peer(peer));
            port.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]));
            netlink.request("host's port", RouteNetlinkMessage::NewLink(port), messages::CREATE).unwrap();
        });
        space.run(move || {
            let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
            let link = netlink.ask("up0", messages::get_link("up0")).unwrap();
            let Some(RouteNetlinkMessage::NewLink(link)) = link.into_iter().next() else { panic!("no uplink") };
            let mut up = LinkMessage::default();
            up.header.index = link.header.index;
            up.header.flags = LinkFlags::Up;
            up.header.change_mask = LinkFlags::Up;
            let mut address = AddressMessage::default();
            address.header.family = netlink_packet_route::AddressFamily::Inet;
            address.header.prefix_len = 24;
            address.header.index = link.header.index;
            address.attributes.push(AddressAttribute::Local(IpAddr::V4(addr)));
            address.attributes.push(AddressAttribute::Address(IpAddr::V4(addr)));
            netlink.request("loopback", messages::loopback_up(), 0).unwrap();
            netlink.request("uplink", RouteNetlinkMessage::SetLink(up), 0).unwrap();
            netlink.request("address", RouteNetlinkMessage::NewAddress(address), messages::CREATE).unwrap();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { space, addr, flags: Vec::new(), dir: tempfile::tempdir().unwrap(), netd: None, runtime }
    }

    /// Makes addresses reachable on the wire.
    fn reaches(&self, net: Ipv4Net) {
        self.here(move || {
            let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
            let index = nix::net::if_::if_nametoindex("up0").unwrap();
            let route = messages::route(net.into(), Next::Device(index));
            netlink.request("route", RouteNetlinkMessage::NewRoute(route), messages::CREATE).unwrap();
        });
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Which resolvers the host has; none, until a test writes it.
    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }

    /// Starts netd and waits until it answers.
    pub fn start(&mut self) {
        let started = Instant::now();
        self.netd = Some(self.spawn(&self.addr.to_string(), Stdio::inherit()));
        eventually("netd answers", || self.status().is_ok());
        assert!(started.elapsed() < DEADLINE);
    }

    /// A netd of this host, as it would be started by hand.
    pub fn spawn(&self, addr: &str, stderr: Stdio) -> Child {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_rcluster-netd"), "--addr", addr]);
        command.arg("--state-dir").arg(self.state_dir()).arg("--run-dir").arg(self.run_dir());
        command.arg("--resolv-conf").arg(self.resolv_conf()).args(&self.flags);
        command.env("RCLUSTER_LOG", "warn").stderr(stderr);
        self.space.run(move || command.spawn().expect("netd is built, setpriv is part of util-linux"))
    }

    /// The words of a netd that refuses to start.
    pub fn refusal(&self, addr: &str) -> String {
        let mut child = self.spawn(addr, Stdio::piped());
        let mut text = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut text).unwrap();
        assert!(!child.wait().unwrap().success(), "{text}");
        text
    }

    pub fn pid(&self) -> u32 {
        self.netd.as_ref().expect("netd runs").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut netd) = self.netd.take() {
            netd.kill().unwrap();
            netd.wait().unwrap();
        }
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let mut netd = self.netd.take().expect("netd runs");
        let pid = nix::unistd::Pid::from_raw(netd.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        netd.wait().unwrap()
    }

    async fn client(socket: PathBuf) -> Result<NetdClient<Channel>, Status> {
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://netd").connect_with_connector(connect).await;
        Ok(NetdClient::new(channel.map_err(|error| Status::unavailable(error.to_string()))?))
    }

    fn call<T>(&self, work: impl AsyncFnOnce(NetdClient<Channel>) -> Result<T, Status>) -> Result<T, Status> {
        let socket = self.run_dir().join("netd.sock");
        self.runtime.block_on(async { work(Self::client(socket).await?).await })
    }

    pub fn apply(&self, view: v1::NetView) -> Result<v1::ApplyViewResponse, Status> {
        self.call(async |mut client| Ok(client.apply_view(view).await?.into_inner()))
    }

    pub fn attach(&self, task: &str, networks: &[(&str, &str)]) -> Result<v1::AttachResponse, Status> {
        self.attach_asking(task, networks, &[])
    }

    /// A pod with resolvers of its own.
    pub fn attach_asking(&self, task: &str, networks: &[(&str, &str)], dns: &[&str]) -> Result<v1::AttachResponse, Status> {
        let networks = networks.iter().map(|(id, ip)| v1::AttachNetwork { network_id: format!("net-{id}"), ip: (*ip).to_owned() });
        let dns = dns.iter().map(|ip| (*ip).to_owned()).collect();
        let request = v1::AttachRequest { task_id: task.to_owned(), networks: networks.collect(), dns };
        self.call(async |mut client| Ok(client.attach(request).await?.into_inner()))
    }

    pub fn detach(&self, task: &str) -> Result<(), Status> {
        self.detach_after(task, 0)
    }

    pub fn detach_after(&self, task: &str, linger_ms: u64) -> Result<(), Status> {
        self.call(async |mut client| client.detach(v1::DetachRequest { task_id: task.to_owned(), linger_ms }).await.map(drop))
    }

    pub fn leave(&self, task: &str) -> Result<(), Status> {
        self.call(async |mut client| client.leave(v1::LeaveRequest { task_id: task.to_owned() }).await.map(drop))
    }

    pub fn status(&self) -> Result<v1::NetdStatusResponse, Status> {
        self.call(async |mut client| Ok(client.status(v1::NetdStatusRequest {}).await?.into_inner()))
    }

    pub fn dump(&self, request: v1::DumpRequest) -> Result<v1::DumpResponse, Status> {
        self.call(async |mut client| Ok(client.dump(request).await?.into_inner()))
    }

    pub fn trace(&self, task: &str, target: &str, protocol: v1::Protocol) -> Result<v1::TraceResponse, Status> {
        let request = v1::TraceRequest { task_id: task.to_owned(), target: target.to_owned(), protocol: protocol.into() };
        self.call(async |mut client| Ok(client.trace(request).await?.into_inner()))
    }

    /// Runs `work` in a pod (or in `router`).
    pub fn inside<T: Send + 'static>(&self, pin: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = self.run_dir().join("netns").join(pin);
        self.space.run(move || netns::inside(&path, || Ok(work())).unwrap())
    }

    /// Runs `work` in the host's own namespaces.
    pub fn here<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.space.run(work)
    }

    pub fn pinned(&self, task: &str) -> bool {
        let path = self.run_dir().join("netns").join(task);
        self.space.run(move || netns::is_pinned(&path))
    }

    /// The router's devices: name and index.
    pub fn devices(&self) -> Vec<(String, u32)> {
        let mut devices = self.inside("router", || {
            let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
            let dump = netlink.dump("devices", &RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
            let named = dump.into_iter().filter_map(|message| {
                let RouteNetlinkMessage::NewLink(link) = message else { return None };
                link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some((name.clone(), link.header.index)),
                    _ => None,
                })
            });
            named.collect::<Vec<_>>()
        });
        devices.sort();
        devices
    }

    pub fn listen(&self, task: &str, at: &str) -> TcpListener {
        let at: SocketAddr = at.parse().unwrap();
        self.inside(task, move || TcpListener::bind(at)).unwrap()
    }

    pub fn connect(&self, task: &str, to: &str) -> io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.inside(task, move || TcpStream::connect_timeout(&to, DEADLINE))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(stream)
    }

    pub fn udp(&self, task: &str, at: &str) -> UdpSocket {
        let at: SocketAddr = at.parse().unwrap();
        let socket = self.inside(task, move || UdpSocket::bind(at)).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut netd) = self.netd.take() {
            drop(netd.kill());
            drop(netd.wait());
        }
    }
}

/// A seed, and chance by it. It is drawn where RCLUSTER_SEED does not give it; what fails names it.
pub fn chance() -> (u64, StdRng) {
    let seed = from_environment("RCLUSTER_SEED").unwrap_or_else(rand::random);
    (seed, StdRng::seed_from_u64(seed))
}

/// How often a test does what it does by chance: as usual, or as RCLUSTER_ROUNDS says.
pub fn rounds(usual: u64) -> u64 {
    from_environment("RCLUSTER_ROUNDS").unwrap_or(usual)
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|error| panic!("{name} is {text:?}: {error}")))
}

/// Waits until `done`, or fails with `what`.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A process's resident memory in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the process lives");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
