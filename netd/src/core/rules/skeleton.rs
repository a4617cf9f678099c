//! The order of the table: which chains there are, and which feature's rules come before which.

use std::sync::LazyLock;

use super::elements::{Elements, SetName};
use super::{Chain, Hook, Outline, Policy, Skeleton, TABLE, balance, egress, ingress, isolation, policy};
use crate::core::links::Underlay;
use crate::core::picture::{Attachments, Picture};

/// Before connection tracking sees a packet.
const BEFORE_TRACKING: i32 = -300;

/// Once connections are looked up, and before their destinations change.
const TRACKED: i32 = -150;

/// Before a packet is routed.
const DESTINATION: i32 = -100;

/// Once its destination is what it will be.
const CHANGED: i32 = -90;

/// Where nft's own `filter` stands.
const FILTER: i32 = 0;

/// Once a packet is routed.
const SOURCE: i32 = 100;

/// The table's sets and chains.
pub fn skeleton() -> Skeleton {
    let forward = [
        isolation::known(),
        balance::dead(),
        balance::strayed(),
        isolation::strayed(),
        policy::shielding(),
        isolation::from_outside(),
        ingress::forwarded(),
        isolation::marked(),
        ingress::by_node(),
        balance::unserved(),
        policy::judged(),
        egress::staying(),
        isolation::passing(),
    ];
    let balance = [balance::balancing(), ingress::balancing()].concat();
    let input = [isolation::arriving(), ingress::refused()].concat();
    let leave = [balance::leaving(), egress::leaving()].concat();
    let tracked = [ingress::plain(), isolation::from_nodes(), ingress::between_nodes(), ingress::guarding()].concat();
    let toward = [ingress::plain(), ingress::toward(), balance::nobodys()].concat();
    let mut chains = vec![
        Chain::filter("source", Hook::Prerouting, BEFORE_TRACKING, Policy::Accept, [isolation::incoming(), ingress::apart()].concat()),
        Chain::filter("answer", Hook::Output, BEFORE_TRACKING, Policy::Accept, isolation::answers()),
        Chain::filter("tracked", Hook::Prerouting, TRACKED, Policy::Accept, tracked),
        Chain::nat("balance", Hook::Prerouting, DESTINATION, balance),
        Chain::filter("toward", Hook::Prerouting, CHANGED, Policy::Accept, toward),
    ];
    chains.extend(balance::choosing());
    chains.extend(ingress::choosing());
    chains.extend([
        Chain::filter("forward", Hook::Forward, FILTER, Policy::Drop, forward.concat()),
        Chain::aside(balance::REFUSE, balance::refusing()),
        Chain::aside(policy::ADMIT, policy::admitting()),
        Chain::aside(policy::POLICY, policy::judging()),
        Chain::filter("input", Hook::Input, FILTER, Policy::Drop, input),
        Chain::filter("own", Hook::Output, FILTER, Policy::Accept, [balance::dead(), ingress::sent()].concat()),
        Chain::nat("leave", Hook::Postrouting, SOURCE, leave),
    ]);
    Skeleton { table: TABLE, sets: SetName::ALL.into_iter().map(SetName::set).collect(), chains }
}

/// The outline of the table, which is always the same: made once.
pub fn outline() -> &'static Outline {
    static OUTLINE: LazyLock<Outline> = LazyLock::new(|| skeleton().outline());
    &OUTLINE
}

/// The elements of all sets.
pub fn elements(picture: &Picture, attachments: &Attachments, underlay: &Underlay) -> Elements {
    let mut elements = isolation::elements(picture, attachments);
    elements.extend(egress::elements(picture, underlay));
    elements.extend(balance::elements(picture, attachments));
    elements.extend(policy::elements(picture, attachments));
    elements.extend(ingress::elements(picture, attachments, underlay));
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_skeleton_reads_like_this() {
        let mut skeleton = skeleton();
        let is_number = |slots: &str| slots.trim_end_matches("_6").parse::<u32>().is_ok();
        let drawn = |name: &String| name.strip_prefix(['r', 'p']).is_some_and(is_number);
        let draws: Vec<String> = skeleton.chains.iter().map(|chain| chain.name.clone()).filter(drawn).collect();
        let numbers =
            |letter: char, end: &'static str| (1..=32).chain([64, 128, 256, 512]).map(move |slots| format!("{letter}{slots}{end}"));
        assert_eq!(draws, numbers('r', "").chain(numbers('r', "_6")).chain(numbers('p', "")).chain(numbers('p', "_6")).collect::<Vec<_>>());
        skeleton.chains.retain(|chain| !draws.contains(&chain.name) || ["r3", "r3_6", "p3", "p3_6"].contains(&chain.name.as_str()));
        assert_eq!(
            skeleton.to_string(),
            "table inet rcluster
  set sources [Name, Address] -> None
  set sources6 [Name, Address6] -> None
  set prefixes6 [Name, Prefix6] -> None
  set members [Name] -> Fields([Mark])
  set exits [Mark, Name] -> None
  set entries [Address] -> None
  set entries6 [Address6] -> None
  set inside [Protocol, Address] -> None, intervals
  set backends [Address, Number] -> Fields([Address])
  set hairpin [Address, Address] -> None
  set vips [Mark, Address] -> Verdict
  set viplist [Address] -> None
  set dead [Address] -> None
  set backends6 [Address6, Number] -> Fields([Address6])
  set hairpin6 [Address6, Address6] -> None
  set vips6 [Mark, Address6] -> Verdict
  set dead6 [Address6] -> None
  set allow [Address, Address, Protocol, Port] -> None, intervals
  set allow6 [Address6, Address6, Protocol, Port] -> None, intervals
  set allow_in [Address, Protocol, Port, Address] -> None, intervals
  set allow_in6 [Address6, Protocol, Port, Address6] -> None, intervals
  set shielded [Address] -> None
  set shielded6 [Address6] -> None
  set policed [Mark] -> None
  set flood [Name] -> None, learned for 10000 ms
  set outward [Mark] -> None
  set peers [HardwareAddress] -> Fields([Mark])
  set zones [HardwareAddress] -> Fields([Zone])
  set homes [Address] -> Fields([Mark])
  set homes6 [Address6] -> Fields([Mark])
  set served [Address, Protocol, Port] -> None
  set served6 [Address6, Protocol, Port] -> None
  set guarded [Protocol, Port] -> None
  set allowed [Protocol, Port, Address] -> None, intervals
  set allowed6 [Protocol, Port, Address6] -> None, intervals
  set behind [Protocol, Port, Number] -> Fields([Address, Port])
  set behind6 [Protocol, Port, Number] -> Fields([Address6, Port])
  set ports [Protocol, Port] -> Verdict
  set ports6 [Protocol, Port] -> Verdict
  chain source hook Prerouting priority -300 policy Accept
    meta nfproto ipv6 iifname p* iifname . ip6 saddr != @sources6 drop
    meta nfproto ipv6 iifname v* iifname . ip6 saddr & ffff:ffff:ffff:ffff:: != @prefixes6 drop
    iifname p* iifname . ip saddr != @sources drop
    ip daddr 169.254.53.53 udp dport 53 notrack
    iifname ing ct original zone set ether saddr map @zones
  chain answer hook Output priority -300 policy Accept
    ip saddr 169.254.53.53 udp sport 53 notrack
  chain tracked hook Prerouting priority -150 policy Accept
    ct state established ct mark 0 accept
    meta nfproto ipv4 iifname v* fib saddr . iif oif missing drop
    iifname ing ct state new ct mark set ether saddr map @peers
    iifname p* ct direction reply ct mark & 0xff000000 == 0x1000000 meta mark set ct mark
    ct state new ip daddr @entries meta l4proto . th dport @guarded meta l4proto . th dport . ip saddr != @allowed goto refuse
    iifname up ct state new meta nfproto ipv6 meta l4proto . th dport @guarded meta l4proto . th dport . ip6 saddr != @allowed6 goto refuse
  chain balance nat hook Prerouting priority -100 policy Accept
    iifname p* iifname map @members . ip daddr vmap @vips
    iifname p* iifname map @members . ip6 daddr vmap @vips6
    ip daddr @entries meta l4proto . th dport vmap @ports
    iifname up ip6 daddr fd5c:7263::54:2 meta l4proto . th dport vmap @ports6
  chain toward hook Prerouting priority -90 policy Accept
    ct state established ct mark 0 accept
    ct state new ct original ip daddr @entries ct mark set ip daddr map @homes
    ct direction original ct mark & 0xff000000 == 0x1000000 ct original ip daddr @entries meta mark set ct mark
    ct state new ct original ip6 daddr fd5c:7263::54:2 ct mark set ip6 daddr map @homes6
    ct direction original ct mark & 0xff000000 == 0x1000000 ct original ip6 daddr fd5c:7263::54:2 meta mark set ct mark
    iifname p* meta mark 0 meta nfproto ipv6 fib daddr type unreachable goto refuse
  chain r3
    dnat to ip daddr . numgen random mod 3 map @backends
    dnat to ip daddr . 0 map @backends
  chain h512
    dnat to ip daddr . jhash ip saddr mod 512 seed 0x72636c75 map @backends
    dnat to ip daddr . 0 map @backends
  chain r3_6
    dnat to ip6 daddr . numgen random mod 3 map @backends6
    dnat to ip6 daddr . 0 map @backends6
  chain h512_6
    dnat to ip6 daddr . jhash ip6 saddr mod 512 seed 0x72636c75 map @backends6
    dnat to ip6 daddr . 0 map @backends6
  chain p3
    dnat to meta l4proto . th dport . numgen random mod 3 map @behind
    dnat to meta l4proto . th dport . 0 map @behind
  chain p3_6
    dnat to meta l4proto . th dport . numgen random mod 3 map @behind6
    dnat to meta l4proto . th dport . 0 map @behind6
  chain forward hook Forward priority 0 policy Drop
    ct state established,related meta nfproto ipv4 ip daddr != @dead meta mark set 0 accept
    ct state established,related meta nfproto ipv6 ip6 daddr != @dead6 meta mark set 0 accept
    ip daddr @dead meta l4proto tcp reject with tcp reset
    ip daddr @dead reject with icmpx host-unreachable
    ip6 daddr @dead6 meta l4proto tcp reject with tcp reset
    ip6 daddr @dead6 reject with icmpx host-unreachable
    ct state invalid ip daddr @viplist goto refuse
    ct state invalid drop
    iifname up ip daddr @shielded jump admit
    iifname ing ip saddr != 169.254.192.0/19 ip daddr @shielded jump admit
    iifname p* ip daddr @shielded ct original ip daddr @entries jump admit
    iifname up ip6 daddr @shielded6 jump admit
    iifname ing ip6 daddr @shielded6 jump admit
    iifname up meta nfproto ipv6 iifname . ip6 saddr & ffff:ffff:ffff:ffff:: @prefixes6 drop
    iifname ing ct mark & 0xff000000 == 0x1000000 ip daddr . meta l4proto . th dport @served meta mark set 0 accept
    iifname ing ct mark & 0xff000000 == 0x1000000 ip6 daddr . meta l4proto . th dport @served6 meta mark set 0 accept
    iifname ing drop
    iifname up ip saddr 169.254.192.0/19 drop
    iifname up ct status & 0x20 != 0 meta mark set 0 accept
    iifname up drop
    meta mark set iifname map @members
    ct original ip daddr @entries ct status & 0x20 != 0 meta mark @outward meta mark set 0 accept
    ct original ip daddr @entries goto refuse
    ip daddr @viplist goto refuse
    meta mark @policed jump policy
    oifname up meta l4proto . ip daddr @inside reject with icmpx admin-prohibited
    oifname up ip6 daddr @entries6 goto refuse
    meta mark . oifname @exits meta mark set 0 accept
    meta nfproto ipv6 goto refuse
    reject with icmpx admin-prohibited
  chain refuse
    meta l4proto tcp reject with tcp reset
    reject with icmpx port-unreachable
  chain admit
    ip daddr . meta l4proto . th dport . ip saddr @allow_in return
    ip6 daddr . meta l4proto . th dport . ip6 saddr @allow_in6 return
    goto refuse
  chain policy
    oifname up return
    ip saddr . ip daddr . meta l4proto . th dport @allow return
    ip6 saddr . ip6 daddr . meta l4proto . th dport @allow6 return
    meta nfproto ipv6 goto refuse
    iifname p* reject with icmpx admin-prohibited
    goto refuse
  chain input hook Input priority 0 policy Drop
    iifname lo accept
    ct state established,related accept
    ip daddr 169.254.53.53 udp dport 53 iifname p* update @flood { iifname limit rate over 20000/second burst 5000 packets } limit rate over 80000/second burst 20000 packets drop
    iifname p* ip daddr 169.254.53.53 udp dport 53 accept
    iifname p* ip daddr 169.254.53.53 tcp dport 53 accept
    iifname p* icmp type echo-request accept
    iifname p* reject with icmpx admin-prohibited
    iifname up goto refuse
  chain own hook Output priority 0 policy Accept
    ip daddr @dead meta l4proto tcp reject with tcp reset
    ip daddr @dead reject with icmpx host-unreachable
    ip6 daddr @dead6 meta l4proto tcp reject with tcp reset
    ip6 daddr @dead6 reject with icmpx host-unreachable
    meta mark set 0
  chain leave nat hook Postrouting priority 100 policy Accept
    ip saddr . ip daddr @hairpin snat to 169.254.53.53
    ip6 saddr . ip6 daddr @hairpin6 snat to fd5c:7263::53
    oifname up masquerade random-fully
"
        );
    }

    #[test]
    fn the_outline_tells_the_shapes_of_sets_and_the_places_of_chains() {
        let outline = outline();
        let sets: Vec<&str> = outline.sets.iter().map(String::as_str).collect();
        assert_eq!(
            sets,
            [
                "allow key 16 data 0 flags 132",
                "allow6 key 40 data 0 flags 132",
                "allow_in key 16 data 0 flags 132",
                "allow_in6 key 40 data 0 flags 132",
                "allowed key 12 data 0 flags 132",
                "allowed6 key 24 data 0 flags 132",
                "backends key 8 data 4 flags 8",
                "backends6 key 20 data 16 flags 8",
                "behind key 12 data 8 flags 8",
                "behind6 key 12 data 20 flags 8",
                "dead key 4 data 0 flags 0",
                "dead6 key 16 data 0 flags 0",
                "entries key 4 data 0 flags 0",
                "entries6 key 16 data 0 flags 0",
                "exits key 20 data 0 flags 0",
                "flood key 16 data 0 flags 48",
                "guarded key 8 data 0 flags 0",
                "hairpin key 8 data 0 flags 0",
                "hairpin6 key 32 data 0 flags 0",
                "homes key 4 data 4 flags 8",
                "homes6 key 16 data 4 flags 8",
                "inside key 8 data 0 flags 132",
                "members key 16 data 4 flags 8",
                "outward key 4 data 0 flags 0",
                "peers key 8 data 4 flags 8",
                "policed key 4 data 0 flags 0",
                "ports key 8 data 0 flags 8",
                "ports6 key 8 data 0 flags 8",
                "prefixes6 key 24 data 0 flags 0",
                "served key 12 data 0 flags 0",
                "served6 key 24 data 0 flags 0",
                "shielded key 4 data 0 flags 0",
                "shielded6 key 16 data 0 flags 0",
                "sources key 20 data 0 flags 0",
                "sources6 key 32 data 0 flags 0",
                "viplist key 4 data 0 flags 0",
                "vips key 8 data 0 flags 8",
                "vips6 key 20 data 0 flags 8",
                "zones key 8 data 4 flags 8",
            ]
        );
        let base_chains = outline.chains.iter().map(String::as_str).filter(|chain| chain.contains(' '));
        let chains: Vec<&str> = base_chains.collect();
        assert_eq!(
            chains,
            [
                "answer filter hook 3 priority -300 policy 1",
                "balance nat hook 0 priority -100 policy 1",
                "forward filter hook 2 priority 0 policy 0",
                "input filter hook 1 priority 0 policy 0",
                "leave nat hook 4 priority 100 policy 1",
                "own filter hook 3 priority 0 policy 1",
                "source filter hook 0 priority -300 policy 1",
                "toward filter hook 0 priority -90 policy 1",
                "tracked filter hook 0 priority -150 policy 1",
            ]
        );
    }
}
