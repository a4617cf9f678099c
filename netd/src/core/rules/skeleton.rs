//! The order of the table: which chains there are, and which feature's rules come before which.

use std::sync::LazyLock;

use super::elements::{Elements, SetName};
use super::{Chain, Hook, Outline, Policy, Skeleton, TABLE, balance, egress, isolation, policy};
use crate::core::links::Underlay;
use crate::core::picture::{Attachments, Picture};

/// Before connection tracking sees a packet.
const BEFORE_TRACKING: i32 = -300;

/// Before a packet is routed.
const DESTINATION: i32 = -100;

/// Where nft's own `filter` stands.
const FILTER: i32 = 0;

/// Once a packet is routed.
const SOURCE: i32 = 100;

/// The table's sets and chains.
pub fn skeleton() -> Skeleton {
    let forward = [
        balance::dead(),
        isolation::known(),
        policy::shielding(),
        isolation::marked(),
        egress::refused(),
        balance::unserved(),
        policy::judged(),
        isolation::passing(),
    ];
    let leave = [balance::leaving(), egress::leaving()].concat();
    let mut chains = vec![
        Chain::filter("source", Hook::Prerouting, BEFORE_TRACKING, Policy::Accept, isolation::incoming()),
        Chain::filter("answer", Hook::Output, BEFORE_TRACKING, Policy::Accept, isolation::answers()),
        Chain::nat("balance", Hook::Prerouting, DESTINATION, balance::balancing()),
    ];
    chains.extend(balance::choosing());
    chains.extend([
        Chain::filter("forward", Hook::Forward, FILTER, Policy::Drop, forward.concat()),
        Chain::aside(balance::REFUSE, balance::refusing()),
        Chain::aside(policy::ADMIT, policy::admitting()),
        Chain::aside(policy::POLICY, policy::judging()),
        Chain::filter("input", Hook::Input, FILTER, Policy::Drop, isolation::arriving()),
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
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_skeleton_reads_like_this() {
        let mut skeleton = skeleton();
        let draws: Vec<String> = skeleton.chains.iter().map(|chain| chain.name.clone()).filter(|name| name.starts_with('r')).collect();
        let numbers = (1..=32).chain([64, 128, 256, 512]).map(|slots| format!("r{slots}")).chain(["refuse".to_owned()]);
        assert_eq!(draws, numbers.collect::<Vec<_>>());
        skeleton.chains.retain(|chain| !draws.contains(&chain.name) || ["r3", "refuse"].contains(&chain.name.as_str()));
        assert_eq!(
            skeleton.to_string(),
            "table inet rcluster
  set sources [Name, Address] -> None
  set members [Name] -> Fields([Mark])
  set exits [Mark, Name] -> None
  set entries [Address] -> None
  set backends [Address, Number] -> Fields([Address])
  set hairpin [Address, Address] -> None
  set vips [Mark, Address] -> Verdict
  set viplist [Address] -> None
  set dead [Address] -> None
  set allow [Address, Address, Protocol, Port] -> None, intervals
  set allow_in [Address, Protocol, Port, Address] -> None, intervals
  set shielded [Address] -> None
  set policed [Mark] -> None
  set flood [Name] -> None, learned for 10000 ms
  chain source hook Prerouting priority -300 policy Accept
    iifname p* meta nfproto ipv6 drop
    iifname p* iifname . ip saddr != @sources drop
    ip daddr 169.254.53.53 udp dport 53 notrack
  chain answer hook Output priority -300 policy Accept
    ip saddr 169.254.53.53 udp sport 53 notrack
  chain balance nat hook Prerouting priority -100 policy Accept
    iifname p* iifname map @members . ip daddr vmap @vips
  chain r3
    dnat to ip daddr . numgen random mod 3 map @backends
    dnat to ip daddr . 0 map @backends
  chain h512
    dnat to ip daddr . jhash ip saddr mod 512 seed 0x72636c75 map @backends
    dnat to ip daddr . 0 map @backends
  chain forward hook Forward priority 0 policy Drop
    ip daddr @dead meta l4proto tcp reject with tcp reset
    ip daddr @dead reject with icmpx host-unreachable
    ct state established,related accept
    iifname up ip daddr @shielded jump admit
    iifname ing ip daddr @shielded jump admit
    iifname p* ip daddr @shielded ct original ip daddr @entries jump admit
    meta mark set iifname map @members
    ip daddr @entries reject with icmpx admin-prohibited
    ip daddr @viplist goto refuse
    meta mark @policed jump policy
    meta mark . oifname @exits meta mark set 0 accept
    reject with icmpx admin-prohibited
  chain refuse
    meta l4proto tcp reject with tcp reset
    reject with icmpx port-unreachable
  chain admit
    ip daddr . meta l4proto . th dport . ip saddr @allow_in return
    goto refuse
  chain policy
    oifname up return
    ip saddr . ip daddr . meta l4proto . th dport @allow return
    iifname p* reject with icmpx admin-prohibited
    goto refuse
  chain input hook Input priority 0 policy Drop
    iifname lo accept
    ct state established,related accept
    ip daddr 169.254.53.53 udp dport 53 iifname p* update @flood { iifname limit rate over 20000/second burst 5000 packets } drop
    iifname p* ip daddr 169.254.53.53 udp dport 53 accept
    iifname p* ip daddr 169.254.53.53 tcp dport 53 accept
    iifname p* icmp type echo-request accept
    iifname p* reject with icmpx admin-prohibited
  chain leave nat hook Postrouting priority 100 policy Accept
    ip saddr . ip daddr @hairpin snat to 169.254.53.53
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
                "allow_in key 16 data 0 flags 132",
                "backends key 8 data 4 flags 8",
                "dead key 4 data 0 flags 0",
                "entries key 4 data 0 flags 0",
                "exits key 20 data 0 flags 0",
                "flood key 16 data 0 flags 48",
                "hairpin key 8 data 0 flags 0",
                "members key 16 data 4 flags 8",
                "policed key 4 data 0 flags 0",
                "shielded key 4 data 0 flags 0",
                "sources key 20 data 0 flags 0",
                "viplist key 4 data 0 flags 0",
                "vips key 8 data 0 flags 8",
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
                "source filter hook 0 priority -300 policy 1",
            ]
        );
    }
}
