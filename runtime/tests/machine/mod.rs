//! Debian's cloud kernel in a virtual machine, in software emulation, with programs in memory and no disk and no network.
//!
//! In: a kernel at `RCLUSTER_VM_KERNEL` (`make tools` puts one there), qemu, busybox; test programs as they were built beside this one, and no
//! older ones. Out: what the machine's serial console shows. For the tests of several crates.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Emulation is slow, and other tests go on beside it.
const DEADLINE: Duration = Duration::from_secs(600);

const DONE: &str = "VM-DONE";

/// What every machine's scripts need of busybox.
const APPLETS: [&str; 8] = ["sh", "mount", "mkdir", "cp", "switch_root", "poweroff", "grep", "cat"];

/// The kernel.
pub fn kernel() -> PathBuf {
    let kernel = std::env::var_os("RCLUSTER_VM_KERNEL").map(PathBuf::from).expect("RCLUSTER_VM_KERNEL names a kernel: run make test");
    assert!(kernel.exists(), "{} is missing: run make tools", kernel.display());
    kernel
}

/// The newest program of that name beside this one that is of this package's tests and no older than what it was made from: other packages
/// have tests of the same name, and a used target directory also holds those of earlier builds.
pub fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let beside = fs::read_dir(own.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_str().unwrap();
        file.rsplit_once('-').is_some_and(|(stem, hash)| stem == name && !hash.contains('.')) && path.is_file()
    };
    let newest = beside.filter(is_it).filter(|path| is_ours_now(path)).max_by_key(|path| modified(path));
    newest.unwrap_or_else(|| {
        let package = env!("CARGO_PKG_NAME");
        panic!("no test program {name} of these sources beside {}: build it by cargo test -p {package} --no-run", own.display())
    })
}

/// By the dependencies that cargo writes down beside a program, each as a rule of its own without anything behind its colon.
fn is_ours_now(program: &Path) -> bool {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = package.parent().unwrap();
    let noted = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let sources: Vec<_> = noted.lines().filter_map(|line| line.strip_suffix(':')).map(|source| workspace.join(source)).collect();
    let is_own = sources.iter().any(|source| source.starts_with(package.join("tests")));
    is_own && sources.iter().all(|source| source.exists() && modified(source) <= modified(program))
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

/// The root file system of a machine, with these applets of busybox besides those that its scripts need.
pub fn root(dir: &Path, applets: &[&str]) -> PathBuf {
    let root = dir.join("root");
    for name in ["bin", "proc", "sys", "dev", "tmp", "new", "tests"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    install(Path::new("/bin/busybox"), &root, Path::new("/bin/busybox"));
    for applet in APPLETS.iter().chain(applets) {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    root
}

/// Copies a program and the libraries it names.
pub fn install(program: &Path, root: &Path, target: &Path) {
    copy(program, root, target);
    libraries(program).iter().for_each(|library| copy(library, root, library));
}

fn copy(from: &Path, root: &Path, to: &Path) {
    let to = root.join(to.strip_prefix("/").unwrap());
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

/// The libraries that a program is linked with, and what loads them; none for a static one.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// The kernel's first root cannot be pivoted away from, which containers do: a second one takes its place.
const FIRST: &str = "mount -t tmpfs -o size=80% tmpfs /new\n\
    for entry in /*; do case $entry in /new|/proc|/sys|/dev) ;; *) cp -a $entry /new/ ;; esac; done\n\
    mkdir /new/proc /new/sys /new/dev\nexec switch_root /new /second\n";

const SECOND: &str = "export PATH=/bin:/sbin:/usr/bin:/usr/sbin RUST_BACKTRACE=0\n\
    mount -t proc proc /proc\nmount -t sysfs sysfs /sys\nmount -t devtmpfs devtmpfs /dev\n\
    mkdir -p /dev/pts /dev/shm /run\nmount -t devpts devpts /dev/pts\n";

/// Runs a machine with this root through `work`, a script, and returns what its console showed.
pub fn run(dir: &Path, root: &Path, work: &str) -> String {
    script(&root.join("init"), FIRST);
    script(&root.join("second"), &format!("{SECOND}{work}echo {DONE}\npoweroff -f\n"));
    let archive = dir.join("initrd.cpio");
    let packed = Command::new("/bin/busybox")
        .args(["sh", "-c", "busybox find . | busybox cpio -o -H newc"])
        .current_dir(root)
        .stdout(fs::File::create(&archive).unwrap())
        .stderr(Stdio::null())
        .status();
    assert!(packed.unwrap().success());
    boot(&kernel(), &archive)
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the machine to its end.
fn boot(kernel: &Path, initrd: &Path) -> String {
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-nic", "none", "-nographic", "-no-reboot"])
        .args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("start qemu-system-x86_64: apt-get install qemu-system-x86");
    let mut output = machine.stdout.take().unwrap();
    let (sender, receiver) = channel();
    let reader = thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = output.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + DEADLINE;
    let mut console = Vec::new();
    let ended = loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => console.extend(bytes),
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    // It has powered off, or it is to go now.
    drop(machine.kill());
    machine.wait().unwrap();
    reader.join().unwrap();
    let text = String::from_utf8_lossy(&console).into_owned();
    assert!(ended && text.contains(DONE), "the machine did not come to its end within {DEADLINE:?}:\n{text}");
    text
}
