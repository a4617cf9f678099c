//! The tests of this crate on a host with cgroup v2 alone: Debian's cloud kernel in a virtual machine.
//!
//! In: what the machine needs; the other test programs of this crate, as they were built beside this one, and no older ones. Out: their
//! verdicts, read from the machine's serial console.

mod machine;

use std::path::Path;

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

/// What the tests call in containers.
const APPLETS: [&str; 9] = ["wc", "ls", "mknod", "true", "sleep", "touch", "kill", "tr", "readlink"];

const CGROUPS: &str = "mount -t cgroup2 cgroup2 /sys/fs/cgroup\necho VM-CGROUPS $(grep cgroup /proc/self/mounts)\n";

#[test]
fn the_runtime_works_where_there_is_cgroup_v2_alone() {
    let dir = tempfile::tempdir().unwrap();
    let root = machine::root(dir.path(), &APPLETS);
    // The tests call the runtime where cargo built it.
    let runtime = Path::new(env!("CARGO_BIN_EXE_rcluster-runtime"));
    machine::install(runtime, &root, runtime);
    for (name, _) in PROGRAMS {
        machine::install(&machine::built(name), &root, &Path::new("/tests").join(name));
    }
    let runs = PROGRAMS.iter().map(|(name, skipped)| {
        let skipped: String = skipped.iter().map(|test| format!(" --skip {test}")).collect();
        format!("/tests/{name} --test-threads 2{skipped}; echo VM-RESULT {name} $?\n")
    });
    let console = machine::run(dir.path(), &root, &format!("{CGROUPS}{}", runs.collect::<String>()));
    let mounts = console.lines().find_map(|line| line.split_once("VM-CGROUPS ")).map(|(_, mounts)| mounts.trim());
    assert_eq!(mounts, Some("cgroup2 /sys/fs/cgroup cgroup2 rw,relatime 0 0"), "{console}");
    for (name, _) in PROGRAMS {
        assert!(console.contains(&format!("VM-RESULT {name} 0")), "{name} failed in the machine:\n{console}");
    }
    assert!(console.matches("test result: ok.").count() == PROGRAMS.len(), "{console}");
}
