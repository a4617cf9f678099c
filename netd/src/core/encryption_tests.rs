use std::net::IpAddr;

use ipnet::IpNet;

use super::*;
use crate::core::dataplane::{Dataplane, compile};
use crate::core::fixtures::{key, numbered, underlay};
use crate::core::links::{LinkKind, vtep_mac, vtep6, vxlan_name};
use crate::core::neighbours::Route;
use crate::core::picture::Attachments;
use crate::core::plan::plan;
use crate::core::uplink::Forwarding;

/// `back` is encrypted, and every node has told keys for these epochs.
fn encrypted(key_epoch: u64, told: [&[u64]; 3]) -> v1::NetView {
    let mut wire = numbered(1, Vec::new());
    wire.key_epoch = key_epoch;
    wire.networks[1].encrypted = true;
    for (node, epochs) in wire.nodes.iter_mut().zip(told) {
        node.wireguard_keys = epochs.iter().map(|epoch| key(node.number, *epoch)).collect();
    }
    wire
}

fn wanted(wire: &v1::NetView) -> Dataplane {
    compile(&Picture::parse(wire).0, &Attachments::new(), &underlay(Forwarding::Netd))
}

/// What is told by a node that has keys for these epochs.
fn tells(wire: &v1::NetView, epochs: &[u64]) -> Vec<u64> {
    let keys = epochs.iter().map(|epoch| (*epoch, PublicKey([7; 32]))).collect();
    told(&Picture::parse(wire).0, &underlay(Forwarding::Netd), keys).into_iter().map(|key| key.epoch).collect()
}

#[test]
fn an_encrypted_networks_frames_go_through_a_tunnel_that_stands_before_they_do() {
    let mut clear = encrypted(1, [&[1], &[1], &[1]]);
    (clear.key_epoch, clear.networks[1].encrypted) = (0, false);
    assert_eq!(
        plan(&wanted(&encrypted(1, [&[1], &[1], &[1]])), &wanted(&clear)).to_string(),
        "seal network 4098
add peer 169.254.96.3
fence 169.254.64.0/18
add tunnel rcl-wg1 of epoch 1
configure tunnel rcl-wg1 169.254.96.1 port 51821 mtu 1440 up
set peer 31313131 of rcl-wg1 is 169.254.96.3 at 10.90.0.103:51821
remove device v4098
add vxlan v4098 vni 4098 from 0.0.0.0 port 4789 mac 02:76:0a:5a:00:65 mtu 1390 up
set neighbour 10.90.0.103 is 02:76:0a:5a:00:67 on v4098
set forward 02:76:0a:5a:00:67 to 169.254.96.3 on v4098
set route 10.128.1.2/32 via 10.90.0.103 on v4098
-- dns
"
    );
}

#[test]
fn a_pair_changes_over_when_both_have_told_and_the_old_tunnel_goes_when_nobody_tells_its_key() {
    let steps: [(v1::NetView, &[u64], &[u64], &str); 6] = [
        (
            encrypted(2, [&[1], &[], &[1]]),
            &[1, 2],
            &[1, 2],
            "add tunnel rcl-wg0 of epoch 2
configure tunnel rcl-wg0 169.254.64.1 port 51820 mtu 1440 up
-- dns
",
        ),
        (encrypted(2, [&[1, 2], &[], &[1]]), &[1, 2], &[1, 2], "-- dns\n"),
        (
            encrypted(2, [&[1, 2], &[], &[1, 2]]),
            &[1, 2],
            &[2],
            "add peer 169.254.64.3
set peer 32323232 of rcl-wg0 is 169.254.64.3 at 10.90.0.103:51820
set forward 02:76:0a:5a:00:67 to 169.254.64.3 on v4098
-- dns
remove forward 02:76:0a:5a:00:67 to 169.254.96.3 on v4098
",
        ),
        (encrypted(2, [&[2], &[], &[1, 2]]), &[1, 2], &[2], "-- dns\n"),
        (encrypted(2, [&[2], &[], &[2]]), &[2], &[2], "-- dns\nremove tunnel rcl-wg1\nremove peer 169.254.96.3\n"),
        (
            encrypted(3, [&[2], &[], &[2]]),
            &[2, 3],
            &[2, 3],
            "add tunnel rcl-wg1 of epoch 3
configure tunnel rcl-wg1 169.254.96.1 port 51821 mtu 1440 up
-- dns
",
        ),
    ];
    let mut before = encrypted(1, [&[1], &[], &[1]]);
    assert_eq!(tells(&before, &[1]), [1]);
    for (number, (wire, keys, told, expected)) in (1..).zip(steps) {
        assert_eq!(plan(&wanted(&wire), &wanted(&before)).to_string(), expected, "step {number}");
        assert_eq!(tells(&wire, keys), told, "step {number}");
        before = wire;
    }
}

#[test]
fn an_epoch_that_was_missed_replaces_the_device_of_the_one_before_the_last() {
    let plan = plan(&wanted(&encrypted(3, [&[1], &[], &[1]])), &wanted(&encrypted(1, [&[1], &[], &[1]])));
    assert_eq!(
        plan.to_string(),
        "remove tunnel rcl-wg1
add tunnel rcl-wg1 of epoch 3
configure tunnel rcl-wg1 169.254.96.1 port 51821 mtu 1440 up
-- dns
remove forward 02:76:0a:5a:00:67 to 169.254.96.3 on v4098
remove peer 169.254.96.3
"
    );
}

#[test]
fn a_node_that_has_a_new_key_is_the_same_peer_under_it() {
    let mut wire = encrypted(1, [&[1], &[], &[1]]);
    let before = wanted(&wire);
    wire.nodes[2].wireguard_keys = vec![key(9, 1)];
    assert_eq!(
        plan(&wanted(&wire), &before).to_string(),
        "set peer 91919191 of rcl-wg1 is 169.254.96.3 at 10.90.0.103:51821\n-- dns\nremove peer 31313131 of rcl-wg1\n"
    );
}

#[test]
fn whatever_is_missing_nothing_goes_in_clear() {
    type Damage = fn(&mut v1::NetView);
    let damages: [(&str, Damage); 6] = [
        ("no epoch", |wire| wire.key_epoch = 0),
        ("an epoch that nobody has", |wire| wire.key_epoch = 3),
        ("no own number", |wire| wire.nodes[0].number = 0),
        ("a number that has no address", |wire| wire.nodes[2].number = 8192),
        ("no key told of the other", |wire| wire.nodes[2].wireguard_keys.clear()),
        ("no key in common", |wire| wire.nodes[2].wireguard_keys = vec![key(3, 7)]),
    ];
    for (what, damage) in damages {
        let mut wire = encrypted(1, [&[1], &[1], &[1]]);
        damage(&mut wire);
        let dataplane = wanted(&wire);
        assert_eq!(dataplane.forwards.iter().filter(|forward| forward.link == vxlan_name(4098)).count(), 0, "{what}");
        assert!(dataplane.host.fenced && dataplane.host.sealed.contains(&4098), "{what}");
        let kind = dataplane.links[&vxlan_name(4098)].kind;
        assert!(matches!(kind, LinkKind::Vxlan { local: Ipv4Addr::UNSPECIFIED, .. }), "{what}: {kind:?}");
    }
    let mut picture = Picture::parse(&encrypted(1, [&[1], &[1], &[1]])).0;
    picture.cannot_encrypt = true;
    let dataplane = compile(&picture, &Attachments::new(), &underlay(Forwarding::Netd));
    let of = |vni: u32| dataplane.forwards.iter().filter(|forward| forward.link == vxlan_name(vni)).count();
    assert_eq!((dataplane.host.tunnels.len(), of(4097), of(4098)), (0, 1, 0), "the network in clear has its own");
}

#[test]
fn ipv6_of_an_encrypted_network_goes_by_the_same_tunnel_or_nowhere() {
    let mut wire = encrypted(1, [&[1], &[1], &[1]]);
    let without = wanted(&wire);
    wire.networks[1].subnet6 = "fd00:1::/64".into();
    let dataplane = wanted(&wire);
    assert_eq!((&dataplane.forwards, &dataplane.host), (&without.forwards, &without.host));
    let name = vxlan_name(4098);
    assert_eq!((dataplane.links[&name].mtu, dataplane.links[&name].six), (1390, true));
    let node = Ipv4Addr::new(10, 90, 0, 103);
    let route = Route::Via { link: name.clone(), gateway: vtep6(node).into() };
    let to: IpNet = "fd00:1::a80:102/128".parse().unwrap();
    assert_eq!(dataplane.routes.get(&to), Some(&route));
    assert_eq!(dataplane.neighbours[&(name.clone(), IpAddr::from(vtep6(node)))], vtep_mac(node));
    wire.nodes[2].wireguard_keys.clear();
    assert!(wanted(&wire).forwards.iter().all(|forward| forward.link != name));
}

#[test]
fn a_node_with_a_broken_key_is_told_of_and_left_out() {
    let mut wire = encrypted(1, [&[1], &[1], &[1]]);
    wire.nodes[1].wireguard_keys[0].port = 65536;
    wire.nodes[2].wireguard_keys[0].key.pop();
    let (picture, problems) = Picture::parse(&wire);
    assert_eq!(
        problems,
        [
            "nothing encrypted is sent to node n2: its key for epoch 1 has no port",
            "nothing encrypted is sent to node n3: its key for epoch 1 has 31 bytes, and not 32",
        ]
    );
    assert_eq!(picture.members.keys().copied().collect::<Vec<_>>(), [underlay(Forwarding::Netd).addr]);
}
