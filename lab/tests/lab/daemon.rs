//! Stand-ins for the daemons, and the small commands that tests run on hosts.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rcluster_lab::UpOptions;

/// Every stand-in echoes UDP and TCP here.
pub const MANAGER_PORT: u16 = 9000;
pub const NETD_PORT: u16 = 9001;
pub const AGENT_PORT: u16 = 9002;

const PATIENCE: Duration = Duration::from_millis(400);

/// Runs as what the arguments say; `None`: as the tests.
pub fn run(arguments: &[String]) -> Option<i32> {
    let program = Path::new(arguments.first()?).file_name()?.to_str()?;
    let rest: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    match program {
        "rcluster-manager" if rest.first() == Some(&"init") => return Some(found_cluster()),
        "rcluster-manager" => serve(&rest, MANAGER_PORT),
        "rcluster-netd" => serve(&rest, NETD_PORT),
        "rcluster-agent" if rest.first() == Some(&"image") => return Some(load_image(&rest)),
        "rcluster-agent" => {
            start_pod(&rest);
            serve(&rest, AGENT_PORT)
        }
        _ => {}
    }
    match rest.as_slice() {
        ["ping", to] => Some(asked(|| ping(to))),
        ["tcp", to] => Some(asked(|| tcp(to))),
        ["hold-lab", name, bin_dir, image] => hold_lab(name, bin_dir, image),
        ["sleep"] => sleep(),
        _ => None,
    }
}

/// The tokens of a cluster that is none.
fn found_cluster() -> i32 {
    let written = writeln!(io::stdout(), "{{\"manager_token\":\"m\",\"agent_token\":\"a\"}}");
    i32::from(written.is_err())
}

fn flag<'a>(arguments: &[&'a str], name: &str) -> &'a str {
    arguments.iter().skip_while(|argument| **argument != name).nth(1).unwrap()
}

/// Counts its life in `beats` on disk and its boots in `boots` in memory, and echoes.
fn serve(arguments: &[&str], port: u16) -> ! {
    let state = PathBuf::from(flag(arguments, "--state-dir"));
    fs::create_dir_all(&state).unwrap();
    if arguments.contains(&"--run-dir") {
        fs::write(Path::new(flag(arguments, "--run-dir")).join(format!("booted-{port}")), "").unwrap();
    }
    let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
    let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
    // Who counts can be reached.
    thread::spawn(move || {
        for beat in 0_u64.. {
            fs::write(state.join("beats.new"), beat.to_string()).unwrap();
            fs::rename(state.join("beats.new"), state.join("beats")).unwrap();
            thread::sleep(Duration::from_millis(5));
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut reader = stream.try_clone().unwrap();
                io::copy(&mut reader, &mut stream)
            });
        }
    });
    let mut bytes = [0; 64];
    loop {
        let (length, from) = socket.recv_from(&mut bytes).unwrap();
        // A peer that has gone is no matter.
        drop(socket.send_to(&bytes[..length], from));
    }
}

/// A process as a container's: PID 1 of a namespace of its own, in a cgroup of its own, in a session of its own.
#[allow(clippy::zombie_processes, reason = "the container lives as long as the host")]
fn start_pod(arguments: &[&str]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("sleep").env_clear().env("RCLUSTER_TASK", "web.1").env("PATH", "/usr/bin:/bin").process_group(0);
    let own = fs::File::open("/proc/self/ns/pid").unwrap();
    unshare(CloneFlags::CLONE_NEWPID).unwrap();
    let child = command.spawn().unwrap();
    // Without that there could be no threads.
    setns(own, CloneFlags::CLONE_NEWPID).unwrap();
    let cgroup = format!("{}/0123456789abcdef/main", flag(arguments, "--cgroup-parent"));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchies = mounts.lines().filter(|line| line.contains(" cgroup rw") || line.contains(" cgroup2 rw"));
    for mount in hierarchies.filter_map(|line| line.split(' ').nth(1)).filter(|mount| !mount.ends_with("cpuset")) {
        let dir = format!("{mount}{cgroup}");
        fs::create_dir_all(&dir).unwrap();
        fs::write(format!("{dir}/cgroup.procs"), child.id().to_string()).unwrap();
    }
}

fn load_image(arguments: &[&str]) -> i32 {
    let image = fs::read_to_string(arguments[2]).unwrap();
    let state = Path::new(flag(arguments, "--state-dir"));
    fs::create_dir_all(state).unwrap();
    let loads = fs::read_to_string(state.join("loads")).unwrap_or_default();
    fs::write(state.join("loads"), format!("{loads}{image}\n")).unwrap();
    match image.as_str() {
        "broken" => {
            drop(io::stderr().write_all(b"the image is broken\n"));
            1
        }
        "endless" => sleep(),
        _ => 0,
    }
}

fn sleep() -> ! {
    loop {
        thread::park();
    }
}

/// 0: there was an echo; 1: silence; 2: somebody said that it is of no use.
fn asked(ask: impl Fn() -> io::Result<()>) -> i32 {
    // That nobody answers for an address is said by a host's own kernel, seconds after the first question there. The next one counts.
    let of_its_own = |answer: &io::Result<()>| answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::HostUnreachable);
    match (0..3).map(|_| ask()).find(|answer| !of_its_own(answer)) {
        Some(Ok(())) => 0,
        Some(Err(error)) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => 1,
        _ => 2,
    }
}

fn ping(to: &str) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send(b"ping")?;
    socket.recv(&mut [0; 8]).map(drop)
}

fn tcp(to: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to.parse::<SocketAddr>().unwrap(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

/// A command that makes a lab and never says that it is to stay.
fn hold_lab(name: &str, bin_dir: &str, image: &str) -> ! {
    let images = if image == "none" { Vec::new() } else { vec![PathBuf::from(image)] };
    let bin_dir = Some(PathBuf::from(bin_dir));
    let options = UpOptions {
        name: name.to_owned(),
        managers: 1,
        agents: 1,
        images,
        labels: Vec::new(),
        certificate_ttl: None,
        owner_pid: None,
        bin_dir,
    };
    let _starting = rcluster_lab::up(options).unwrap();
    sleep()
}
