//! What a host's kernel holds of netd's, as lines by which two moments can be compared, and what is run to see and to change it.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use rcluster_netd::core::links::is_ours;
use rcluster_netd::core::rules::elements::Element;
use rcluster_netd::core::rules::host;
use rcluster_netd::kernel::netlink::Netlink;
use rcluster_netd::kernel::nft;

use super::Host;

/// Those of every table.
pub const OUR_ROUTES: &str = "ip -4 -o route show table all proto 114";

pub const OUR_NEIGHBOURS: &str = "ip -4 neigh show nud permanent";

/// The same of IPv6.
pub const OUR_ROUTES6: &str = "ip -6 -o route show table all proto 114";

pub const OUR_NEIGHBOURS6: &str = "ip -6 neigh show nud permanent";

/// The calling thread's own.
const SYSCTLS: [&str; 3] = ["ipv4/ip_forward", "ipv4/icmp_ratemask", "netfilter/nf_conntrack_tcp_be_liberal"];

/// Those of the router namespace alone.
const ROUTERS: [&str; 2] = ["ipv4/conf/all/rp_filter", "ipv4/conf/up/rp_filter"];

/// All of netd's in the router namespace, in these pods and on the host. Not in it: the numbers of devices, which are others when one is made
/// anew, and what the kernel finds out by itself.
pub fn seen(host: &Host, pods: &[&str]) -> BTreeSet<String> {
    let router = || [in_namespace(), elements(), forwards(), sysctls(&SYSCTLS), sysctls(&ROUTERS), with_six()].concat();
    let mut lines = named("router", host.inside("router", router));
    for pod in pods {
        lines.extend(named(pod, host.inside(pod, in_namespace)));
    }
    lines.extend(named("host", host.here(on_host)));
    lines.into_iter().collect()
}

/// What came and what went between two moments, for people.
pub fn differences(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Vec<String> {
    let came = after.difference(before).map(|line| format!("+ {line}"));
    before.difference(after).map(|line| format!("- {line}")).chain(came).collect()
}

fn named(place: &str, lines: Vec<String>) -> Vec<String> {
    lines.into_iter().map(|line| format!("{place}: {line}")).collect()
}

/// Devices with their addresses, our routes, permanent neighbours, and rules of routing.
fn in_namespace() -> Vec<String> {
    let addresses = ["ip -4 -o addr show", "ip -6 -o addr show scope global"]
        .into_iter()
        .flat_map(show)
        .map(|line| words(&line).skip(1).collect::<Vec<_>>().join(" "));
    // Whether a device has its carrier the kernel takes in later.
    let routes = [OUR_ROUTES, OUR_ROUTES6]
        .into_iter()
        .flat_map(show)
        .map(|line| format!("route {}", words(&line).filter(|word| *word != "linkdown").collect::<Vec<_>>().join(" ")));
    let neighbours = [OUR_NEIGHBOURS, OUR_NEIGHBOURS6].into_iter().flat_map(show).map(|line| format!("neighbour {line}"));
    let rules = ["-4", "-6"]
        .into_iter()
        .flat_map(|family| show(&format!("ip {family} rule show")).into_iter().map(move |line| format!("rule of routing {family} {line}")));
    show("ip -o link show").iter().filter_map(|line| device(line)).chain(addresses).chain(routes).chain(neighbours).chain(rules).collect()
}

/// Its name, MTU, state and hardware address.
fn device(line: &str) -> Option<String> {
    let words: Vec<&str> = words(line).collect();
    let after = |word: &str| words.iter().position(|other| *other == word).and_then(|place| words.get(place + 1).copied());
    let name = words.get(1)?.split(['@', ':']).next()?;
    let is_up = words.get(2)?.trim_matches(['<', '>']).split(',').any(|flag| flag == "UP");
    let mac = after("link/ether").or(after("link/loopback"))?;
    Some(format!("device {name} mtu {} {} {mac}", after("mtu")?, if is_up { "up" } else { "down" }))
}

fn elements() -> Vec<String> {
    let (outline, elements) = nft::observe(&mut Netlink::open(nft::NETLINK_NETFILTER).unwrap()).unwrap();
    let elements = elements.into_iter().map(|(key, data)| format!("element {}", Element { key, data }));
    elements.chain([format!("rules {outline:?}")]).collect()
}

fn forwards() -> Vec<String> {
    show("bridge fdb show").into_iter().filter(|line| line.contains(" dst ")).map(|line| format!("forward {line}")).collect()
}

fn sysctls(names: &[&str]) -> Vec<String> {
    let value = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/{name}")).unwrap();
    names.iter().map(|name| format!("sysctl {name} {}", value(name).trim())).collect()
}

/// Our devices with whether they have IPv6, and whether that is forwarded.
fn with_six() -> Vec<String> {
    let value = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}")).unwrap();
    let devices = show("ip -o link show").into_iter().filter_map(|line| device(&line)).collect::<Vec<_>>();
    let names = devices.iter().filter_map(|line| line.split_whitespace().nth(1)).filter(|name| is_ours(name));
    let devices = names.map(|name| format!("IPv6 of {name} off {}", value(&format!("{name}/disable_ipv6")).trim()));
    devices.chain([format!("IPv6 forwarded {}", value("all/forwarding").trim())]).collect()
}

fn on_host() -> Vec<String> {
    let mut netlink = Netlink::open(nft::NETLINK_NETFILTER).unwrap();
    let outline = nft::outline(&mut netlink, host::TABLE).unwrap();
    let peers = nft::read_in(&mut netlink, host::TABLE, &host::NODES).unwrap();
    let peers = peers.into_iter().map(|(key, _)| format!("peer {key:?}"));
    let peers = peers.chain([&host::PORTS, &host::PORTS6].into_iter().flat_map(|set| {
        let ports = nft::read_in(&mut netlink, host::TABLE, set).unwrap();
        ports.into_iter().map(|(key, _)| format!("one of {} {key:?}", set.name)).collect::<Vec<_>>()
    }));
    // Its other sysctls are its own.
    let forwarding = sysctls(&[SYSCTLS[0], "ipv6/conf/all/forwarding"]);
    peers.chain([format!("rules {outline:?}")]).chain(forwarding).chain(in_namespace()).collect()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_whitespace()
}

/// Runs a command in the calling thread's namespaces; it is to succeed.
pub fn run(command: &str) {
    show(command);
}

/// The lines that such a command prints.
pub fn show(command: &str) -> Vec<String> {
    let (program, arguments) = command.split_once(' ').unwrap();
    let output = Command::new(program).args(arguments.split(' ')).output().expect("the tests have iproute2");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Gives a program of iproute2 one command after the other. One that is refused, as for a device that an earlier one has taken away, is no
/// error.
pub fn batch(program: &str, options: &[&str], commands: &[String]) {
    let mut child = Command::new(program)
        .args(options)
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the tests have iproute2");
    child.stdin.take().expect("piped").write_all((commands.join("\n") + "\n").as_bytes()).unwrap();
    child.wait().unwrap();
}
