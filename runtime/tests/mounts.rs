//! Mount options: attributes of one mount and of all below it, propagation, mapped ids, copies of what is covered, changes of what is there.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::host_mount::HostMount;
use common::{Bundle, eventually, tool};
use serde_json::{Value, json};

fn bind(bundle: &mut Bundle, source: &Path, options: &[&str]) {
    bundle.push("/mounts", json!({"destination":"/m","source":source,"type":"bind","options":options}));
}

/// The capabilities to mount, and nothing that hides whether it works.
fn may_mount(bundle: &mut Bundle) {
    let set = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_CHOWN"]);
    bundle.set("/process/capabilities", json!({"bounding":set,"effective":set,"permitted":set,"inheritable":set}));
    bundle.set("/root/readonly", json!(false));
}

fn options_of(bundle: &Bundle) -> Vec<String> {
    bundle.prints().lines().map(|line| line.split(' ').nth(3).unwrap().to_owned()).collect()
}

#[test]
fn attributes_of_one_mount_and_of_all_below() {
    let mut bundle = Bundle::new("grep ' /m' /proc/self/mounts");
    let host = HostMount::new(bundle.path("host"), "private");
    let cases = [
        ("ro", "rro"),
        ("nosuid", "rnosuid"),
        ("nodev", "rnodev"),
        ("noexec", "rnoexec"),
        ("noatime", "rnoatime"),
        ("nodiratime", "rnodiratime"),
        ("nosymfollow", "rnosymfollow"),
    ];
    bind(&mut bundle, &host.0, &[]);
    let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
    for (one, all) in cases {
        for (option, below) in [(one, false), (all, true)] {
            bundle.config["mounts"][last]["options"] = json!(["rbind", option]);
            let options = options_of(&bundle);
            let has = |options: &str| options.split(',').any(|other| other == one);
            assert_eq!((options.len(), has(&options[0]), has(&options[1])), (2, true, below), "{option}: {options:?}");
        }
    }
    // The other way round, and the two together.
    for (one, all) in [
        ("nosuid", "rsuid"),
        ("nodev", "rdev"),
        ("noexec", "rexec"),
        ("ro", "rrw"),
        ("noatime", "ratime"),
        ("nodiratime", "rdiratime"),
        ("nosymfollow", "rsymfollow"),
        ("noatime", "rstrictatime"),
        ("noatime", "rrelatime"),
        ("noatime", "rnorelatime"),
        ("noatime", "rnostrictatime"),
    ] {
        let set = if one == "ro" { "remount,bind,ro".to_owned() } else { format!("remount,bind,{one}") };
        host.call(&["-o", &set, host.0.join("below").to_str().unwrap()]);
        bundle.config["mounts"][last]["options"] = json!(["rbind", all]);
        let options = options_of(&bundle);
        assert!(!options[1].split(',').any(|other| other == one), "{all}: {options:?}");
    }
}

/// As runc reads them: the same mounts with every pair of an option and its opposite.
#[test]
fn options_look_as_under_runc() {
    let Some(runc) = tool("runc") else { return };
    let mut bundle = Bundle::new("grep ' /t' /proc/self/mounts");
    let options = [
        "async",
        "atime",
        "dev",
        "diratime",
        "dirsync",
        "exec",
        "lazytime",
        "loud",
        "mand",
        "noatime",
        "nodev",
        "nodiratime",
        "noexec",
        "nolazytime",
        "nomand",
        "norelatime",
        "nostrictatime",
        "nosuid",
        "nosymfollow",
        "relatime",
        "ro",
        "rw",
        "silent",
        "strictatime",
        "suid",
        "symfollow",
        "sync",
        "noiversion",
        "noacl",
    ];
    for (index, option) in options.iter().enumerate() {
        bundle
            .push("/mounts", json!({"destination":format!("/t{index:02}"),"source":"tmpfs","type":"tmpfs","options":["size=64k",option]}));
    }
    bundle.set("/root/readonly", json!(false));
    let ours = bundle.prints();
    let mut command = Command::new(runc);
    let output =
        command.arg("--root").arg(bundle.path("runc")).args(["run", "--bundle"]).arg(bundle.path("")).arg(&bundle.id).output().unwrap();
    let theirs = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(ours.lines().count(), options.len());
    for (index, (ours, theirs)) in ours.lines().zip(theirs.lines()).enumerate() {
        assert_eq!(ours, theirs, "{}", options[index]);
    }
}

#[test]
fn a_shared_mount_shows_the_host_what_is_mounted_in_it() {
    for (options, propagation, seen) in [
        (["rbind", "rshared"], "rshared", true),
        (["rbind", "rshared"], "rslave", false),
        (["rbind", "rslave"], "rprivate", false),
        (["rbind", "rprivate"], "rshared", false),
    ] {
        let mut bundle = Bundle::new("mkdir -p /m/in && mount -t tmpfs tmpfs /m/in && touch /m/in/made && sleep 1000");
        may_mount(&mut bundle);
        let host = HostMount::new(bundle.path("host"), "shared");
        bind(&mut bundle, &host.0, &options);
        bundle.set("/linux/rootfsPropagation", json!(propagation));
        bundle.create();
        bundle.ok(&["start", &bundle.id]);
        let root = PathBuf::from(format!("/proc/{}/root/m", bundle.pid()));
        eventually("the mount", || root.join("in/made").exists().then_some(()));
        assert_eq!(host.0.join("in/made").exists(), seen, "{options:?}");
        fs::create_dir(host.0.join("out")).unwrap();
        host.tmpfs("out");
        fs::write(host.0.join("out/made"), "").unwrap();
        // Propagation is done when mount(2) returns.
        assert_eq!(root.join("out/made").exists(), options[1] != "rprivate", "{options:?}");
        bundle.ok(&["delete", "--force", &bundle.id]);
        drop(host);
    }
}

#[test]
fn a_user_namespace_shows_the_host_nothing() {
    let mut bundle = Bundle::new("mkdir -p /m/in && mount -t tmpfs tmpfs /m/in && touch /m/in/made && sleep 1000");
    may_mount(&mut bundle);
    bundle.push("/linux/namespaces", json!({"type":"user"}));
    let ids = json!([{"containerID":0,"hostID":0,"size":65536}]);
    bundle.set("/linux/uidMappings", ids.clone()).set("/linux/gidMappings", ids).set("/linux/rootfsPropagation", json!("rshared"));
    let host = HostMount::new(bundle.path("host"), "shared");
    bind(&mut bundle, &host.0, &["rbind", "rshared"]);
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let root = PathBuf::from(format!("/proc/{}/root/m", bundle.pid()));
    eventually("the mount", || root.join("in/made").exists().then_some(()));
    assert!(!host.0.join("in/made").exists());
    bundle.ok(&["delete", "--force", &bundle.id]);
}

/// mountinfo's optional fields of a mount (proc_pid_mountinfo(5)): letters only, the groups' numbers are the kernel's.
fn propagation(mountinfo: &str, at: &str) -> String {
    let line = mountinfo.lines().find(|line| line.split(' ').nth(4) == Some(at)).unwrap_or_else(|| panic!("{at}: {mountinfo}"));
    let (mount, _) = line.split_once(" - ").unwrap();
    mount
        .split(' ')
        .skip(6)
        .map(|field| field.split(':').next().unwrap())
        .filter(|name| *name != "propagate_from")
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn the_roots_propagation() {
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    let host = HostMount::new(bundle.path("host"), "shared");
    let cases = [
        ("private", "", "master"),
        ("rprivate", "", ""),
        ("shared", "shared", "master"),
        ("rshared", "shared", "shared master"),
        ("unbindable", "unbindable", "master"),
        ("runbindable", "unbindable", "unbindable"),
    ];
    bind(&mut bundle, &host.0, &["rbind"]);
    for (given, root, mount) in cases {
        bundle.set("/linux/rootfsPropagation", json!(given));
        let printed = bundle.prints();
        assert_eq!(propagation(&printed, "/"), root, "{given}");
        let expected = if given == "private" { "" } else { mount };
        assert_eq!(propagation(&printed, "/m"), expected, "{given}");
        assert_eq!(propagation(&printed, "/m/below"), expected, "{given}");
    }
    for given in ["slave", "rslave"] {
        bundle.set("/linux/rootfsPropagation", json!(given));
        let printed = bundle.prints();
        assert!(!propagation(&printed, "/").contains("shared"), "{given}");
        assert_eq!(propagation(&printed, "/m"), "master", "{given}");
    }
    // What a mount says itself counts for it; shared with the host's it is only if the root is shared too.
    let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
    for (option, expected) in
        [("private", ["", "master"]), ("rshared", ["shared master", "shared master"]), ("unbindable", ["unbindable", "master"])]
    {
        bundle.set("/linux/rootfsPropagation", json!("rslave"));
        bundle.config["mounts"][last]["options"] = json!(["rbind", option]);
        let printed = bundle.prints();
        assert_eq!([propagation(&printed, "/m"), propagation(&printed, "/m/below")], expected, "{option}");
    }
}

fn ids(first: u32) -> Value {
    json!([{"containerID":0,"hostID":first,"size":1000}])
}

#[test]
fn ids_of_a_mount_are_mapped() {
    let mut bundle = Bundle::new("stat -c %u:%g /m/file /m/below/file; touch /m/new");
    let host = HostMount::new(bundle.path("host"), "private");
    fs::write(host.0.join("file"), "").unwrap();
    chown(host.0.join("file"), Some(7), Some(8)).unwrap();
    chown(host.0.join("below/file"), Some(7), Some(8)).unwrap();
    bundle.set("/process/user", json!({"uid":5000,"gid":6000}));
    for (options, below) in [(["rbind"].as_slice(), "7:8"), (&["rbind", "idmap"], "7:8"), (&["rbind", "ridmap"], "5007:6008")] {
        let mut mapped = json!({"destination":"/m","source":"host","type":"bind","options":options});
        mapped["uidMappings"] = ids(5000);
        mapped["gidMappings"] = ids(6000);
        bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/m");
        bundle.push("/mounts", mapped);
        chown(&host.0, Some(0), Some(0)).unwrap();
        assert_eq!(bundle.prints(), format!("5007:6008\n{below}"), "{options:?}");
        let made = fs::metadata(host.0.join("new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0));
    }
}

#[test]
fn ids_are_mapped_as_by_the_containers_user_namespace() {
    let mut bundle = Bundle::new("stat -c %u:%g /m /m/file; touch /m/new");
    bundle.push("/linux/namespaces", json!({"type":"user"}));
    bundle.set("/linux/uidMappings", ids(100_000)).set("/linux/gidMappings", ids(100_000));
    bundle.give_rootfs(100_000);
    fs::create_dir(bundle.path("volume")).unwrap();
    fs::write(bundle.path("volume/file"), "").unwrap();
    chown(bundle.path("volume/file"), Some(7), Some(8)).unwrap();
    bind(&mut bundle, Path::new("volume"), &["bind"]);
    let last = bundle.config["mounts"].as_array().unwrap().len() - 1;
    // Unmapped, the host's files are nobody's.
    let (stdout, _, code) = bundle.run();
    assert_eq!((stdout.as_str(), code), ("65534:65534\n65534:65534", 1));
    bundle.config["mounts"][last]["options"] = json!(["bind", "idmap"]);
    assert_eq!(bundle.prints(), "0:0\n7:8");
    assert_eq!(fs::metadata(bundle.path("volume/new")).unwrap().uid(), 0);
}

#[test]
fn a_mapping_the_file_system_does_not_allow_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    bundle.push(
        "/mounts",
        json!({"destination":"/m","source":"/proc/self","type":"bind","options":["bind"],"uidMappings":ids(1),"gidMappings":ids(1)}),
    );
    let error = bundle.create_fails();
    assert!(error.contains("mounts[7].uidMappings: map the ids of /proc/self (its file system must allow it)"), "{error}");
}

#[test]
fn what_a_tmpfs_covers_is_copied_into_it() {
    let mut bundle = Bundle::new(
        "cd /m; stat -c '%n %F %a %u:%g %Y' . file dir dir/deep fifo; readlink link; cat file dir/deep; echo more > file; grep -c ' /m tmpfs ' /proc/self/mounts",
    );
    let at = bundle.rootfs("m");
    fs::create_dir_all(at.join("dir")).unwrap();
    fs::write(at.join("file"), "file\n").unwrap();
    fs::write(at.join("dir/deep"), "deep\n").unwrap();
    symlink("/nowhere", at.join("link")).unwrap();
    assert!(Command::new("mkfifo").arg(at.join("fifo")).status().unwrap().success());
    for (name, mode, owner) in
        [("file", "4755", "7:8"), ("dir/deep", "600", "9:9"), ("dir", "1770", "7:8"), ("fifo", "640", "3:4"), ("", "711", "0:5")]
    {
        let path = at.join(name);
        assert!(Command::new("chown").arg(owner).arg(&path).status().unwrap().success());
        assert!(Command::new("chmod").arg(mode).arg(&path).status().unwrap().success());
        assert!(Command::new("touch").args(["-d", "@1000000000"]).arg(&path).status().unwrap().success());
    }
    bundle.push("/mounts", json!({"destination":"/m","source":"tmpfs","type":"tmpfs","options":["tmpcopyup"]}));
    let set = json!(["CAP_DAC_OVERRIDE"]);
    bundle.set("/process/capabilities", json!({"bounding":set,"effective":set,"permitted":set}));
    let expected = ". directory 711 0:5 1000000000\nfile regular file 4755 7:8 1000000000\ndir directory 1770 7:8 1000000000\n\
        dir/deep regular file 600 9:9 1000000000\nfifo fifo 640 3:4 1000000000\n/nowhere\nfile\ndeep\n1";
    assert_eq!(bundle.prints(), expected);
    assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "file\n");
}

#[test]
fn a_mount_that_is_there_is_changed() {
    let mut bundle = Bundle::new("grep ' /t ' /proc/self/mounts");
    bundle.push("/mounts", json!({"destination":"/t","source":"tmpfs","type":"tmpfs","options":["nosuid","size=64k"]}));
    bundle.push("/mounts", json!({"destination":"/t","source":"tmpfs","type":"tmpfs","options":["remount","noexec","size=128k"]}));
    let options = options_of(&bundle).remove(0);
    assert!(options.contains("noexec") && options.contains("size=128k") && !options.contains("nosuid"), "{options}");
    bundle.push("/mounts", json!({"destination":"/t","type":"bind","options":["remount","bind","ro"]}));
    let options = options_of(&bundle).remove(0);
    assert!(options.starts_with("ro,") && !options.contains("noexec"), "{options}");
    bundle.push("/mounts", json!({"destination":"/bin","type":"bind","options":["remount","bind","ro"]}));
    assert!(bundle.create_fails().contains("mounts[10]: change the mount at /bin ro: is a mount there to be changed?"));
}

#[test]
fn a_relative_destination_counts_from_the_root() {
    let mut bundle = Bundle::new("cat /deep/down/hostname");
    fs::create_dir(bundle.path("source")).unwrap();
    fs::write(bundle.path("source/hostname"), "here\n").unwrap();
    bundle.set("/process/cwd", json!("/bin"));
    bundle.push("/mounts", json!({"destination":"deep/./down","source":"source","type":"bind","options":["bind"]}));
    assert_eq!(bundle.prints(), "here");
}

#[test]
fn what_a_file_system_does_not_know_is_told() {
    let mut bundle = Bundle::new("true");
    bundle.push("/mounts", json!({"destination":"/t","source":"tmpfs","type":"tmpfs","options":["iversion"]}));
    let (_, stderr, code) = bundle.run();
    assert!(code == 0 && stderr.contains("tmpfs knows no option iversion: left as it is"), "{stderr}");
    bundle.push("/mounts", json!({"destination":"/u","source":"tmpfs","type":"tmpfs","options":["nonsense"]}));
    assert!(bundle.create_fails().contains("nonsense"));
}
