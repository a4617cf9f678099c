//! What must be there before anything is touched; everything that is missing is said at once.

use std::fs;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::PART;
use crate::cgroup::Cgroups;
use crate::core::plan::cgroup_root;
use crate::error::LabError;
use crate::netlink::Netlink;

/// The programs that a lab runs.
const PROGRAMS: [&str; 4] = ["rcluster-manager", "rcluster-agent", "rcluster-netd", "rcluster-runtime"];
const NAMESPACES: [&str; 6] = ["pid", "mnt", "net", "uts", "ipc", "cgroup"];

/// Where the programs are: as given, else beside the running one.
pub fn bin_dir(given: Option<PathBuf>) -> Result<PathBuf, LabError> {
    let dir = match given {
        Some(dir) => dir,
        None => {
            let own = std::env::current_exe().map_err(LabError::io("find this program"))?;
            own.parent().unwrap_or(Path::new("/")).to_path_buf()
        }
    };
    // A lab's processes live in the root directory: relative paths mean nothing to them.
    Ok(fs::canonicalize(&dir).unwrap_or(dir))
}

/// Checks the machine.
pub fn check(bin_dir: &Path, images: &[PathBuf]) -> Result<(), LabError> {
    if !geteuid().is_root() {
        return Err(LabError::Refused("a lab makes namespaces and cgroups and needs root; run it with sudo".to_owned()));
    }
    let mut missing = Vec::new();
    for program in PROGRAMS {
        if !bin_dir.join(program).is_file() {
            missing.push(format!(
                "{program} is not in {} (`make build` puts it there; RCLUSTER_BIN_DIR says where to look)",
                bin_dir.display()
            ));
        }
    }
    for image in images.iter().filter(|image| !image.exists()) {
        missing.push(format!("there is no image {}", image.display()));
    }
    for name in NAMESPACES {
        if !Path::new("/proc/self/ns").join(name).exists() {
            missing.push(format!("the kernel has no {name} namespaces"));
        }
    }
    if missing.is_empty() {
        missing = try_out()?;
    }
    if missing.is_empty() { Ok(()) } else { Err(LabError::Refused(missing.join("\n"))) }
}

/// Does in namespaces that are thrown away what hosts and containers will need; what failed, in words.
fn try_out() -> Result<Vec<String>, LabError> {
    let program = std::env::current_exe().map_err(LabError::io("find this program"))?;
    let output = Command::new(program)
        .args([PART, "probe"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(LabError::io("try out the kernel"))?;
    let mut missing: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    if missing.is_empty() && !output.status.success() {
        missing.push(format!("trying out the kernel ended with {}", output.status));
    }
    Ok(missing)
}

/// Runs as the process that tries the kernel out: prints a line for everything that cannot be done.
pub fn main() -> i32 {
    let failures: Vec<String> = match isolate() {
        Ok(()) => attempts().into_iter().filter_map(|(what, done)| done.err().map(|error| tell(what, &error))).collect(),
        Err(error) => vec![tell("new namespaces", &error)],
    };
    let text: String = failures.iter().map(|line| format!("{line}\n")).collect();
    match stdout().write_all(text.as_bytes()) {
        Ok(()) => i32::from(!failures.is_empty()),
        Err(_) => 1,
    }
}

fn tell(what: &str, error: &LabError) -> String {
    format!("this machine cannot do {what}: {}", error.with_causes())
}

fn isolate() -> Result<(), LabError> {
    let all =
        CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    unshare(all).map_err(LabError::kernel("unshare"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(LabError::kernel("make mounts private"))
}

fn attempts() -> [(&'static str, Result<(), LabError>); 5] {
    [
        ("virtual links (veth)", Netlink::open().and_then(|mut netlink| netlink.add_veth("probe", "probe-end", None))),
        ("overlay networks (vxlan)", Netlink::open().and_then(|mut netlink| netlink.add_vxlan("probe-vxlan"))),
        ("packet rules (nf_tables)", ask_nf_tables()),
        ("overlay file systems (overlay)", mount_overlay()),
        ("cgroups", make_cgroup()),
    ]
}

/// `NFT_MSG_GETGEN` (linux/netfilter/nf_tables.h): the kernel answers with its generation, or that there is no such subsystem.
fn ask_nf_tables() -> Result<(), LabError> {
    const NFNL_SUBSYS_NFTABLES: u8 = 10;
    const NFT_MSG_GETGEN: u8 = 16;
    const NLM_F_REQUEST: u8 = 1;
    const NLMSG_ERROR: u16 = 2;
    let failed = |source| LabError::Netlink { what: "ask nf_tables for its generation".to_owned(), source };
    // nlmsghdr (length 20, type, flags, sequence, port), then nfgenmsg (family, version, resource).
    let request = [20, 0, 0, 0, NFT_MSG_GETGEN, NFNL_SUBSYS_NFTABLES, NLM_F_REQUEST, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let ask = || {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.send(&request, 0)?;
        let mut answer = Vec::with_capacity(4096);
        socket.recv(&mut answer, 0)?;
        Ok(answer)
    };
    let answer: Vec<u8> = ask().map_err(failed)?;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(code)) => Err(failed(std::io::Error::from_raw_os_error(-code))),
        _ => Ok(()),
    }
}

fn mount_overlay() -> Result<(), LabError> {
    let none: Option<&str> = None;
    let place = Path::new("/tmp");
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).map_err(LabError::kernel("mount a tmpfs"))?;
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(place.join(name)).map_err(LabError::io("make a directory on a tmpfs"))?;
    }
    let options = Some("lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work");
    mount(Some("overlay"), &place.join("merged"), Some("overlay"), MsFlags::empty(), options).map_err(LabError::kernel("mount an overlay"))
}

fn make_cgroup() -> Result<(), LabError> {
    let cgroups = Cgroups::find()?;
    let path = cgroup_root(&format!("probe-{}", std::process::id()));
    let made = cgroups.make(&path);
    cgroups.remove(&path)?;
    made
}
