//! `mounts`, `root` and propagation.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::process::Command;

use serde_json::{Value, json};

use crate::common::Bundle;
use crate::common::host_mount::HostMount;
use crate::engine::{Case, check, check_prepared, refused, same};

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"/mounts/+":[{"destination":destination,"type":kind,"source":source,"options":options}]})
}

const SEEN: &str = "grep -E ' /(t|m)(/[^ ]*)? ' /proc/self/mounts; stat -c '%F %a %u:%g' /t";

#[test]
fn types_and_data() {
    check([
        same("tmpfs", mount("/t", "tmpfs", "tmpfs", &["size=64k", "mode=1750", "uid=7", "gid=8", "nr_inodes=50"]), SEEN),
        same("its name", mount("/t", "tmpfs", "anything", &["size=64k"]), SEEN),
        same("proc", mount("/t", "proc", "proc", &["nosuid"]), "grep ' /t ' /proc/self/mounts; cat /t/1/comm"),
        same("sysfs", mount("/t", "sysfs", "sysfs", &["ro"]), SEEN),
        same("devpts", mount("/t", "devpts", "devpts", &["newinstance", "ptmxmode=0666", "mode=0600"]), SEEN),
        same("mqueue", mount("/t", "mqueue", "mqueue", &["nosuid"]), SEEN),
        same("deep", mount("/t/deep/down", "tmpfs", "tmpfs", &["size=64k"]), SEEN),
        same("what it does not know", mount("/t", "tmpfs", "tmpfs", &["iversion", "acl", "size=64k"]), SEEN),
        refused("unknown type", mount("/t", "nosuchfs", "x", &[]), "mounts[7]"),
        refused("unknown data", mount("/t", "tmpfs", "tmpfs", &["nonsense"]), "mounts[7]"),
        refused("a value the file system refuses", mount("/t", "tmpfs", "tmpfs", &["size=much"]), "mounts[7]"),
        refused("no destination", json!({"/mounts/+":[{"type":"tmpfs","source":"tmpfs"}]}), "mounts[7]: missing field `destination`"),
    ]);
}

fn files(bundle: &mut Bundle) {
    fs::create_dir(bundle.path("dir")).unwrap();
    fs::write(bundle.path("dir/file"), "file\n").unwrap();
    fs::write(bundle.path("file"), "one\n").unwrap();
    fs::create_dir(bundle.rootfs("there")).unwrap();
    fs::write(bundle.rootfs("plain"), "").unwrap();
    symlink("../made", bundle.rootfs("there/link")).unwrap();
    symlink("/there/link", bundle.rootfs("link")).unwrap();
}

#[test]
fn binds() {
    let look = "grep ' /[mt]' /proc/self/mounts; cat /m /m/file 2>/dev/null; stat -c '%F %a %u:%g' /m";
    check_prepared(
        files,
        [
            same("a directory", mount("/m", "bind", "dir", &["bind"]), look),
            same("a file", mount("/m", "bind", "file", &["bind", "ro"]), look),
            same("by the option alone", mount("/m", "none", "dir", &["bind"]), look),
            same("all below", mount("/m", "bind", "dir", &["rbind", "ro", "nosuid", "nodev", "noexec"]), look),
            same("a relative destination", mount("m", "bind", "dir", &["bind"]), look),
            same("dots in the destination", mount("/there/../m/./x", "bind", "dir", &["bind"]), "cat /m/x/file"),
            same("over a link", mount("/there/link", "bind", "dir", &["bind"]), "cat /made/file"),
            same("over a link to a link", mount("/link", "bind", "dir", &["bind"]), "cat /made/file"),
            same("climbing links stay inside", mount("/../../m", "bind", "dir", &["bind"]), look),
            same(
                "in order",
                json!({"/mounts/+":[
            {"destination":"/t","type":"tmpfs","source":"tmpfs","options":["size=64k"]},
            {"destination":"/t/m","type":"bind","source":"dir","options":["bind"]},
            {"destination":"/t/m/file","type":"bind","source":"file","options":["bind"]}]}),
                "cat /t/m/file; grep ' /t' /proc/self/mounts",
            ),
            refused("no such source", mount("/m", "bind", "nosuch", &["bind"]), "mounts[7].source"),
            refused("a directory over a file", mount("/plain", "bind", "dir", &["bind"]), "mounts[7]"),
            refused("a file over a directory", mount("/there", "bind", "file", &["bind"]), "mounts[7]"),
        ],
    );
}

/// `rro` and its like, but for `ratime` and `rnostrictatime`, with which runc 1.1.5 fails.
#[test]
fn attributes_of_all_below() {
    let options = [
        "rro",
        "rrw",
        "rnosuid",
        "rsuid",
        "rnodev",
        "rdev",
        "rnoexec",
        "rexec",
        "rnodiratime",
        "rdiratime",
        "rrelatime",
        "rnorelatime",
        "rnoatime",
        "rnosymfollow",
        "rsymfollow",
        "rstrictatime",
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
    ];
    check_prepared(
        |bundle| HostMount::new(bundle.path("host"), "private"),
        options.map(|option| same(option, mount("/m", "bind", "host", &["rbind", option]), SEEN)),
    );
}

/// Where each mount's events come from and go to (proc_pid_mountinfo(5)), without the kernel's numbers.
const PROPAGATION: &str = "busybox awk '{o = \"\"; for (i = 7; $i != \"-\"; i++) { split($i, p, \":\"); \
    if (p[1] != \"propagate_from\") o = o \" \" p[1] }; print $5 o}' /proc/self/mountinfo | grep -E '^(/|/m|/m/below)( |$)' | sort";

#[test]
fn propagation() {
    let mut cases = Vec::<Case>::new();
    for root in ["rprivate", "rslave"] {
        let mut edits = mount("/m", "bind", "host", &["rbind"]);
        edits["/linux/rootfsPropagation"] = json!(root);
        cases.push(same(root, edits, PROPAGATION));
    }
    for option in ["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"] {
        cases.push(same(option, mount("/m", "bind", "host", &["rbind", option]), PROPAGATION));
    }
    // As Docker asks for a shared volume; of the root itself the two think differently.
    let mut shown = mount("/m", "bind", "host", &["rbind", "rshared"]);
    shown["/linux/rootfsPropagation"] = json!("rshared");
    cases.push(same(
        "shown to the host",
        shown,
        "grep ' /m' /proc/self/mountinfo | grep -c shared; grep ' /m' /proc/self/mountinfo | grep -c master",
    ));
    check_prepared(|bundle| HostMount::new(bundle.path("host"), "shared"), cases);
    check([refused("unknown", json!({"/linux/rootfsPropagation":"sideways"}), "linux.rootfsPropagation")]);
}

#[test]
fn copies_of_what_a_tmpfs_covers() {
    let prepare = |bundle: &mut Bundle| {
        let at = bundle.rootfs("t");
        fs::create_dir_all(at.join("dir")).unwrap();
        for (name, text) in [("file", "file\n"), ("dir/deep", "deep\n")] {
            fs::write(at.join(name), text).unwrap();
        }
        symlink("file", at.join("link")).unwrap();
        chown(at.join("file"), Some(7), Some(8)).unwrap();
        assert!(Command::new("chmod").arg("4711").arg(at.join("file")).status().unwrap().success());
    };
    let look =
        "cd /t; stat -c '%n %F %a %u:%g' file dir dir/deep link; readlink link; cat file dir/deep; grep -c ' /t tmpfs' /proc/self/mounts";
    check_prepared(prepare, [same("tmpcopyup", mount("/t", "tmpfs", "tmpfs", &["tmpcopyup"]), look)]);
}

#[test]
fn changes_of_a_mount() {
    let twice = |first: Value, then: Value| {
        let mut edits = first;
        let then = then["/mounts/+"][0].clone();
        edits["/mounts/+"].as_array_mut().unwrap().push(then);
        edits
    };
    check_prepared(
        files,
        [
            same(
                "a bound one",
                twice(mount("/m", "bind", "dir", &["bind", "nosuid"]), mount("/m", "bind", "dir", &["bind", "remount", "ro", "nodev"])),
                "grep ' /m ' /proc/self/mounts",
            ),
            same(
                "a file system",
                twice(mount("/t", "tmpfs", "tmpfs", &["size=64k"]), mount("/t", "tmpfs", "tmpfs", &["remount", "size=128k", "noexec"])),
                "grep ' /t ' /proc/self/mounts",
            ),
            refused("nothing to change", mount("/bin", "bind", "", &["bind", "remount", "ro"]), "mounts[7]"),
        ],
    );
}

#[test]
fn the_root() {
    let look = "touch /new 2>&1; mkdir /dir 2>&1; ls -d /new /dir 2>&1; grep ' / ' /proc/self/mounts | grep -c -E '[ ,]ro[ ,]'";
    check([
        same("read-only", json!({"/root/readonly":true}), look),
        same("writable", json!({"/root/readonly":false}), look),
        same("unsaid", json!({"/root/readonly":null}), look),
        refused("no such directory", json!({"/root/path":"nosuch"}), "root.path"),
        refused("a file", json!({"/root/path":"config.json"}), "root.path"),
        refused("no path", json!({"/root/path":null}), "root: missing field `path`"),
        refused("no root", json!({"/root":null}), "root"),
    ]);
    check_prepared(
        |bundle| {
            bundle.set("/root/path", json!(bundle.path("rootfs")));
        },
        [same("absolute", json!({}), "ls /")],
    );
}
