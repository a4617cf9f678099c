//! The tests of this crate on a host with cgroup v2 alone: Debian's cloud kernel in a virtual machine, in software emulation.
//!
//! In: a kernel at `RCLUSTER_VM_KERNEL` (`make tools` puts one there), qemu, busybox; the other test programs of this crate, as they were
//! built beside this one, and no older ones. Out: their verdicts, read from the machine's serial console. The machine has no network and no disk.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The test programs, each with the tests that say nothing in such a machine.
const PROGRAMS: [(&str, &[&str]); 6] = [
    // A count, which says no more there than here, and takes minutes.
    ("lifecycle", &["a_thousand_lives_leave_nothing"]),
    // Other runtimes are not in the machine; its programs lie in memory, which is not counted as that of a file; and no
    // interface is up.
    ("monitor", &["it_stays_with_containers_of_other_runtimes", "it_idles_and_is_small", "output_goes_to_a_server_by_udp_and_tcp"]),
    // Hides the hierarchies of version 1, of which there are none.
    ("isolation", &["version_2_alone_filters_devices"]),
    ("hooks", &[]),
    ("userns", &[]),
    // There is no disk, and so no numbers of one.
    ("resources", &["block_io_is_throttled", "the_values_are_runcs"]),
];

/// Emulation is slow, and other tests go on beside it.
const DEADLINE: Duration = Duration::from_secs(600);

const DONE: &str = "VM-DONE";

#[test]
fn the_runtime_works_where_there_is_cgroup_v2_alone() {
    let kernel = std::env::var_os("RCLUSTER_VM_KERNEL").map(PathBuf::from).expect("RCLUSTER_VM_KERNEL names a kernel: run make test");
    assert!(kernel.exists(), "{} is missing: run make tools", kernel.display());
    let dir = tempfile::tempdir().unwrap();
    let initrd = initrd(dir.path());
    let console = boot(&kernel, &initrd);
    let mounts = console.lines().find_map(|line| line.split_once("VM-CGROUPS ")).map(|(_, mounts)| mounts.trim());
    assert_eq!(mounts, Some("cgroup2 /sys/fs/cgroup cgroup2 rw,relatime 0 0"), "{console}");
    for (name, _) in PROGRAMS {
        assert!(console.contains(&format!("VM-RESULT {name} 0")), "{name} failed in the machine:\n{console}");
    }
    assert!(console.matches("test result: ok.").count() == PROGRAMS.len(), "{console}");
}

/// The newest program of that name beside this one that is no older than what it was made from: a used target directory also holds those
/// of earlier builds.
fn built(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let beside = fs::read_dir(own.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        let file = path.file_name().unwrap().to_str().unwrap();
        file.rsplit_once('-').is_some_and(|(stem, hash)| stem == name && !hash.contains('.')) && path.is_file()
    };
    let newest = beside.filter(is_it).filter(|path| is_fresh(path)).max_by_key(|path| modified(path));
    newest.unwrap_or_else(|| {
        panic!("no test program {name} of these sources beside {}: build it by cargo test -p rcluster-runtime --no-run", own.display())
    })
}

/// By the dependencies that cargo writes down beside a program, each as a rule of its own without anything behind its colon.
fn is_fresh(program: &Path) -> bool {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let noted = fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    let sources: Vec<_> = noted.lines().filter_map(|line| line.strip_suffix(':')).map(|source| workspace.join(source)).collect();
    !sources.is_empty() && sources.iter().all(|source| source.exists() && modified(source) <= modified(program))
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

/// The root file system of the machine, as a cpio archive.
fn initrd(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for name in ["bin", "proc", "sys", "dev", "tmp", "new", "tests"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    install(Path::new("/bin/busybox"), &root, Path::new("/bin/busybox"));
    for applet in [
        "sh",
        "mount",
        "mkdir",
        "cp",
        "switch_root",
        "poweroff",
        "grep",
        "cat",
        "wc",
        "ls",
        "mknod",
        "true",
        "sleep",
        "touch",
        "kill",
        "tr",
        "readlink",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    // The tests call the runtime where cargo built it.
    let runtime = Path::new(env!("CARGO_BIN_EXE_rcluster-runtime"));
    install(runtime, &root, runtime);
    for (name, _) in PROGRAMS {
        install(&built(name), &root, &Path::new("/tests").join(name));
    }
    script(&root.join("init"), FIRST);
    let runs = PROGRAMS.iter().map(|(name, skipped)| {
        let skipped: String = skipped.iter().map(|test| format!(" --skip {test}")).collect();
        format!("/tests/{name} --test-threads 2{skipped}; echo VM-RESULT {name} $?\n")
    });
    script(&root.join("second"), &format!("{SECOND}{}echo {DONE}\npoweroff -f\n", runs.collect::<String>()));
    let archive = dir.join("initrd.cpio");
    let packed = Command::new("/bin/busybox")
        .args(["sh", "-c", "busybox find . | busybox cpio -o -H newc"])
        .current_dir(&root)
        .stdout(fs::File::create(&archive).unwrap())
        .stderr(Stdio::null())
        .status();
    assert!(packed.unwrap().success());
    archive
}

/// The kernel's first root cannot be pivoted away from, which containers do: a second one takes its place.
const FIRST: &str = "mount -t tmpfs -o size=80% tmpfs /new\n\
    for entry in /*; do case $entry in /new|/proc|/sys|/dev) ;; *) cp -a $entry /new/ ;; esac; done\n\
    mkdir /new/proc /new/sys /new/dev\nexec switch_root /new /second\n";

const SECOND: &str = "export PATH=/bin:/sbin:/usr/bin:/usr/sbin RUST_BACKTRACE=0\n\
    mount -t proc proc /proc\nmount -t sysfs sysfs /sys\nmount -t devtmpfs devtmpfs /dev\n\
    mkdir -p /dev/pts /dev/shm /run\nmount -t devpts devpts /dev/pts\n\
    mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
    echo VM-CGROUPS $(grep cgroup /proc/self/mounts)\n";

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Copies a program and the libraries it names.
fn install(program: &Path, root: &Path, target: &Path) {
    let copy = |from: &Path, to: &Path| {
        let to = root.join(to.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    copy(program, target);
    common::libraries(program).iter().for_each(|library| copy(library, library));
}

/// Runs the machine to its end and returns what its console showed.
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
