//! Pods that go: out of DNS first, then out of the kernel.

use std::io::{Read, Write};
use std::net::Ipv4Addr;

use crate::support::dns::resolve;
use crate::support::{Lab, eventually, network};

/// Two hosts; t1 and `me` are on the first, t2 is on the second, all on `front`.
fn lab() -> Lab {
    let lab = Lab::start(2);
    lab.apply(1, &[network("front", 0, &[("t1", 0, 2), ("t2", 1, 3)])]);
    lab.hosts[0].attach("t1", &[("front", "10.128.0.2")]).unwrap();
    lab.hosts[0].attach("me", &[("front", "10.128.0.250")]).unwrap();
    lab.hosts[1].attach("t2", &[("front", "10.128.0.3")]).unwrap();
    lab
}

fn front(lasts: &[u8]) -> Vec<Ipv4Addr> {
    lasts.iter().map(|last| Ipv4Addr::new(10, 128, 0, *last)).collect()
}

#[test]
fn a_pod_that_has_left_is_not_named_and_still_answers() {
    let mut lab = lab();
    let _listener = lab.hosts[0].listen("t1", "10.128.0.2:80");
    lab.hosts[0].leave("t1").unwrap();
    lab.hosts[0].leave("never").unwrap();
    assert_eq!(resolve(&lab.hosts[0], "me", "web."), front(&[3]));
    lab.hosts[0].connect("me", "10.128.0.2:80").unwrap();
    lab.hosts[1].connect("t2", "10.128.0.2:80").unwrap();
    lab.hosts[0].kill();
    lab.hosts[0].start();
    assert_eq!(resolve(&lab.hosts[0], "me", "web."), front(&[3]), "a restart does not bring it back");
    lab.hosts[0].connect("me", "10.128.0.2:80").unwrap();
}

#[test]
fn what_is_under_way_to_a_detached_pod_is_delivered_and_then_nothing_is_left() {
    let lab = lab();
    let host = &lab.hosts[0];
    let listener = host.listen("t1", "10.128.0.2:80");
    let mut client = lab.hosts[1].connect("t2", "10.128.0.2:80").unwrap();
    let (mut served, _) = listener.accept().unwrap();
    host.detach_after("t1", 3000).unwrap();
    assert_eq!(resolve(host, "me", "web."), front(&[3]));
    assert!(host.status().unwrap().attachments.iter().all(|attachment| attachment.task_id != "t1"));
    served.write_all(b"the rest").unwrap();
    drop((served, listener));
    let mut read = String::new();
    client.read_to_string(&mut read).unwrap();
    assert_eq!(read, "the rest");
    eventually("the pod's namespace is gone", || !host.pinned("t1"));
    assert!(lab.hosts[1].connect("t2", "10.128.0.2:80").is_err());
}

#[test]
fn the_address_of_a_pod_that_lingers_is_had_at_once_by_the_next() {
    let lab = lab();
    let host = &lab.hosts[0];
    host.detach_after("t1", 60_000).unwrap();
    host.attach("t9", &[("front", "10.128.0.2")]).unwrap();
    assert!(!host.pinned("t1"));
    let _listener = host.listen("t9", "10.128.0.2:80");
    lab.hosts[1].connect("t2", "10.128.0.2:80").unwrap();
}
