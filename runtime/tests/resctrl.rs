//! `linux.intelRdt` by the real program, on a directory that imitates resctrl: no test host has it. What the kernel does when a directory
//! is made or removed cannot be imitated here, so the groups are there before; `parent/resctrl` tests the rest.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{Bundle, eventually};
use serde_json::{Value, json};

const SCHEMATA: &str = "    MB:0=100\n    L3:0=000ff\n";

/// A bundle, and beside it what seems to be resctrl with a group `gold`.
struct Imitated {
    bundle: Bundle,
}

impl Imitated {
    fn new(rdt: Value) -> Self {
        let mut bundle = Bundle::new("exec sleep 1000");
        bundle.set("/linux/intelRdt", rdt);
        let imitated = Self { bundle };
        for (name, text) in [
            ("schemata", "    MB:0=100\n    L3:0=fffff\n"),
            ("tasks", ""),
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\n"),
            ("info/MB/bandwidth_gran", "10\n"),
            ("gold/schemata", SCHEMATA),
            ("gold/tasks", ""),
            ("gold/mon_data/mon_L3_00/llc_occupancy", "4096\n"),
        ] {
            let path = imitated.file(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        imitated
    }

    fn file(&self, name: &str) -> PathBuf {
        self.bundle.path("resctrl").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    /// A call that sees a mount of resctrl, by a mount table that is a file of the test's: in a mount namespace of its own it lies over that
    /// of the shell, which becomes the program.
    fn call(&self, args: &[&str]) -> Output {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let table = self.bundle.path("mountinfo");
        let line = format!("9999 1 0:99 / {} rw - resctrl resctrl rw\n", self.file("").display().to_string().trim_end_matches('/'));
        fs::write(&table, mounts + &line).unwrap();
        self.bundle.write();
        let script = "mount --bind \"$0\" /proc/$$/mountinfo && exec \"$@\"";
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(table);
        let call = self.bundle.command(args);
        // Not by pipes: the container would hold them.
        let output = ["out", "err"].map(|name| fs::File::create(self.bundle.path(name)).unwrap());
        let [stdout, stderr] = output;
        let status =
            shell.arg(call.get_program()).args(call.get_args()).stdin(Stdio::null()).stdout(stdout).stderr(stderr).status().unwrap();
        let read = |name: &str| fs::read(self.bundle.path(name)).unwrap();
        Output { status, stdout: read("out"), stderr: read("err") }
    }

    fn create(&self) -> Result<(), String> {
        let output = self.call(&["create", "--bundle", self.bundle.path("").to_str().unwrap(), &self.bundle.id]);
        if output.status.success() { Ok(()) } else { Err(String::from_utf8(output.stderr).unwrap()) }
    }
}

#[test]
fn a_container_lives_in_the_group_it_names() {
    let imitated = Imitated::new(json!({"closID":"gold"}));
    let Imitated { bundle } = &imitated;
    imitated.create().unwrap();
    // The container's process wrote it, and moved itself.
    assert_eq!(imitated.read("gold/tasks"), "0");
    assert_eq!(imitated.read("tasks"), "");
    bundle.ok(&["start", &bundle.id]);
    fs::write(imitated.file("gold/tasks"), "").unwrap();
    assert_eq!(bundle.ok(&["exec", &bundle.id, "echo", "in"]), "in\n");
    assert_eq!(imitated.read("gold/tasks"), "0");

    let stats: Value = serde_json::from_str(&bundle.ok(&["events", "--stats", &bundle.id])).unwrap();
    let expected = json!({"l3_cache_info":{"cbm_mask":"fffff"},"mem_bw_info":{"bandwidth_gran":10},"l3_cache_schema_root":"L3:0=fffff",
        "l3_cache_schema":"L3:0=000ff","mem_bw_schema_root":"MB:0=100","mem_bw_schema":"MB:0=100","cmt_stats":[{"llc_occupancy":4096}]});
    assert_eq!(stats["data"]["intel_rdt"], expected);

    bundle.ok(&["update", "--l3-cache-schema", "L3:0=0000000000000000000f", "--pids-limit", "50", &bundle.id]);
    assert!(imitated.read("gold/schemata").starts_with("L3:0=0000000000000000000f\n"));
    assert_eq!(bundle.cgroup_file(&["pids.max"]), "50");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    eventually("stopped", || (bundle.status() == "stopped").then_some(()));
    bundle.ok(&["delete", &bundle.id]);
    assert!(imitated.file("gold").exists(), "another made it");
    bundle.assert_nothing_is_left();
}

#[test]
fn what_a_group_does_not_have_is_refused_and_nothing_is_left() {
    let cases = [
        (json!({"closID":"nosuch"}), "linux.intelRdt.closID: there is no group"),
        (json!({"closID":"gold","l3CacheSchema":"L3:0=f"}), "linux.intelRdt.closID: the group"),
        (json!({"closID":"gold","schemata":["MB:0=50"]}), "has other schemata than \"MB:0=50\""),
        (json!({"closID":"gold","enableMBM":true}), "linux.intelRdt.enableMBM: this machine cannot monitor that"),
        (json!({"closID":"a/b"}), "linux.intelRdt.closID: \"a/b\""),
        // There is a directory, which no kernel filled.
        (json!({"closID":"info/.."}), "linux.intelRdt.closID: \"info/..\""),
    ];
    for (rdt, expected) in cases {
        let imitated = Imitated::new(rdt.clone());
        let error = imitated.create().unwrap_err();
        assert!(error.contains(expected), "{rdt}: {error}");
        assert_eq!((imitated.read("gold/schemata").as_str(), imitated.read("gold/tasks").as_str()), (SCHEMATA, ""));
        imitated.bundle.assert_nothing_is_left();
    }
    let same = Imitated::new(json!({"closID":"gold","l3CacheSchema":"L3:0=0xff","memBwSchema":"MB:0=95"}));
    same.create().unwrap();
    assert_eq!(same.read("gold/schemata"), SCHEMATA);
}

/// The group is made and, as no kernel fills it, cannot be used: it goes again with all else.
#[test]
fn a_group_that_cannot_be_used_is_undone() {
    for rdt in [json!({"schemata":["L3:0=f"]}), json!({"closID":"silver","l3CacheSchema":"L3:0=f"}), json!({})] {
        let imitated = Imitated::new(rdt);
        let error = imitated.create().unwrap_err();
        assert!(error.contains("linux.intelRdt: open ") && error.contains("No such file"), "{error}");
        let left: Vec<_> = fs::read_dir(imitated.file("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 4, "{left:?}");
        imitated.bundle.assert_nothing_is_left();
    }
}

#[test]
fn without_a_group_there_is_nothing_to_update() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create();
    let error = bundle.fails(&["update", "--l3-cache-schema", "L3:0=f", "--pids-limit", "50", &bundle.id]);
    assert!(error.contains("was created without linux.intelRdt"), "{error}");
    assert_ne!(bundle.cgroup_file(&["pids.max"]), "50");
}

#[test]
fn features_tell_of_it() {
    let features: Value = serde_json::from_str(&Bundle::new("true").ok(&["features"])).unwrap();
    assert_eq!(features["linux"]["intelRdt"], json!({"enabled":true,"schemata":true,"monitoring":true}));
}
