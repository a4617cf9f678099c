//! Images and volumes that are made to lead the runtime astray, by the classes of what befell others.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::Bundle;
use rustix::fs::{CWD, RenameFlags};
use serde_json::json;

/// CVE-2025-31133: what masks a path must be the kernel's null device, and not what the image has at its name.
#[test]
fn no_null_device_of_the_images_masks_a_path() {
    let masked = || {
        let mut bundle = Bundle::new("wc -c </secret; ls /dev/null >/dev/null && echo there");
        fs::write(bundle.rootfs("secret"), "secret").unwrap();
        fs::write(bundle.rootfs("decoy"), "decoy").unwrap();
        bundle.push("/linux/maskedPaths", json!("/secret"));
        bundle
    };
    let bundle = masked();
    fs::create_dir(bundle.rootfs("elsewhere")).unwrap();
    symlink("/elsewhere", bundle.rootfs("dev")).unwrap();
    assert_eq!(bundle.prints(), "0\nthere");

    for swap in [
        |root: &std::path::Path| symlink("/decoy", root.join("dev/null")),
        |root: &std::path::Path| fs::write(root.join("dev/null"), "decoy"),
    ] {
        let mut bundle = masked();
        bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        bundle.set("/root/readonly", json!(false));
        fs::create_dir(bundle.rootfs("dev")).unwrap();
        swap(&bundle.rootfs("")).unwrap();
        let error = bundle.create_fails();
        assert!(error.contains("/dev/null") && error.contains("something else is there"), "{error}");
        assert_eq!(fs::read_to_string(bundle.rootfs("decoy")).unwrap(), "decoy");
    }
}

/// CVE-2019-16884, CVE-2025-52881: what is written to procfs must reach procfs, whatever a volume puts in its place.
#[test]
fn nothing_is_written_to_a_volume_instead_of_procfs() {
    let mut bundle = Bundle::new("sleep 1000");
    let decoys =
        ["sys/net/ipv4/ip_unprivileged_port_start", "self/oom_score_adj", "self/attr/exec", "self/uid_map", "thread-self/attr/exec"];
    for decoy in decoys {
        let path = bundle.path("volume").join(decoy);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "decoy").unwrap();
    }
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
    bundle.push("/mounts", json!({"destination":"/proc","source":"volume","options":["bind"]}));
    bundle.set("/process/oomScoreAdj", json!(7)).set("/linux/sysctl", json!({"net.ipv4.ip_unprivileged_port_start":"9"}));
    bundle.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
    bundle.create();
    for decoy in decoys {
        assert_eq!(fs::read_to_string(bundle.path("volume").join(decoy)).unwrap(), "decoy", "{decoy}");
    }
    let pid = bundle.pid();
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap(), "7\n");
    let mut inside = Command::new("nsenter");
    let seen =
        inside.args([&format!("--net=/proc/{pid}/ns/net"), "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]).output().unwrap();
    assert_eq!(String::from_utf8(seen.stdout).unwrap(), "9\n");
}

/// CVE-2021-30465, CVE-2024-45310: another container swaps a part of a mount's path for a link that leads out, all the time.
#[test]
fn nothing_is_made_outside_the_root_while_a_volume_changes() {
    let outside = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new("true");
    let volume = bundle.path("volume");
    fs::create_dir_all(volume.join("a")).unwrap();
    symlink(outside.path(), volume.join("b")).unwrap();
    bundle.push("/mounts", json!({"destination":"/volume","source":"volume","options":["bind"]}));
    let mounts = bundle.config["mounts"].clone();
    let done = AtomicBool::new(false);
    let exchange = || {
        let mut swaps = 0_u64;
        while !done.load(Ordering::Relaxed) {
            rustix::fs::renameat_with(CWD, volume.join("a"), CWD, volume.join("b"), RenameFlags::EXCHANGE).unwrap();
            swaps += 1;
        }
        swaps
    };
    std::thread::scope(|scope| {
        let swapping = scope.spawn(exchange);
        // A path that never comes to rest may be refused, but leads nowhere else.
        let round = |number| {
            // Names that are not there yet: they are to be made in what changes.
            bundle.set("/mounts", mounts.clone());
            bundle.push("/mounts", json!({"destination":format!("/volume/a/{number}/made/deep"),"type":"tmpfs","source":"t"}));
            bundle.push("/mounts", json!({"destination":format!("/volume/a/file-{number}"),"source":"config.json","options":["bind"]}));
            bundle.run().2
        };
        let ends: Vec<i32> = (0..100).map(round).collect();
        done.store(true, Ordering::Relaxed);
        assert!(swapping.join().unwrap() > 100 && ends.contains(&0), "{ends:?}");
    });
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "something was made outside the root");
    bundle.assert_nothing_is_left();
}
