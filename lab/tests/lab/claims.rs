//! One claim a function.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcluster_lab::{DaemonState, HostState, Lab, LogOptions, clean_leftovers, has_leftovers, up};

use crate::daemon::{AGENT_PORT, MANAGER_PORT, NETD_PORT};
use crate::support::{Bench, beats, eventually, host_pid, in_task, net_namespaces, of_lab, on, reaches, wait_alive};

type Claim = (&'static str, fn());

pub const ALL: [Claim; 16] = [
    ("up_and_down_leave_nothing", up_and_down_leave_nothing),
    ("a_power_cut_ends_everything_on_the_host", a_power_cut_ends_everything_on_the_host),
    ("a_host_boots_on_its_old_disk_with_empty_memory", a_host_boots_on_its_old_disk_with_empty_memory),
    ("a_paused_host_stands_still", a_paused_host_stands_still),
    ("the_power_of_a_paused_host_can_be_cut", the_power_of_a_paused_host_can_be_cut),
    ("a_host_that_is_cut_off_hears_nothing_and_nobody_is_told", a_host_that_is_cut_off_hears_nothing_and_nobody_is_told),
    ("two_hosts_are_cut_off_from_each_other_only", two_hosts_are_cut_off_from_each_other_only),
    ("cuts_last_over_a_power_cut", cuts_last_over_a_power_cut),
    ("one_daemon_is_killed_and_started", one_daemon_is_killed_and_started),
    ("commands_run_on_hosts_and_in_tasks", commands_run_on_hosts_and_in_tasks),
    ("images_are_loaded_once_before_the_agent_starts", images_are_loaded_once_before_the_agent_starts),
    ("a_lab_goes_with_its_owner", a_lab_goes_with_its_owner),
    ("a_lab_goes_with_the_command_that_makes_it", a_lab_goes_with_the_command_that_makes_it),
    ("what_a_killed_supervisor_leaves_is_removed", what_a_killed_supervisor_leaves_is_removed),
    ("a_name_is_taken_once_and_labs_do_not_meet", a_name_is_taken_once_and_labs_do_not_meet),
    ("what_cannot_be_made_is_refused_and_leaves_nothing", what_cannot_be_made_is_refused_and_leaves_nothing),
];

fn address(host: &str, port: u16) -> String {
    let number: u16 = host[1..].parse().unwrap();
    let base = if host.starts_with('m') { 10 } else { 100 };
    format!("10.90.0.{}:{port}", base + number)
}

fn up_and_down_leave_nothing() {
    let bench = Bench::new("whole");
    let lab = bench.up(3, 2);
    let status = lab.status().unwrap();
    let hosts: Vec<&str> = status.hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(hosts, ["m1", "m2", "m3", "n1", "n2"]);
    assert!(status.hosts.iter().all(|host| host.state == HostState::Up), "{status:?}");
    assert!(status.hosts.iter().flat_map(|host| &host.daemons).all(|daemon| daemon.state == DaemonState::Running), "{status:?}");
    assert_eq!(lab.managers().unwrap(), ["10.90.0.11:7443", "10.90.0.12:7443", "10.90.0.13:7443"]);
    let pids = status.hosts.iter().map(|host| host.init_pid).chain([status.supervisor_pid]);
    let namespaces: BTreeSet<PathBuf> = pids.map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap()).collect();
    assert_eq!(namespaces.len(), 6, "each host and the wire have a network of their own");
    lab.down().unwrap();
    bench.check_nothing_left();
    assert!(net_namespaces().is_disjoint(&namespaces));
    assert!(Lab::open(bench.name()).unwrap_err().to_string().starts_with("there is no lab"));
    clean_leftovers(bench.name()).unwrap();
}

fn a_power_cut_ends_everything_on_the_host() {
    let bench = Bench::new("power");
    let lab = bench.up(1, 1);
    wait_alive(&lab, "n1", "agent");
    let cgroup = format!("/rcluster-lab-{}/n1/", bench.name());
    let on_host = || of_lab(bench.name()).into_iter().filter(|item| item.starts_with("process ")).count();
    let before = on_host();
    reaches(&lab, "m1", "ping", &address("n1", AGENT_PORT));
    lab.kill(vec!["n1".to_owned()]).unwrap();
    let alive = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| fs::read_to_string(entry.path().join("cgroup")).ok());
    assert_eq!(alive.filter(|text| text.contains(&cgroup)).count(), 0, "daemons and containers are gone when kill answers");
    assert_eq!(before - on_host(), 4, "init, netd, agent and a container have died");
    let status = lab.status().unwrap();
    assert_eq!((status.hosts[1].state, status.hosts[0].state), (HostState::Off, HostState::Up));
    assert!(lab.kill(vec!["n1".to_owned()]).unwrap_err().to_string().contains("n1 is off already"));
    assert_eq!(on(&lab, "m1", &["ping", &address("n1", AGENT_PORT)]), 1, "a dead host is silent");
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn a_host_boots_on_its_old_disk_with_empty_memory() {
    let bench = Bench::new("boot");
    let lab = bench.up(1, 1);
    wait_alive(&lab, "n1", "agent");
    let disk = format!("/var/lib/rcluster/labs/{}/n1/agent/kept", bench.name());
    fs::write(&disk, "").unwrap();
    let run = format!("/run/rcluster/labs/{}/hosts/n1/run", bench.name());
    reaches(&lab, "n1", "ping", &address("m1", MANAGER_PORT));
    let in_memory =
        |lab: &Lab, name: &str| rcluster_lab::exec(lab, "n1", None, None, &["test".into(), "-e".into(), format!("{run}/{name}")]);
    assert_eq!(in_memory(&lab, &format!("booted-{NETD_PORT}")).unwrap(), 0);
    rcluster_lab::exec(&lab, "n1", None, None, &["touch".into(), format!("{run}/lost")]).unwrap();
    assert!(fs::read_dir(&run).unwrap().next().is_none(), "a host's memory is seen by the host only");
    lab.kill(vec!["n1".to_owned()]).unwrap();
    lab.start(vec!["n1".to_owned()]).unwrap();
    wait_alive(&lab, "n1", "netd");
    assert!(fs::exists(&disk).unwrap());
    assert_eq!(in_memory(&lab, "lost").unwrap(), 1);
    reaches(&lab, "m1", "tcp", &address("n1", NETD_PORT));
    assert!(lab.start(vec!["n1".to_owned()]).unwrap_err().to_string().contains("n1 is up"));
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn a_paused_host_stands_still() {
    let bench = Bench::new("pause");
    let lab = bench.up(1, 1);
    wait_alive(&lab, "n1", "agent");
    lab.pause(vec!["n1".to_owned()]).unwrap();
    assert_eq!(lab.status().unwrap().hosts[1].state, HostState::Paused);
    let first = beats(&lab, "n1", "agent");
    assert_eq!(on(&lab, "m1", &["ping", &address("n1", AGENT_PORT)]), 1);
    assert_eq!(beats(&lab, "n1", "agent"), first, "nothing was counted while a ping waited in vain");
    for refused in [
        lab.kill(vec!["n1/agent".to_owned()]),
        lab.pause(vec!["n1".to_owned()]),
        in_task(&lab, "n1", None, &["ping", "10.90.0.1:1"]).map(|_| ()),
    ] {
        assert!(refused.unwrap_err().to_string().contains("n1 is paused"));
    }
    lab.resume(vec!["n1".to_owned()]).unwrap();
    wait_alive(&lab, "n1", "agent");
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn the_power_of_a_paused_host_can_be_cut() {
    let bench = Bench::new("frozen");
    let lab = bench.up(1, 2);
    lab.pause(vec!["n1".to_owned(), "n2".to_owned()]).unwrap();
    lab.kill(vec!["n1".to_owned()]).unwrap();
    lab.start(vec!["n1".to_owned()]).unwrap();
    wait_alive(&lab, "n1", "agent");
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn a_host_that_is_cut_off_hears_nothing_and_nobody_is_told() {
    let bench = Bench::new("cut");
    let lab = bench.up(2, 1);
    for (host, daemon) in [("m1", "manager"), ("m2", "manager"), ("n1", "agent")] {
        wait_alive(&lab, host, daemon);
    }
    lab.cut("n1".to_owned(), None).unwrap();
    assert!(lab.status().unwrap().hosts[2].cut);
    for kind in ["ping", "tcp"] {
        assert_eq!(on(&lab, "m1", &[kind, &address("n1", AGENT_PORT)]), 1, "{kind} meets silence");
        assert_eq!(on(&lab, "n1", &[kind, &address("m1", MANAGER_PORT)]), 1, "{kind} meets silence");
        // Others are not concerned, and the host itself goes on.
        reaches(&lab, "m1", kind, &address("m2", MANAGER_PORT));
        reaches(&lab, "n1", kind, &address("n1", AGENT_PORT));
    }
    lab.heal().unwrap();
    reaches(&lab, "n1", "tcp", &address("m1", MANAGER_PORT));
    reaches(&lab, "m2", "ping", &address("n1", AGENT_PORT));
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn two_hosts_are_cut_off_from_each_other_only() {
    let bench = Bench::new("pair");
    let lab = bench.up(2, 1);
    for (host, daemon) in [("m1", "manager"), ("m2", "manager"), ("n1", "agent")] {
        wait_alive(&lab, host, daemon);
    }
    lab.cut("n1".to_owned(), Some("m1".to_owned())).unwrap();
    lab.cut("m1".to_owned(), Some("n1".to_owned())).unwrap();
    assert_eq!(lab.status().unwrap().cuts, [("m1".to_owned(), "n1".to_owned())]);
    assert_eq!(on(&lab, "m1", &["ping", &address("n1", AGENT_PORT)]), 1);
    assert_eq!(on(&lab, "n1", &["tcp", &address("m1", MANAGER_PORT)]), 1);
    reaches(&lab, "n1", "tcp", &address("m2", MANAGER_PORT));
    reaches(&lab, "m1", "ping", &address("m2", MANAGER_PORT));
    lab.heal_host("n1".to_owned(), Some("m2".to_owned())).unwrap();
    assert_eq!(on(&lab, "m1", &["ping", &address("n1", AGENT_PORT)]), 1, "another pair was healed");
    lab.heal_host("m1".to_owned(), None).unwrap();
    reaches(&lab, "m1", "ping", &address("n1", AGENT_PORT));
    let refused = lab.cut("m1".to_owned(), Some("m1".to_owned())).unwrap_err().to_string();
    assert!(refused.contains("m1 cannot be cut off from itself"), "{refused}");
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn cuts_last_over_a_power_cut() {
    let bench = Bench::new("lasting");
    let lab = bench.up(1, 2);
    lab.cut("n1".to_owned(), None).unwrap();
    lab.cut("n2".to_owned(), Some("m1".to_owned())).unwrap();
    let nodes = || vec!["n1".to_owned(), "n2".to_owned()];
    lab.kill(nodes()).unwrap();
    lab.start(nodes()).unwrap();
    wait_alive(&lab, "n1", "agent");
    wait_alive(&lab, "n2", "agent");
    assert_eq!(on(&lab, "m1", &["ping", &address("n1", AGENT_PORT)]), 1);
    assert_eq!(on(&lab, "m1", &["ping", &address("n2", AGENT_PORT)]), 1);
    lab.heal().unwrap();
    reaches(&lab, "m1", "ping", &address("n1", AGENT_PORT));
    reaches(&lab, "m1", "ping", &address("n2", AGENT_PORT));
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn one_daemon_is_killed_and_started() {
    let bench = Bench::new("daemon");
    let lab = bench.up(1, 1);
    wait_alive(&lab, "n1", "netd");
    lab.kill(vec!["n1/agent".to_owned()]).unwrap();
    let status = lab.status().unwrap();
    assert_eq!(status.hosts[1].daemons[1].state, DaemonState::Exited("SIGKILL".to_owned()));
    assert_eq!(status.hosts[1].daemons[0].state, DaemonState::Running);
    assert_eq!(status.hosts[1].state, HostState::Up);
    let refused = lab.kill(vec!["n1/agent".to_owned()]).unwrap_err().to_string();
    assert!(refused.contains("agent of n1 does not run"), "{refused}");
    lab.start(vec!["n1/agent".to_owned()]).unwrap();
    wait_alive(&lab, "n1", "agent");
    let refused = lab.start(vec!["n1/agent".to_owned()]).unwrap_err().to_string();
    assert!(refused.contains("kill it first"), "{refused}");
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn commands_run_on_hosts_and_in_tasks() {
    let bench = Bench::new("exec");
    let lab = bench.up(1, 1);
    wait_alive(&lab, "n1", "agent");
    let shell = |task: Option<&str>, script: &str| {
        rcluster_lab::exec(&lab, "n1", task, None, &["sh".into(), "-c".into(), script.into()]).map_err(|error| error.to_string())
    };
    assert_eq!(shell(None, "exit 7"), Ok(7));
    assert_eq!(shell(None, "kill -9 $$"), Ok(128 + 9));
    assert_eq!(shell(None, "[ $(hostname) = n1 ] && [ -d /proc/1 ] && grep -q lab-part /proc/1/cmdline"), Ok(0));
    assert_eq!(rcluster_lab::exec(&lab, "n1", None, None, &["no-such-program".into()]).unwrap(), 127);
    for task in ["web.1", "0123456789abcdef", "0123"] {
        assert_eq!(
            shell(Some(task), "[ $RCLUSTER_TASK = web.1 ] && grep -q pods/0123456789abcdef/main /proc/self/cgroup"),
            Ok(0),
            "{task}"
        );
    }
    let refused = shell(Some("db.1"), "true").unwrap_err();
    assert!(refused.ends_with("there are web.1 (0123456789abcdef)"), "{refused}");
    let logged = lab.logs("n1", Some("agent")).unwrap();
    assert_eq!(logged, "", "stand-ins say nothing");
    fs::write(format!("/run/rcluster/labs/{}/logs/n1-agent.log", bench.name()), "one\ntwo\n").unwrap();
    let mut text = Vec::new();
    lab.write_logs("n1", &LogOptions { tail: Some(1), ..LogOptions::default() }, &mut text).unwrap();
    assert_eq!(String::from_utf8(text).unwrap(), "agent: two\n");
    assert!(lab.logs("n1", Some("manager")).unwrap_err().to_string().contains("it runs netd and agent"));
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn images_are_loaded_once_before_the_agent_starts() {
    let bench = Bench::new("image");
    let mut options = bench.options(1, 2);
    options.images = vec![bench.image("good")];
    let lab = up(options).unwrap().keep().unwrap();
    wait_alive(&lab, "n2", "agent");
    lab.kill(vec!["n2".to_owned()]).unwrap();
    lab.start(vec!["n2".to_owned()]).unwrap();
    wait_alive(&lab, "n2", "agent");
    let loads = fs::read_to_string(format!("/var/lib/rcluster/labs/{}/n2/agent/loads", bench.name())).unwrap();
    assert_eq!(loads, "good\n");
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn a_lab_goes_with_its_owner() {
    let bench = Bench::new("owner");
    let mut owner = Command::new("sleep").arg("1000").spawn().unwrap();
    let mut options = bench.options(1, 1);
    options.owner_pid = Some(i32::try_from(owner.id()).unwrap());
    up(options.clone()).unwrap().keep().unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    bench.check_nothing_left();
    let refused = up(options).unwrap_err().to_string();
    assert!(refused.contains("there is no process"), "{refused}");
    bench.check_nothing_left();
}

fn a_lab_goes_with_the_command_that_makes_it() {
    let bench = Bench::new("client");
    // Once while an image is being loaded without end, once when all is up but not kept.
    for image in [bench.image("endless").to_string_lossy().into_owned(), "none".to_owned()] {
        let mut command = Command::new(std::env::current_exe().unwrap())
            .args(["hold-lab", bench.name(), &bench.bin_dir().to_string_lossy(), &image])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the hosts are there", || {
            let status = Lab::open(bench.name()).and_then(|lab| lab.status()).map_err(|error| error.to_string())?;
            let up = status.hosts.iter().all(|host| host.state == HostState::Up);
            if up { Ok(()) } else { Err(format!("{status:?}")) }
        });
        command.kill().unwrap();
        command.wait().unwrap();
        bench.check_nothing_left();
    }
}

fn what_a_killed_supervisor_leaves_is_removed() {
    let bench = Bench::new("killed");
    for by_up in [false, true] {
        let lab = bench.up(1, 1);
        lab.pause(vec!["n1".to_owned()]).unwrap();
        let status = lab.status().unwrap();
        kill(Pid::from_raw(status.supervisor_pid), Signal::SIGKILL).unwrap();
        eventually("the supervisor is dead", || match Lab::open(bench.name()) {
            Ok(_) => Err("it answers".to_owned()),
            Err(error) if error.to_string().contains("has no supervisor") => Ok(()),
            Err(error) => Err(error.to_string()),
        });
        assert!(has_leftovers(bench.name()));
        let manager = host_pid(&status, "m1");
        eventually("hosts die with it", || {
            let state = fs::read_to_string(format!("/proc/{manager}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") { Ok(()) } else { Err(state) }
        });
        if by_up {
            let starting = up(bench.options(1, 1)).unwrap();
            assert!(starting.notes()[0].contains("removed what an earlier lab"), "{:?}", starting.notes());
            starting.give_up().unwrap();
        } else {
            clean_leftovers(bench.name()).unwrap();
        }
        assert!(!has_leftovers(bench.name()));
        bench.check_nothing_left();
    }
}

fn a_name_is_taken_once_and_labs_do_not_meet() {
    let (bench, other) = (Bench::new("first"), Bench::new("second"));
    let lab = bench.up(1, 1);
    let refused = up(bench.options(1, 1)).unwrap_err().to_string();
    assert!(refused.starts_with(&format!("there is a lab {} already; take it down", bench.name())), "{refused}");
    assert!(clean_leftovers(bench.name()).unwrap_err().to_string().contains("is up"));
    let second = other.up(1, 1);
    wait_alive(&lab, "n1", "agent");
    wait_alive(&second, "n1", "agent");
    second.kill(vec!["n1".to_owned()]).unwrap();
    reaches(&lab, "m1", "ping", &address("n1", AGENT_PORT));
    assert_eq!(on(&second, "m1", &["ping", &address("n1", AGENT_PORT)]), 1);
    second.down().unwrap();
    other.check_nothing_left();
    reaches(&lab, "m1", "ping", &address("n1", AGENT_PORT));
    lab.down().unwrap();
    bench.check_nothing_left();
}

fn what_cannot_be_made_is_refused_and_leaves_nothing() {
    let bench = Bench::new("refused");
    let refuse = |change: &dyn Fn(&mut rcluster_lab::UpOptions)| {
        let mut options = bench.options(1, 1);
        change(&mut options);
        let refused = up(options).unwrap_err().to_string();
        bench.check_nothing_left();
        refused
    };
    let image = bench.image("broken");
    let told = refuse(&|options| options.images = vec![image.clone()]);
    assert!(told.contains("ended with code 1:\nthe image is broken"), "{told}");
    let told = refuse(&|options| options.images = vec![PathBuf::from("/no/such/image")]);
    assert_eq!(told, "there is no image /no/such/image");
    let told = refuse(&|options| options.bin_dir = Some(PathBuf::from("/no/such/dir")));
    assert_eq!(told.lines().filter(|line| line.contains("is not in /no/such/dir")).count(), 4, "{told}");
    fs::remove_file(bench.bin_dir().join("rcluster-netd")).unwrap();
    fs::write(bench.bin_dir().join("rcluster-netd"), "not a program").unwrap();
    let told = refuse(&|_| {});
    assert!(told.contains("netd of n1 ended with start ") && told.contains("Permission denied"), "{told}");
}
