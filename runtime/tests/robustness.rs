//! What is too large or absurd is refused by name, and whatever is killed at whatever moment, `delete --force` leaves nothing.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Bundle, eventually};
use serde_json::{Value, json};

#[test]
fn a_hundred_megabytes_of_json_are_refused() {
    let mut bundle = Bundle::new("sleep 1000");
    let large = format!("{{\"annotations\":{{\"a\":\"{}\"}}}}", "x".repeat(100 << 20));
    bundle.create();
    fs::write(bundle.path("large"), &large).unwrap();
    let path = bundle.path("large").to_str().unwrap().to_owned();
    // A device says that it has no length.
    for file in [path.as_str(), "/dev/zero"] {
        for args in [["exec", "--process", file], ["update", "--resources", file]] {
            let error = bundle.fails(&[args.as_slice(), &[&bundle.id]].concat());
            assert!(error.contains(args[1]) && error.contains("more than the limit"), "{error}");
        }
    }
    bundle.ok(&["delete", "--force", &bundle.id]);
    for file in [path.as_str(), "/dev/zero"] {
        fs::remove_file(bundle.path("config.json")).unwrap();
        symlink(file, bundle.path("config.json")).unwrap();
        let error = bundle.fails(&["create", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
        assert!(error.contains("config.json") && error.contains("more than the limit"), "{error}");
        bundle.assert_nothing_is_left();
    }
    fs::remove_file(bundle.path("config.json")).unwrap();
    // Within the limit, and deeper than any stack: below a field that is read, and below one that is ignored.
    for (field, open) in [("hooks", "{\"prestart\":"), ("nobody", "[")] {
        bundle.config[field] = json!("HERE");
        let deep = bundle.config.to_string().replace("\"HERE\"", &open.repeat(200_000));
        fs::write(bundle.path("config.json"), deep).unwrap();
        let error = bundle.fails(&["create", "--bundle", bundle.path("").to_str().unwrap(), &bundle.id]);
        assert!(error.contains("config.json"), "{error}");
        bundle.assert_nothing_is_left();
        bundle.config.as_object_mut().unwrap().remove(field);
    }
}

#[test]
fn absurd_numbers_are_refused_by_name() {
    let huge: Value = serde_json::from_str("1e400").unwrap_or_else(|_| json!(1e308));
    let cases = [
        ("/process/user/uid", json!(4_294_967_296_u64), "uid"),
        ("/process/user/gid", json!(-1), "gid"),
        ("/process/user/additionalGids", json!([1.5]), "additionalGids"),
        ("/process/user/umask", json!(99_999_999), "umask"),
        ("/process/oomScoreAdj", json!(1_000_000), "oomScoreAdj"),
        ("/process/rlimits", json!([{"type":"RLIMIT_NOFILE","soft":2,"hard":1}]), "rlimits"),
        ("/process/rlimits", json!([{"type":"RLIMIT_NOFILE","soft":-2,"hard":1}]), "rlimits"),
        ("/process/rlimits", json!([{"type":"RLIMIT_NOSUCH","soft":1,"hard":1}]), "rlimits"),
        ("/process/consoleSize", json!({"height":-1,"width":1}), "consoleSize"),
        ("/linux/resources/memory", json!({"limit":huge}), "memory"),
        ("/linux/resources/memory", json!({"limit":-9_223_372_036_854_775_808_i64}), "memory"),
        ("/linux/resources/memory", json!({"swappiness":9_999}), "swappiness"),
        ("/linux/resources/cpu", json!({"period":18_446_744_073_709_551_615_u64}), "cpu"),
        ("/linux/resources/cpu", json!({"quota":1}), "cpu"),
        ("/linux/resources/cpu", json!({"cpus":"0-99999999999999999999"}), "cpus"),
        ("/linux/resources/cpu", json!({"cpus":"3-1"}), "cpus"),
        ("/linux/resources/pids", json!({"limit":1e30}), "pids"),
        ("/linux/resources/devices", json!([{"allow":true,"type":"c","major":-7,"minor":1,"access":"rwm"}]), "devices"),
        ("/linux/devices", json!([{"path":"/dev/x","type":"c","major":4_294_967_296_u64,"minor":0}]), "devices"),
        ("/linux/timeOffsets", json!({"monotonic":{"secs":9_223_372_036_854_775_807_i64}}), "timeOffsets"),
        ("/hooks", json!({"prestart":[{"path":"/bin/true","timeout":-1}]}), "timeout"),
    ];
    for (pointer, value, field) in cases {
        let mut bundle = Bundle::new("true");
        bundle.set(pointer, value.clone());
        let error = bundle.create_fails();
        assert!(error.contains(field), "{pointer} {value}: {error}");
    }
}

#[test]
fn fifty_at_once_leave_nothing() {
    let lives = || {
        let bundle = Bundle::new("exit 4");
        for round in 0..20 {
            let (_, error, code) = bundle.run();
            assert_eq!(code, 4, "round {round}: {error}");
        }
        bundle.assert_nothing_is_left();
        assert_eq!(fs::read_dir(bundle.path("state")).unwrap().count(), 0);
    };
    std::thread::scope(|scope| (0..50).for_each(|_| drop(scope.spawn(lives))));
}

/// Numbers that look random (splitmix64), from a seed that a failure tells.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

fn children(pid: u32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Kills the program, or a process it has made by then.
fn kill_a_part(program: &mut Child, dice: &mut Dice) {
    let made = children(program.id());
    match made.get(usize::try_from(dice.roll(2)).unwrap()).and_then(|pid| rustix::process::Pid::from_raw(*pid)) {
        Some(pid) if dice.roll(2) == 0 => {
            // An error means that it has ended.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            if dice.roll(2) == 0 {
                program.kill().unwrap();
            }
        }
        _ => program.kill().unwrap(),
    }
}

fn killed_at_any_moment(seed: u64, rounds: u64) {
    let mut dice = Dice(seed);
    let bundle = Bundle::new("exec sleep 1000");
    bundle.write();
    let dir = bundle.path("").to_str().unwrap().to_owned();
    for round in 0..rounds {
        let (ready, args): (u8, Vec<&str>) = match dice.roll(6) {
            0 => (0, vec!["create", "--bundle", &dir, &bundle.id]),
            1 => (0, vec!["run", "--bundle", &dir, &bundle.id]),
            2 => (1, vec!["start", &bundle.id]),
            3 => (2, vec!["exec", &bundle.id, "sh", "-c", "sleep 1000 & sleep 1000"]),
            4 => (1, vec!["delete", "--force", &bundle.id]),
            _ => (2, vec!["delete", "--force", &bundle.id]),
        };
        if ready > 0 {
            bundle.create();
        }
        if ready > 1 {
            bundle.ok(&["start", &bundle.id]);
        }
        let mut program = bundle.command(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(dice.roll(25_000)));
        kill_a_part(&mut program, &mut dice);
        // Its own child may be what was killed: then it ends by itself or serves a container, which the deletion ends.
        let deleted = bundle.call(&["delete", "--force", &bundle.id]);
        let told = format!("seed {seed}, round {round}, {args:?}");
        assert!(deleted.status.success(), "{told}: {}", String::from_utf8_lossy(&deleted.stderr));
        eventually(&told, || program.try_wait().unwrap());
        // A program that lived on may have made its container after the deletion.
        bundle.ok(&["delete", "--force", &bundle.id]);
        eventually(&told, || bundle.nothing_is_left().then_some(()));
    }
}

/// The moments differ from run to run.
#[test]
fn whatever_is_killed_can_be_deleted() {
    let seed = u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos());
    std::thread::scope(|scope| (0..4).for_each(|thread| drop(scope.spawn(move || killed_at_any_moment(seed + thread, 60)))));
}
