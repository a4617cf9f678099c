//! Virtual addresses: which endpoint a connection to a service's address goes to, and how those that have none, or a lost one, end at once.
//!
//! ```text
//! vips      VNI . address → chain    by how many slots the address's endpoints are found, and how one is chosen
//! backends  address . slot → endpoint
//! viplist   address                  refused when no endpoint took the connection
//! hairpin   endpoint . itself        connections of an endpoint here to its own service
//! …6        the same of IPv6         of networks that have it; what no endpoint took has no route there
//! dead      endpoint                 on a node that is down: by the managers' word, and it does not answer this node either
//! ```
//!
//! In: a picture's services, endpoints and the pods here. Out: elements. The pod's own node chooses, when a connection begins; connection
//! tracking keeps to the choice. Each chain draws (`r`) or hashes (`h`) a number below its own; should the map have become shorter meanwhile,
//! slot 0 takes the connection. An endpoint that reaches itself answers to the router's address, or it would answer itself directly, under
//! an address that it does not expect. A pod of another network is not sent to an endpoint first and refused then: the refusal would speak of
//! the endpoint's address, which the pod did not ask for. Never: a rule per service, an endpoint that does not serve.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::elements::{Element, Elements, Field, Key, SetName, Value, encode};
use super::expressions::{
    End, Expression, FIRST, Family, Meta, Register, Rejection, Verdict, destination_address, destination_address6, equals, family,
    input_begins, invalid, protocol, source_address, source_address6, to_one_of, to_one_of6,
};
use super::isolation::MEMBERS;
use super::{Chain, Data, Filling, Rule, Set};
use crate::core::flows::PROTOCOL_TCP;
use crate::core::links::{RESOLVER, ROUTER6, fnv1a};
use crate::core::names::is_there;
use crate::core::picture::{Attachments, Choice, Network, Picture, Place};

pub static VIPS: Set = Set { name: "vips", key: &[Field::Mark, Field::Address], data: Data::Verdict, filling: Filling::Keys };

pub static BACKENDS: Set =
    Set { name: "backends", key: &[Field::Address, Field::Number], data: Data::Fields(&[Field::Address]), filling: Filling::Keys };

pub static VIP_LIST: Set = Set { name: "viplist", key: &[Field::Address], data: Data::None, filling: Filling::Keys };

pub static HAIRPIN: Set = Set { name: "hairpin", key: &[Field::Address, Field::Address], data: Data::None, filling: Filling::Keys };

pub static DEAD: Set = Set { name: "dead", key: &[Field::Address], data: Data::None, filling: Filling::Keys };

pub static VIPS6: Set = Set { name: "vips6", key: &[Field::Mark, Field::Address6], data: Data::Verdict, filling: Filling::Keys };

pub static BACKENDS6: Set =
    Set { name: "backends6", key: &[Field::Address6, Field::Number], data: Data::Fields(&[Field::Address6]), filling: Filling::Keys };

pub static HAIRPIN6: Set = Set { name: "hairpin6", key: &[Field::Address6, Field::Address6], data: Data::None, filling: Filling::Keys };

pub static DEAD6: Set = Set { name: "dead6", key: &[Field::Address6], data: Data::None, filling: Filling::Keys };

/// So many endpoints have a slot each.
const SLOTS_EXACT: u32 = 32;

/// More share so many, as evenly as they go.
const SLOTS_SHARED: [u32; 4] = [64, 128, 256, 512];

/// Slots of an address whose clients keep their endpoint. Always as many: with another number every client would change.
const SLOTS_HASHED: u32 = 512;

/// Endpoints of one address; of more the first ones by task id are used.
pub const BACKENDS_MAX: usize = 512;

/// The same on every node, so that a client keeps its endpoint wherever it runs.
const SEED: u32 = 0x7263_6c75;

/// The kernel's `RTN_UNREACHABLE`.
const UNREACHABLE: u32 = 7;

/// The endpoints that take connections, of each service, in the order of their tasks' ids.
pub fn backends<'a>(network: &'a Network, attachments: &Attachments) -> BTreeMap<&'a str, Vec<Ipv4Addr>> {
    let mut by_service: BTreeMap<&str, Vec<(&str, Ipv4Addr)>> = BTreeMap::new();
    for (ip, endpoint) in &network.endpoints {
        if endpoint.serving && is_there(*ip, endpoint, attachments) {
            by_service.entry(endpoint.service_id.as_str()).or_default().push((endpoint.task_id.as_str(), *ip));
        }
    }
    let in_order = |mut endpoints: Vec<(&str, Ipv4Addr)>| -> Vec<Ipv4Addr> {
        endpoints.sort_unstable();
        endpoints.into_iter().map(|(_, ip)| ip).collect()
    };
    by_service.into_iter().map(|(service, endpoints)| (service, in_order(endpoints))).collect()
}

/// Services of which not every endpoint can be used.
pub fn left_out(picture: &Picture, attachments: &Attachments) -> Vec<String> {
    let mut problems = Vec::new();
    for network in picture.networks.values().filter(|network| !network.vips.is_empty()) {
        let backends = backends(network, attachments);
        for (ip, vip) in &network.vips {
            let count = backends.get(vip.service_id.as_str()).map_or(0, Vec::len);
            if count > BACKENDS_MAX {
                problems.push(format!(
                    "service {} has {count} endpoints on network {}; {BACKENDS_MAX} of them are used for its address {ip}",
                    vip.service, network.name
                ));
            }
        }
    }
    problems
}

/// Who takes connections to which address.
pub fn elements(picture: &Picture, attachments: &Attachments) -> Elements {
    let mut elements = Elements::new();
    let mut add = |element: Element| elements.insert(element.key, element.data);
    for network in picture.networks.values() {
        for (ip, endpoint) in &network.endpoints {
            if endpoint.dead && matches!(endpoint.place, Place::Node(node) if picture.silent.contains(&node)) {
                add(Element::new(SetName::Dead, &[Value::Address(*ip)], &[]));
                if let Some(ip6) = network.ip6(*ip) {
                    add(Element::new(SetName::Dead6, &[Value::Address6(ip6)], &[]));
                }
            }
        }
        if network.vips.is_empty() {
            continue;
        }
        let backends = backends(network, attachments);
        for (ip, vip) in &network.vips {
            let ip6 = network.ip6(*ip);
            add(Element::new(SetName::VipList, &[Value::Address(*ip)], &[]));
            let behind = backends.get(vip.service_id.as_str()).map(Vec::as_slice).unwrap_or_default();
            let behind = &behind[..behind.len().min(BACKENDS_MAX)];
            if behind.is_empty() {
                continue;
            }
            let (chain, slots) = match vip.choice {
                Choice::Random => drawn(behind),
                Choice::ByClient => hashed(behind),
            };
            if let Some(ip6) = ip6 {
                add(sent6(network.vni, ip6, six(&chain)));
            }
            add(sent(network.vni, *ip, chain));
            for (slot, backend) in (0..).zip(slots) {
                add(Element::new(SetName::Backends, &[Value::Address(*ip), Value::Number(slot)], &[Value::Address(backend)]));
                if let Some((ip6, backend6)) = ip6.zip(network.ip6(backend)) {
                    add(Element::new(SetName::Backends6, &[Value::Address6(ip6), Value::Number(slot)], &[Value::Address6(backend6)]));
                }
            }
            let is_here = |backend: &Ipv4Addr| network.endpoints.get(backend).is_some_and(|endpoint| endpoint.place == Place::Here);
            for backend in behind.iter().copied().filter(is_here) {
                add(Element::new(SetName::Hairpin, &[Value::Address(backend), Value::Address(backend)], &[]));
                if let Some(backend6) = network.ip6(backend) {
                    add(Element::new(SetName::Hairpin6, &[Value::Address6(backend6), Value::Address6(backend6)], &[]));
                }
            }
        }
    }
    elements
}

/// A network's connections to an address go through a chain.
fn sent(vni: u32, ip: Ipv4Addr, chain: String) -> Element {
    let key = Key { set: SetName::Vips, bytes: encode(&[Value::Mark(vni), Value::Address(ip)]) };
    Element { key, data: Verdict::Goto(chain).encode() }
}

fn sent6(vni: u32, ip6: Ipv6Addr, chain: String) -> Element {
    let key = Key { set: SetName::Vips6, bytes: encode(&[Value::Mark(vni), Value::Address6(ip6)]) };
    Element { key, data: Verdict::Goto(chain).encode() }
}

/// The chain that does of IPv6 what this one does.
fn six(chain: &str) -> String {
    format!("{chain}_6")
}

/// The chain that draws, and who has which slot: each as many as the others, or one more.
fn drawn(backends: &[Ipv4Addr]) -> (String, Vec<Ipv4Addr>) {
    let slots = slots(backends.len());
    (draws(slots), backends.iter().copied().cycle().take(slots as usize).collect())
}

/// By how many slots so many endpoints are found.
pub(super) fn slots(backends: usize) -> u32 {
    let count = u32::try_from(backends).expect("bounded by BACKENDS_MAX");
    if count <= SLOTS_EXACT { count } else { SLOTS_SHARED.into_iter().find(|slots| *slots >= count).unwrap_or(SLOTS_HASHED) }
}

/// All numbers of slots from which one is drawn.
pub(super) fn numbers_of_slots() -> impl Iterator<Item = u32> {
    (1..=SLOTS_EXACT).chain(SLOTS_SHARED)
}

/// The chain that hashes, and who has which slot: the endpoint with the highest lot for it, so that one that comes or goes changes its own
/// slots and no others.
fn hashed(backends: &[Ipv4Addr]) -> (String, Vec<Ipv4Addr>) {
    let holder = |slot: u32| backends.iter().copied().max_by_key(|backend| (lot(slot, *backend), *backend));
    (hashes(SLOTS_HASHED), (0..SLOTS_HASHED).filter_map(holder).collect())
}

/// FNV-1a of both, mixed (as `MurmurHash3` ends) for it hardly mixes what comes last.
fn lot(slot: u32, backend: Ipv4Addr) -> u64 {
    let hash = fnv1a(slot.to_be_bytes().into_iter().chain(backend.octets()));
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn draws(slots: u32) -> String {
    format!("r{slots}")
}

fn hashes(slots: u32) -> String {
    format!("h{slots}")
}

/// Of connections that begin, before they are routed.
pub(super) fn balancing() -> Vec<Rule> {
    let by_address = vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        Expression::Lookup { set: &MEMBERS, key: FIRST, into: Some(FIRST), present: true },
        destination_address(FIRST.after(1)),
        Expression::Lookup { set: &VIPS, key: FIRST, into: Some(Register::VERDICT), present: true },
    ];
    let by_address6 = vec![
        Expression::Meta { key: Meta::InputName, into: FIRST },
        Expression::Lookup { set: &MEMBERS, key: FIRST, into: Some(FIRST), present: true },
        destination_address6(FIRST.after(1)),
        Expression::Lookup { set: &VIPS6, key: FIRST, into: Some(Register::VERDICT), present: true },
    ];
    vec![
        Rule::new("iifname p* iifname map @members . ip daddr vmap @vips", [input_begins(b"p"), family(Family::Ipv4), by_address]),
        Rule::new("iifname p* iifname map @members . ip6 daddr vmap @vips6", [input_begins(b"p"), family(Family::Ipv6), by_address6]),
    ]
}

/// The chains to which addresses lead.
pub(super) fn choosing() -> Vec<Chain> {
    let slot = FIRST.after(1);
    let draw = |slots: u32| {
        let number = vec![Expression::Random { below: slots, into: slot }];
        Chain::aside(&draws(slots), choice(&format!("numgen random mod {slots}"), number))
    };
    let hash = |slots: u32| {
        let number = vec![source_address(slot), Expression::Hash { from: slot, len: 4, below: slots, seed: SEED, into: slot }];
        Chain::aside(&hashes(slots), choice(&format!("jhash ip saddr mod {slots} seed {SEED:#x}"), number))
    };
    numbers_of_slots().map(draw).chain([hash(SLOTS_HASHED)]).chain(choosing6()).collect()
}

fn choosing6() -> impl Iterator<Item = Chain> {
    let slot = FIRST.after(4);
    let draw = move |slots: u32| {
        let number = vec![Expression::Random { below: slots, into: slot }];
        Chain::aside(&six(&draws(slots)), choice6(&format!("numgen random mod {slots}"), number))
    };
    let hash = |slots: u32| {
        let number = vec![source_address6(slot), Expression::Hash { from: slot, len: 16, below: slots, seed: SEED, into: slot }];
        Chain::aside(&six(&hashes(slots)), choice6(&format!("jhash ip6 saddr mod {slots} seed {SEED:#x}"), number))
    };
    numbers_of_slots().map(draw).chain([hash(SLOTS_HASHED)])
}

/// As `choice`, the slot being in the register behind the address.
fn choice6(words: &str, number: Vec<Expression>) -> Vec<Rule> {
    let to_backend = || {
        vec![
            destination_address6(FIRST),
            Expression::Lookup { set: &BACKENDS6, key: FIRST, into: Some(FIRST), present: true },
            Expression::Translate { end: End::Destination, family: Family::Ipv6, address: FIRST, port: None },
        ]
    };
    let first = vec![Expression::Load { into: FIRST.after(4), value: 0_u32.to_ne_bytes().to_vec() }];
    let to = |words: &str, number| Rule::new(&format!("dnat to ip6 daddr . {words} map @backends6"), [number, to_backend()]);
    vec![to(words, number), to("0", first)]
}

/// To the endpoint of the slot that `number` puts into the second register, or to that of the first one.
fn choice(words: &str, number: Vec<Expression>) -> Vec<Rule> {
    let first = vec![Expression::Load { into: FIRST.after(1), value: 0_u32.to_ne_bytes().to_vec() }];
    let to = |words: &str, number| Rule::new(&format!("dnat to ip daddr . {words} map @backends"), [number, to_backend()]);
    vec![to(words, number), to("0", first)]
}

fn to_backend() -> Vec<Expression> {
    vec![
        destination_address(FIRST),
        Expression::Lookup { set: &BACKENDS, key: FIRST, into: Some(FIRST), present: true },
        Expression::Translate { end: End::Destination, family: Family::Ipv4, address: FIRST, port: None },
    ]
}

/// Of what goes to a node that is down, also on connections that were let through once, and on those that netd passes on for the host.
pub(super) fn dead() -> Vec<Rule> {
    let is_dead = || [family(Family::Ipv4), to_one_of(&DEAD)].concat();
    let is_dead6 = || [family(Family::Ipv6), to_one_of6(&DEAD6)].concat();
    vec![
        Rule::new(
            "ip daddr @dead meta l4proto tcp reject with tcp reset",
            [is_dead(), protocol(PROTOCOL_TCP), vec![Expression::Reject(Rejection::Reset)]],
        ),
        Rule::new("ip daddr @dead reject with icmpx host-unreachable", [is_dead(), vec![Expression::Reject(Rejection::HostUnreachable)]]),
        Rule::new(
            "ip6 daddr @dead6 meta l4proto tcp reject with tcp reset",
            [is_dead6(), protocol(PROTOCOL_TCP), vec![Expression::Reject(Rejection::Reset)]],
        ),
        Rule::new(
            "ip6 daddr @dead6 reject with icmpx host-unreachable",
            [is_dead6(), vec![Expression::Reject(Rejection::HostUnreachable)]],
        ),
    ]
}

/// Of what can begin no connection to an endpoint, like the end of one that was forgotten.
pub(super) fn strayed() -> Vec<Rule> {
    vec![Rule::new("ct state invalid ip daddr @viplist goto refuse", [invalid(), family(Family::Ipv4), to_one_of(&VIP_LIST), refuse()])]
}

/// Of what no endpoint took.
pub(super) fn unserved() -> Vec<Rule> {
    vec![Rule::new("ip daddr @viplist goto refuse", [family(Family::Ipv4), to_one_of(&VIP_LIST), refuse()])]
}

pub(super) fn refuse() -> Vec<Expression> {
    vec![Expression::Verdict(Verdict::Goto(REFUSE.to_owned()))]
}

/// Of what would be sent to an IPv6 address that nobody has, or to a service's that no endpoint took: there is no route. The kernel would say so by
/// ICMPv6, which reaches a program that connects only with its second packet, a second later; a reset it hears at once.
pub(super) fn nobodys() -> Vec<Rule> {
    let unreachable = vec![Expression::DestinationType { into: FIRST }, equals(&UNREACHABLE.to_ne_bytes())];
    // What is led elsewhere by its mark goes by another table than the one that is asked here.
    let unmarked = vec![Expression::Meta { key: Meta::Mark, into: FIRST }, equals(&0_u32.to_ne_bytes())];
    vec![Rule::new(
        "iifname p* meta mark 0 meta nfproto ipv6 fib daddr type unreachable goto refuse",
        [input_begins(b"p"), unmarked, family(Family::Ipv6), unreachable, refuse()],
    )]
}

/// The chain that says that nobody listens.
pub(super) const REFUSE: &str = "refuse";

/// As a host does at whose port nobody listens.
pub(super) fn refusing() -> Vec<Rule> {
    vec![
        Rule::new("meta l4proto tcp reject with tcp reset", [protocol(PROTOCOL_TCP), vec![Expression::Reject(Rejection::Reset)]]),
        Rule::new("reject with icmpx port-unreachable", [vec![Expression::Reject(Rejection::PortUnreachable)]]),
    ]
}

/// Of connections that begin, once they are routed.
pub(super) fn leaving() -> Vec<Rule> {
    let both = vec![
        source_address(FIRST),
        destination_address(FIRST.after(1)),
        Expression::Lookup { set: &HAIRPIN, key: FIRST, into: None, present: true },
    ];
    let translate = vec![
        Expression::Load { into: FIRST, value: RESOLVER.octets().to_vec() },
        Expression::Translate { end: End::Source, family: Family::Ipv4, address: FIRST, port: None },
    ];
    let both6 = vec![
        source_address6(FIRST),
        destination_address6(FIRST.after(4)),
        Expression::Lookup { set: &HAIRPIN6, key: FIRST, into: None, present: true },
    ];
    let translate6 = vec![
        Expression::Load { into: FIRST, value: ROUTER6.octets().to_vec() },
        Expression::Translate { end: End::Source, family: Family::Ipv6, address: FIRST, port: None },
    ];
    vec![
        Rule::new("ip saddr . ip daddr @hairpin snat to resolver", [family(Family::Ipv4), both, translate]),
        Rule::new(&format!("ip6 saddr . ip6 daddr @hairpin6 snat to {ROUTER6}"), [family(Family::Ipv6), both6, translate6]),
    ]
}

#[cfg(test)]
mod tests {
    use rcluster_api::wire::v1;

    use super::*;
    use crate::core::fixtures::{endpoint, service, t1_attached, view};
    use crate::core::picture::Attachment;

    fn addresses(count: u16) -> Vec<Ipv4Addr> {
        (0..count).map(|number| Ipv4Addr::from(0x0a80_0000 + u32::from(number))).collect()
    }

    /// How many slots each has.
    fn shares(slots: &[Ipv4Addr]) -> BTreeMap<Ipv4Addr, usize> {
        slots.iter().fold(BTreeMap::new(), |mut shares, backend| {
            *shares.entry(*backend).or_default() += 1;
            shares
        })
    }

    #[test]
    fn every_endpoint_has_as_many_slots_as_the_others_or_one_more() {
        let chains: Vec<String> = choosing().into_iter().map(|chain| chain.name).collect();
        for count in 1..=512 {
            let backends = addresses(count);
            let (chain, slots) = drawn(&backends);
            assert!(chains.contains(&chain) && chain == draws(u32::try_from(slots.len()).unwrap()), "{chain} for {count}");
            let shares = shares(&slots);
            let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
            assert!(shares.len() == backends.len() && most - least <= usize::from(count > 32), "{count}: {least} to {most}");
        }
    }

    #[test]
    fn an_endpoint_that_goes_changes_its_own_clients_and_no_others() {
        for count in [2, 3, 10, 100] {
            let mut backends = addresses(count);
            let (chain, before) = hashed(&backends);
            assert!(choosing().iter().any(|known| known.name == chain));
            let gone = backends.remove(usize::from(count) / 2);
            let (_, after) = hashed(&backends);
            for (was, is) in before.iter().zip(&after) {
                assert!((was == is) != (*was == gone), "{was} became {is}");
            }
            // Within 5 standard deviations of as many draws.
            let mean = 512.0 / f64::from(count);
            let shares = shares(&before);
            let share = |backend: &Ipv4Addr| f64::from(u32::try_from(shares.get(backend).copied().unwrap_or_default()).unwrap());
            let furthest = backends.iter().map(|backend| (share(backend) - mean).abs()).fold(0.0, f64::max);
            assert!(furthest < 5.0 * mean.sqrt(), "{furthest} from {mean}");
        }
    }

    /// The elements of this feature, as text.
    fn shown(view: &v1::NetView, attachments: &Attachments) -> Vec<String> {
        let elements = elements(&Picture::parse(view).0, attachments);
        elements.into_iter().map(|(key, data)| Element { key, data }.to_string()).collect()
    }

    /// Two services on `front` with an endpoint each that is elsewhere and one here; t1 is attached.
    fn balanced() -> (v1::NetView, Attachments) {
        let mut view = view(1);
        let by_client = v1::ServiceView { affinity: v1::Affinity::Client.into(), ..service("db", "net-a", "10.128.0.9") };
        view.services = vec![service("web", "net-a", "10.128.0.8"), by_client];
        let mut stranger = endpoint("t0", "n2", "10.128.0.5");
        stranger.service_id = "db".into();
        stranger.serving = false;
        view.networks[0].endpoints.push(stranger);
        (view, t1_attached())
    }

    #[test]
    fn an_address_leads_to_the_endpoints_that_serve_and_are_there() {
        let (mut view, attachments) = balanced();
        let nobody_serves = ["viplist { 10.128.0.8 }", "viplist { 10.128.0.9 }"];
        let web =
            |view: &mut v1::NetView| view.networks[0].endpoints[..3].iter_mut().for_each(|endpoint| endpoint.service_id = "web".into());
        assert_eq!(shown(&view, &attachments), nobody_serves);
        web(&mut view);
        assert_eq!(
            shown(&view, &attachments),
            [
                "backends { 10.128.0.8 . 0 : 10.128.0.2 }",
                "backends { 10.128.0.8 . 1 : 10.128.0.3 }",
                "backends { 10.128.0.8 . 2 : 10.128.0.4 }",
                "hairpin { 10.128.0.2 . 10.128.0.2 }",
                "vips { 4097 . 10.128.0.8 : goto r3 }",
                "viplist { 10.128.0.8 }",
                "viplist { 10.128.0.9 }",
            ]
        );
        assert_eq!(
            shown(&view, &Attachments::new()),
            [
                "backends { 10.128.0.8 . 0 : 10.128.0.3 }",
                "backends { 10.128.0.8 . 1 : 10.128.0.4 }",
                "vips { 4097 . 10.128.0.8 : goto r2 }",
                "viplist { 10.128.0.8 }",
                "viplist { 10.128.0.9 }",
            ],
            "nothing is sent to a pod that is not attached"
        );
        let left = |(task, pod): (String, Attachment)| (task, Attachment { left: true, ..pod });
        let left = attachments.clone().into_iter().map(left).collect();
        assert_eq!(shown(&view, &left), shown(&view, &Attachments::new()), "nor to one that has left");
    }

    #[test]
    fn an_address_whose_clients_keep_their_endpoint_has_a_slot_for_each_of_their_hashes() {
        let (mut view, attachments) = balanced();
        view.networks[0].endpoints[3].serving = true;
        let shown = shown(&view, &attachments);
        assert!(shown.contains(&"vips { 4097 . 10.128.0.9 : goto h512 }".to_owned()), "{shown:?}");
        assert_eq!(shown.iter().filter(|line| line.ends_with(": 10.128.0.5 }")).count(), 512);
    }

    #[test]
    fn endpoints_of_a_node_that_is_down_are_dead() {
        let (mut view, attachments) = balanced();
        for endpoint in &mut view.networks[0].endpoints {
            endpoint.state = v1::EndpointState::Dead.into();
            endpoint.serving = false;
        }
        let mut picture = Picture::parse(&view).0;
        let dead = |picture: &Picture| {
            let elements = elements(picture, &attachments).into_iter().filter(|(key, _)| key.set == SetName::Dead);
            elements.map(|(key, data)| Element { key, data }.to_string()).collect::<Vec<String>>()
        };
        let node = Ipv4Addr::new(10, 90, 0, 102);
        assert_eq!(picture.dead_nodes().into_iter().collect::<Vec<_>>(), [node], "what is here is not");
        assert!(dead(&picture).is_empty(), "the node has not been asked");
        picture.silent.insert(node);
        assert_eq!(dead(&picture), ["dead { 10.128.0.3 }", "dead { 10.128.0.4 }", "dead { 10.128.0.5 }"]);
        let mut next = Picture::parse(&view).0;
        next.retain_silent(&picture);
        assert_eq!(dead(&next).len(), 3);
        view.networks[0].endpoints.iter_mut().for_each(|endpoint| endpoint.state = v1::EndpointState::Serving.into());
        let mut alive = Picture::parse(&view).0;
        alive.retain_silent(&next);
        assert!(alive.silent.is_empty());
    }

    #[test]
    fn endpoints_beyond_the_limit_are_told_of() {
        let (mut view, attachments) = balanced();
        view.networks[0].subnet = "10.128.0.0/20".into();
        view.networks.truncate(1);
        for ip in addresses(2048).into_iter().skip(1024).take(BACKENDS_MAX + 1) {
            let id = format!("x{ip}");
            view.networks[0].endpoints.push(v1::EndpointView { service_id: "web".into(), ..endpoint(&id, "n2", &ip.to_string()) });
        }
        let picture = Picture::parse(&view).0;
        assert_eq!(
            left_out(&picture, &attachments),
            ["service web has 513 endpoints on network front; 512 of them are used for its address 10.128.0.8"]
        );
        assert_eq!(elements(&picture, &attachments).keys().filter(|key| key.set == SetName::Backends).count(), 512);
    }
}
