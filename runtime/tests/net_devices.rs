//! Interfaces that are moved into the container's network namespace. The test's "host" is a network namespace of its own.

mod common;

use std::process::Command;

use common::{Bundle, tool};
use serde_json::json;

/// Runs the container where there is a pair of interfaces; what the container printed, then what is left, by lines.
fn run(bundle: &Bundle, after: &str) -> (String, bool) {
    bundle.write();
    let runtime = format!("{} --root {}", env!("CARGO_BIN_EXE_rcluster-runtime"), bundle.path("state").display());
    let script = format!(
        "ip link set lo up; ip link add one mtu 1400 address 02:00:00:00:00:07 type veth peer name two; ip link set two up; ip link set one up
         ip address add 10.1.2.3/24 broadcast 10.1.2.255 dev one; ip address add 192.0.2.1/32 dev one; ip address add fd00:1::7/64 nodad dev one
         {runtime} run --bundle {} {} 2>&1 || echo FAILED; {after}",
        bundle.path("").display(),
        bundle.id
    );
    let output = Command::new("unshare").args(["--net", "sh", "-ec", &script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    (text.trim_end().to_owned(), text.contains("FAILED"))
}

fn with_ip(script: &str) -> Bundle {
    let bundle = Bundle::new(script);
    std::os::unix::fs::symlink("busybox", bundle.rootfs("bin/ip")).unwrap();
    bundle
}

#[test]
fn an_interface_is_moved_with_its_addresses() {
    assert!(tool("ip").is_some(), "ip is missing: apt-get install iproute2");
    let mut bundle = with_ip(
        "ip -o address show dev eth0 scope global | grep -oE '(inet6?|brd) [^ ]*'; cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address; \
         ip -o link show dev eth0 | grep -o '[<,]UP[,>]'; ip -o link | wc -l; ip route | grep -c '10.1.2.0/24 dev eth0'",
    );
    bundle.set("/linux/netDevices", json!({"one":{"name":"eth0"}}));
    // sysfs shows the namespace it was mounted in: the container's.
    let (text, failed) = run(&bundle, "ip link show one 2>/dev/null || echo gone");
    assert!(!failed, "{text}");
    let expected = "inet 10.1.2.3/24\nbrd 10.1.2.255\ninet 192.0.2.1/32\ninet6 fd00:1::7/64\n1400\n02:00:00:00:00:07\n,UP,\n2\n1\ngone";
    assert_eq!(text, expected);
    bundle.assert_nothing_is_left();
}

#[test]
fn it_keeps_its_name_and_enters_a_user_namespace() {
    let mut bundle = with_ip("ip -o address show dev one scope global | grep -c inet; ip link set one down && echo mine");
    bundle.push("/linux/namespaces", json!({"type":"user"}));
    let ids = json!([{"containerID":0,"hostID":100_000,"size":1000}]);
    bundle.set("/linux/uidMappings", ids.clone()).set("/linux/gidMappings", ids).set("/linux/netDevices", json!({"one":{}}));
    for set in ["bounding", "effective", "permitted"] {
        bundle.push(&format!("/process/capabilities/{set}"), json!("CAP_NET_ADMIN"));
    }
    bundle.give_rootfs(100_000);
    std::fs::set_permissions(bundle.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(run(&bundle, "true").0, "3\nmine");
}

#[test]
fn what_is_not_there_or_cannot_have_its_name_fails_the_create() {
    let mut bundle = with_ip("true");
    bundle.set("/linux/netDevices", json!({"nosuch":{"name":"eth0"},"one":{}}));
    let (text, failed) = run(&bundle, "ip -o link show one | grep -o UP,LOWER_UP");
    assert!(failed && text.contains("linux.netDevices[nosuch]: no such interface of the host's"), "{text}");
    assert!(text.ends_with("UP,LOWER_UP"), "nothing is moved before all are found: {text}");
    bundle.assert_nothing_is_left();

    bundle.set("/linux/netDevices", json!({"one":{"name":"lo"}}));
    let (text, failed) = run(&bundle, "ip -o link show one | grep -o UP,LOWER_UP");
    assert!(failed && text.contains("linux.netDevices[one]: the container's network namespace has an interface lo already"), "{text}");
    assert!(text.ends_with("UP,LOWER_UP"), "{text}");
    bundle.assert_nothing_is_left();
}
