//! The same bundles under this runtime and under runc, which must agree.

mod common;

use common::{Bundle, tool};
use serde_json::json;

/// Runs a bundle under both; `None` when runc is not installed, which is told.
fn both(bundle: &Bundle) -> Option<[(String, i32); 2]> {
    let Some(runc) = tool("runc") else {
        let loud = std::io::stderr();
        std::io::Write::write_all(&mut loud.lock(), b"SKIPPED: runc is not installed: apt-get install runc\n").unwrap();
        return None;
    };
    let (stdout, stderr, code) = bundle.run();
    assert!(stderr.is_empty(), "{stderr}");
    let root = bundle.path("runc");
    let mut command = std::process::Command::new(runc);
    command.arg("--root").arg(root).args(["run", "--bundle"]).arg(bundle.path("")).arg(&bundle.id);
    let output = command.output().unwrap();
    Some([(stdout, code), (String::from_utf8(output.stdout).unwrap().trim_end().to_owned(), output.status.code().unwrap())])
}

fn agree(bundle: &Bundle) {
    if let Some([ours, theirs]) = both(bundle) {
        assert_eq!(ours, theirs);
        assert!(!ours.0.is_empty(), "nothing was compared");
    }
}

#[test]
fn identity_limits_and_privileges() {
    let mut bundle = Bundle::new(
        "id; umask; pwd; hostname; env | sort; grep -E '^(Cap|NoNew|Uid|Gid|Groups|SigBlk|SigPnd|SigCgt|Shd)' /proc/self/status; cat /proc/self/limits; exit 9",
    );
    let set = json!(["CAP_KILL", "CAP_CHOWN"]);
    bundle.set("/process/user", json!({"uid":33,"gid":34,"additionalGids":[5]})).set("/process/cwd", json!("/bin"));
    bundle.set("/process/capabilities", json!({"bounding":set,"effective":set,"permitted":set,"inheritable":set,"ambient":set}));
    agree(&bundle);
}

#[test]
fn the_look_of_dev_and_proc() {
    let bundle = Bundle::new(
        "cd /dev; stat -c '%n %F %t:%T %a %u:%g' null zero full random urandom tty pts shm mqueue fd ptmx stdin; readlink fd; \
         ls /proc/sys/kernel/hostname /proc/kcore 2>/dev/null; cat /proc/kcore 2>/dev/null | wc -c; ls -A /sys/firmware | wc -l; cat /proc/self/sessionid",
    );
    agree(&bundle);
}

#[test]
fn mounts_in_order_with_their_options() {
    let mut bundle = Bundle::new("grep -v -E ' (/|/proc/[a-z_]+|/sys/firmware|/sys/devices.*|/sys/fs/cgroup.*) ' /proc/self/mounts");
    bundle.push("/mounts", json!({"destination":"/t","source":"tmpfs","type":"tmpfs","options":["size=64k","nosuid","noexec","ro"]}));
    bundle.push("/mounts", json!({"destination":"/b","source":"rootfs/bin","type":"bind","options":["rbind","ro","nodev"]}));
    agree(&bundle);
}

#[test]
fn exit_by_signal() {
    let mut bundle = Bundle::new("echo dying; kill -15 $$; sleep 1");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    agree(&bundle);
}

#[test]
fn a_user_namespace() {
    let mut bundle = Bundle::new(
        "id; cat /proc/self/uid_map /proc/self/gid_map; grep -E '^(Cap|NoNew|Uid|Gid|Groups)' /proc/self/status; cd /dev; \
         stat -c '%n %F %t:%T' null zero full random urandom tty pts shm mqueue fd ptmx; \
         grep -v -E ' (/|/proc/.*|/dev/.*|/sys/.*) ' /proc/self/mounts; cat /proc/self/limits | grep -i files",
    );
    bundle.push("/linux/namespaces", json!({"type":"user"}));
    let ids = json!([{"containerID":0,"hostID":100_000,"size":1000}]);
    bundle.set("/linux/uidMappings", ids.clone()).set("/linux/gidMappings", ids);
    bundle.set("/process/user", json!({"uid":33,"gid":34,"additionalGids":[5]}));
    // runc reaches the root as the mapped user.
    std::fs::set_permissions(bundle.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for dir in ["proc", "dev", "sys"] {
        std::fs::create_dir_all(bundle.rootfs(dir)).unwrap();
    }
    agree(&bundle);
}
