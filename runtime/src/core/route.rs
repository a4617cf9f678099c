//! Messages of rtnetlink(7), as bytes: what moves a network interface into a namespace and gives it its addresses again.
//!
//! In: interfaces by index, and what the kernel answered. Out: requests, and addresses. Never sends anything.

/// An address of an interface, with the attributes it is given again by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// What the kernel answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Permanent ones of global scope.
    pub addresses: Vec<Address>,
    /// No more follows; the error number, if it failed.
    pub end: Option<i32>,
}

const HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
/// Flags that are wishes and not states (`linux/if_addr.h`): no duplicate detection, home address, no route of the prefix.
const KEPT_FLAGS: u32 = libc::IFA_F_NODAD | libc::IFA_F_HOMEADDRESS | 0x200;
/// `IFA_FLAGS` and `IFA_RT_PRIORITY` of `linux/if_addr.h`, which libc does not name.
const IFA_FLAGS: u16 = 8;
const IFA_RT_PRIORITY: u16 = 9;

/// Asks for all addresses.
pub fn addresses() -> Vec<u8> {
    let dump = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    message(libc::RTM_GETADDR, dump, &[0; ADDRESS_HEADER], &[])
}

/// Moves an interface to a namespace, and gives it a name there.
pub fn moved(index: u32, namespace: i32, name: &str) -> Vec<u8> {
    let attributes = [(libc::IFLA_NET_NS_FD, namespace.to_ne_bytes().to_vec()), (libc::IFLA_IFNAME, [name.as_bytes(), &[0]].concat())];
    change(libc::RTM_SETLINK, &link(index, 0), &attributes)
}

/// Gives an interface an address.
pub fn with_address(index: u32, address: &Address) -> Vec<u8> {
    let header = [&[address.family, address.prefix, 0, libc::RT_SCOPE_UNIVERSE][..], &index.to_ne_bytes()].concat();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    message(libc::RTM_NEWADDR, flags, &header, &address.attributes)
}

/// Lets an interface send and receive.
pub fn up(index: u32) -> Vec<u8> {
    change(libc::RTM_SETLINK, &link(index, libc::IFF_UP as u32), &[])
}

/// Reads what came in one datagram; of addresses, those of one interface.
pub fn answer(mut bytes: &[u8], index: u32) -> Answer {
    let mut answer = Answer::default();
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        let Some(body) = bytes.get(HEADER..length) else { break };
        match i32::from(kind) {
            libc::NLMSG_DONE => answer.end = Some(0),
            // Negative in the message.
            libc::NLMSG_ERROR => answer.end = Some(u32_at(body, 0).map_or(libc::EBADMSG, |error| error.cast_signed().saturating_neg())),
            _ if kind == libc::RTM_NEWADDR => answer.addresses.extend(address(body, index)),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answer
}

fn address(body: &[u8], index: u32) -> Option<Address> {
    let header = body.get(..ADDRESS_HEADER)?;
    let mut attributes = attributes(&body[ADDRESS_HEADER..]);
    let long = attributes.iter().find(|(kind, _)| *kind == IFA_FLAGS).and_then(|(_, value)| u32_at(value, 0));
    let flags = long.unwrap_or(u32::from(header[2]));
    if u32_at(header, 4)? != index || header[3] != libc::RT_SCOPE_UNIVERSE || flags & libc::IFA_F_PERMANENT == 0 {
        return None;
    }
    // The label is the old name, and how long it lives is for ever.
    attributes.retain(|(kind, _)| matches!(*kind, libc::IFA_ADDRESS | libc::IFA_LOCAL | libc::IFA_BROADCAST | IFA_RT_PRIORITY));
    attributes.push((IFA_FLAGS, (flags & KEPT_FLAGS).to_ne_bytes().to_vec()));
    Some(Address { family: header[0], prefix: header[1], attributes })
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (u16_at(bytes, 0), u16_at(bytes, 2)) {
        let Some(value) = bytes.get(4..usize::from(length)) else { break };
        found.push((kind, value.to_vec()));
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// `struct ifinfomsg` with one set of flags to set.
fn link(index: u32, flags: u32) -> Vec<u8> {
    [0, index, flags, flags].iter().flat_map(|part| part.to_ne_bytes()).collect()
}

fn change(kind: u16, header: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    message(kind, (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16, header, attributes)
}

fn message(kind: u16, flags: u16, header: &[u8], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = [&[0; 4][..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], header].concat();
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).expect("names and addresses are short");
        bytes.extend([length.to_ne_bytes(), kind.to_ne_bytes()].concat());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(bytes.len()).expect("a few attributes are short");
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel tells of 10.1.2.3/24 of the interface 7.
    fn told(scope: u8, flags: u32) -> Vec<u8> {
        let header = [&[2, 24, 0, scope][..], &7_u32.to_ne_bytes()].concat();
        let local = |kind| (kind, vec![10, 1, 2, 3]);
        let attributes = [local(libc::IFA_ADDRESS), local(libc::IFA_LOCAL), (libc::IFA_LABEL, b"eth0\0".to_vec())];
        message(libc::RTM_NEWADDR, 0, &header, &[&attributes[..], &[(IFA_FLAGS, flags.to_ne_bytes().to_vec())]].concat())
    }

    #[test]
    fn permanent_global_addresses_are_kept_without_their_label() {
        let found = answer(&told(0, 0x80), 7).addresses;
        assert_eq!(found.len(), 1);
        let kinds: Vec<u16> = found[0].attributes.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [libc::IFA_ADDRESS, libc::IFA_LOCAL, IFA_FLAGS]);
        // What is sent again is what would be told of it.
        let again = answer(&with_address(7, &found[0]), 7);
        assert_eq!(again.addresses, [], "not permanent by itself");
        for (scope, flags, index) in [(253, 0x80, 7), (0, 0, 7), (0, 0x80, 8)] {
            assert_eq!(answer(&told(scope, flags), index).addresses, []);
        }
    }

    #[test]
    fn cut_and_failed_answers() {
        let whole = told(0, 0x80);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length], 7), Answer::default());
        }
        let failed = message(2, 0, &(-libc::EPERM).to_ne_bytes(), &[]);
        assert_eq!(answer(&failed, 7).end, Some(libc::EPERM));
    }
}
