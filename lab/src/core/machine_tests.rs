use std::path::PathBuf;

use super::*;

/// A lab of one manager and one node with one image.
fn machine() -> Machine {
    let plan = LabPlan::new("lab", 1, 1, &[], vec![PathBuf::from("/image.tar")], PathBuf::from("/bin")).unwrap();
    Machine::new(plan)
}

/// Deeds in a few words each.
fn words(deeds: &[Deed]) -> String {
    let word = |deed: &Deed| match deed {
        Deed::Boot(host) => format!("boot {host}"),
        Deed::Plug(host) => format!("plug {host}"),
        Deed::Tell(host, HostCommand::Furnish) => format!("furnish {host}"),
        Deed::Tell(host, HostCommand::Spawn { daemon, .. }) => format!("spawn {host}/{daemon}"),
        Deed::Tell(host, HostCommand::Kill { daemon }) => format!("kill {host}/{daemon}"),
        Deed::CutPower(host) => format!("cut {host}"),
        Deed::Clear(host) => format!("clear {host}"),
        Deed::Freeze { hosts, on, .. } => format!("freeze {} {on}", hosts.join(" ")),
        Deed::Reply(by, Reply::Refused(why)) => format!("refuse {by}: {why}"),
        Deed::Reply(by, _) => format!("answer {by}"),
        Deed::Finish(mourners) => format!("finish {mourners:?}"),
        other => format!("{other:?}"),
    };
    deeds.iter().map(word).collect::<Vec<_>>().join("; ")
}

fn say(machine: &mut Machine, host: &str, event: HostEvent) -> String {
    words(&machine.handle(Input::Said { host: host.to_owned(), event }))
}

fn ask(machine: &mut Machine, by: Client, request: Request) -> String {
    words(&machine.handle(Input::Asked { by, request }))
}

fn spawned(machine: &mut Machine, host: &str, daemon: &str) -> String {
    say(machine, host, HostEvent::Spawned { daemon: daemon.to_owned(), pid: 7 })
}

fn exited(machine: &mut Machine, host: &str, daemon: &str, how: &str) -> String {
    let end = Exit { how: how.to_owned(), last_words: if how == "code 0" { String::new() } else { "no such thing".to_owned() } };
    say(machine, host, HostEvent::Exited { daemon: daemon.to_owned(), end })
}

fn died(machine: &mut Machine, host: &str) -> String {
    words(&machine.handle(Input::Died { host: host.to_owned() }))
}

/// A lab that is up and kept.
fn up() -> Machine {
    let mut machine = machine();
    machine.handle(Input::Begin);
    for host in ["m1", "n1"] {
        say(&mut machine, host, HostEvent::Unshared);
        say(&mut machine, host, HostEvent::Ready);
    }
    spawned(&mut machine, "m1", "manager");
    spawned(&mut machine, "n1", "netd");
    exited(&mut machine, "n1", "image-load", "code 0");
    assert_eq!(spawned(&mut machine, "n1", "agent"), "answer 0");
    assert_eq!(ask(&mut machine, STARTER, Request::Keep), "answer 0");
    machine
}

#[test]
fn a_host_boots_step_by_step_and_its_agent_waits_for_the_images() {
    let mut machine = machine();
    assert_eq!(words(&machine.handle(Input::Begin)), "boot m1; boot n1");
    assert_eq!(say(&mut machine, "n1", HostEvent::Unshared), "plug n1; furnish n1");
    assert_eq!(say(&mut machine, "n1", HostEvent::Ready), "spawn n1/netd; spawn n1/image-load");
    assert_eq!(exited(&mut machine, "n1", "image-load", "code 0"), "spawn n1/agent");
    say(&mut machine, "m1", HostEvent::Unshared);
    assert_eq!(say(&mut machine, "m1", HostEvent::Ready), "spawn m1/manager");
    assert_eq!(spawned(&mut machine, "m1", "manager") + &spawned(&mut machine, "n1", "netd"), "");
    assert_eq!(spawned(&mut machine, "n1", "agent"), "answer 0");
}

#[test]
fn an_image_that_cannot_be_loaded_takes_the_lab_down_with_its_reason() {
    let mut machine = machine();
    machine.handle(Input::Begin);
    say(&mut machine, "n1", HostEvent::Ready);
    let told = exited(&mut machine, "n1", "image-load", "code 1");
    assert_eq!(told, "cut n1; refuse 0: host n1: loading image /image.tar ended with code 1:\nno such thing; cut m1");
    assert_eq!(died(&mut machine, "n1"), "clear n1");
    assert_eq!(died(&mut machine, "m1"), "clear m1; finish []");
}

#[test]
fn a_daemon_that_ends_during_up_takes_the_lab_down_with_its_last_words() {
    let mut machine = machine();
    machine.handle(Input::Begin);
    say(&mut machine, "m1", HostEvent::Ready);
    spawned(&mut machine, "m1", "manager");
    let told = exited(&mut machine, "m1", "manager", "code 2");
    assert_eq!(told, "refuse 0: manager of m1 ended with code 2:\nno such thing; cut m1; cut n1");
}

#[test]
fn a_command_that_goes_during_up_takes_the_lab_along_and_later_does_not() {
    let mut machine = machine();
    machine.handle(Input::Begin);
    assert_eq!(words(&machine.handle(Input::Left { by: STARTER })), "cut m1; cut n1");
    assert_eq!(words(&up().handle(Input::Left { by: STARTER })), "");
}

#[test]
fn a_power_cut_is_answered_when_the_host_is_off_and_its_disk_keeps_the_images() {
    let mut machine = up();
    assert_eq!(ask(&mut machine, 1, Request::Kill { targets: vec!["n1".to_owned()] }), "cut n1");
    assert_eq!(exited(&mut machine, "n1", "agent", "SIGKILL"), "");
    assert_eq!(died(&mut machine, "n1"), "clear n1; answer 1");
    assert_eq!(ask(&mut machine, 1, Request::Kill { targets: vec!["n1".to_owned()] }), "refuse 1: n1 is off already");
    assert_eq!(ask(&mut machine, 2, Request::Start { targets: vec!["n1".to_owned()] }), "boot n1");
    say(&mut machine, "n1", HostEvent::Unshared);
    assert_eq!(say(&mut machine, "n1", HostEvent::Ready), "spawn n1/netd; spawn n1/agent");
    spawned(&mut machine, "n1", "netd");
    assert_eq!(spawned(&mut machine, "n1", "agent"), "answer 2");
}

#[test]
fn one_daemon_is_killed_and_started_alone() {
    let mut machine = up();
    let agent = || vec!["n1/agent".to_owned()];
    let told = ask(&mut machine, 1, Request::Start { targets: agent() });
    assert_eq!(told, "refuse 1: agent of n1 is running (7); kill it first");
    assert_eq!(ask(&mut machine, 1, Request::Kill { targets: agent() }), "kill n1/agent");
    assert_eq!(exited(&mut machine, "n1", "agent", "SIGKILL"), "answer 1");
    let told = ask(&mut machine, 1, Request::Kill { targets: agent() });
    assert_eq!(told, "refuse 1: agent of n1 does not run: it is exited (SIGKILL)");
    assert_eq!(ask(&mut machine, 1, Request::Start { targets: agent() }), "spawn n1/agent");
    assert_eq!(spawned(&mut machine, "n1", "agent"), "answer 1");
}

#[test]
fn of_several_targets_none_is_touched_when_one_does_not_fit() {
    let mut machine = up();
    let told = ask(&mut machine, 1, Request::Kill { targets: vec!["m1".to_owned(), "n9".to_owned()] });
    assert_eq!(told, "refuse 1: lab lab has no host n9; it has m1, n1");
    let told = ask(&mut machine, 1, Request::Kill { targets: vec!["m1/agent".to_owned()] });
    assert_eq!(told, "refuse 1: host m1 runs no agent; it runs manager");
}

#[test]
fn a_paused_host_takes_no_orders_but_its_power_can_be_cut() {
    let mut machine = up();
    let n1 = || vec!["n1".to_owned()];
    assert_eq!(ask(&mut machine, 1, Request::Resume { hosts: n1() }), "refuse 1: n1 is up; only a paused host can be resumed");
    assert_eq!(ask(&mut machine, 1, Request::Pause { hosts: n1() }), "freeze n1 true");
    machine.frozen(&n1(), true);
    assert_eq!(machine.status(1).hosts[1].state, HostState::Paused);
    let told = ask(&mut machine, 1, Request::Kill { targets: vec!["n1/agent".to_owned()] });
    assert_eq!(told, "refuse 1: n1 is paused; its daemons can be killed and started only while it is up");
    assert_eq!(ask(&mut machine, 1, Request::Kill { targets: n1() }), "cut n1");
}

#[test]
fn down_ends_every_host_first_and_answers_everyone_who_waits() {
    let mut machine = up();
    ask(&mut machine, 1, Request::Kill { targets: vec!["n1".to_owned()] });
    assert_eq!(ask(&mut machine, 2, Request::Down), "cut m1; refuse 1: lab lab is going down: it was asked to");
    assert_eq!(ask(&mut machine, 3, Request::Down), "");
    assert_eq!(ask(&mut machine, 4, Request::Status), "refuse 4: lab lab is going down: it was asked to");
    assert_eq!(died(&mut machine, "m1"), "clear m1");
    assert_eq!(died(&mut machine, "n1"), "clear n1; finish [2, 3]");
}

#[test]
fn a_host_whose_init_dies_by_itself_is_off_and_says_so() {
    let mut machine = up();
    assert_eq!(died(&mut machine, "n1"), "clear n1");
    let status = machine.status(1);
    assert_eq!((status.hosts[1].state, status.hosts[1].message.contains("nobody cut its power")), (HostState::Off, true));
}
