//! Decides what the name of an image means, and when two names are the same name.
//!
//! In: a name as a user or an archive writes it. Out: the registry's host, the repository there, and a tag, a digest or both, as
//! Docker reads them (distribution/reference, `ParseNormalizedNamed`): a first part with `.`, `:` or upper-case letters, or
//! `localhost`, is a host; without one it is the default registry's; without tag and digest it is `latest`. Never asks a registry.
//!
//! ```text
//! web                         docker.io / library/web : latest
//! localhost:5000/shop/web:2   localhost:5000 / shop/web : 2
//! web:2@sha256:HEX            docker.io / library/web @ sha256:HEX     the digest decides, the tag is for people
//! ```

use std::fmt;

/// The registry of names without a host. Here and nowhere else.
pub const DEFAULT_HOST: &str = "docker.io";
/// What its own names leave out.
const DEFAULT_NAMESPACE: &str = "library";
/// An older name of the same registry.
const DEFAULT_HOST_ALIAS: &str = "index.docker.io";
/// The host that serves the default registry's API.
const DEFAULT_API_HOST: &str = "registry-1.docker.io";
const DEFAULT_TAG: &str = "latest";
/// Host and repository together (distribution/reference, `NameTotalLengthMax`).
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// A checked name of an image. One value for all ways to write the same name, so equal names are equal values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    pick: Pick,
}

/// Which of a repository's manifests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Pick {
    Tag(String),
    Digest { tag: Option<String>, digest: String },
}

impl Reference {
    /// The reference that `name` writes; the error says what part is wrong and why.
    pub fn parse(name: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("image name {name:?}: {why}");
        let (rest, digest) = match name.split_once('@') {
            Some((rest, digest)) => (rest, Some(checked_digest(digest).map_err(wrong)?)),
            None => (name, None),
        };
        // A colon after the last slash is a tag's; one before it is a port's.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(checked_tag(&rest[last + colon + 1..]).map_err(wrong)?)),
            None => (rest, None),
        };
        let (host, repository) = match path.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => (DEFAULT_HOST, path),
        };
        let host = if host == DEFAULT_HOST_ALIAS { DEFAULT_HOST } else { host };
        check_host(host).map_err(wrong)?;
        check_repository(repository).map_err(wrong)?;
        let repository = if host == DEFAULT_HOST && !repository.contains('/') {
            format!("{DEFAULT_NAMESPACE}/{repository}")
        } else {
            repository.to_owned()
        };
        if host.len() + 1 + repository.len() > NAME_BYTES_MAX {
            return Err(wrong(format!("host and repository have more than {NAME_BYTES_MAX} characters")));
        }
        let pick = match digest {
            Some(digest) => Pick::Digest { tag, digest },
            None => Pick::Tag(tag.unwrap_or_else(|| DEFAULT_TAG.to_owned())),
        };
        Ok(Self { host: host.to_owned(), repository, pick })
    }

    /// The registry, as names and credentials know it: `HOST` or `HOST:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where the registry's API is served.
    pub fn api_host(&self) -> &str {
        if self.host == DEFAULT_HOST { DEFAULT_API_HOST } else { &self.host }
    }

    /// The repository in the registry, such as `library/web`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest that the name fixes.
    pub fn digest(&self) -> Option<&str> {
        match &self.pick {
            Pick::Tag(_) => None,
            Pick::Digest { digest, .. } => Some(digest),
        }
    }

    /// What a registry is asked for: the digest if there is one, the tag otherwise (distribution-spec, "Pulling manifests").
    pub fn manifest(&self) -> &str {
        match &self.pick {
            Pick::Tag(tag) => tag,
            Pick::Digest { digest, .. } => digest,
        }
    }

    /// The full form, with nothing left out.
    pub fn full(&self) -> String {
        format!("{}/{}{}", self.host, self.repository, self.pick)
    }
}

/// The short form, as Docker shows it and as the store keeps names: the default host and its namespace are left out.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host != DEFAULT_HOST {
            return write!(f, "{}/{}{}", self.host, self.repository, self.pick);
        }
        let short = self.repository.strip_prefix(DEFAULT_NAMESPACE).and_then(|rest| rest.strip_prefix('/'));
        // `library/a/b` without its namespace would be the repository `a/b`.
        let short = short.filter(|rest| !rest.contains('/')).unwrap_or(&self.repository);
        write!(f, "{short}{}", self.pick)
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest { tag: Some(tag), digest } => write!(f, ":{tag}@{digest}"),
            Self::Digest { tag: None, digest } => write!(f, "@{digest}"),
        }
    }
}

/// Whether the first part of a name with more parts is a host.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

/// `HOST[:PORT]`, the host a DNS name, an IPv4 address or an IPv6 address in brackets.
pub fn check_host(host: &str) -> Result<(), String> {
    let why = || format!("{host:?} is not the host of a registry: HOST, HOST:PORT or [IPV6]:PORT");
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or_else(why)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| why())?;
            ("", if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(why)?) })
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    let label = |label: &str| {
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        edge(label.bytes().next()) && edge(label.bytes().last()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let named = host.starts_with('[') || name.split('.').all(label);
    if named && port.is_none_or(digits) { Ok(()) } else { Err(why()) }
}

/// Parts of lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`; parts are separated by `/`.
fn check_repository(repository: &str) -> Result<(), String> {
    if repository.is_empty() {
        return Err("it names no repository".into());
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    for part in repository.split('/') {
        let separators = part.split(|c: char| c.is_ascii() && plain(c as u8)).filter(|separator| !separator.is_empty());
        let joined = separators.into_iter().all(|separator| matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-'));
        let edges = part.bytes().next().is_some_and(plain) && part.bytes().last().is_some_and(plain);
        if !(edges && joined) {
            let hint = if part.bytes().any(|byte| byte.is_ascii_uppercase()) { "; repositories are in lower case" } else { "" };
            return Err(format!("part {part:?} of the repository: letters a-z and digits, with '.', '_', '__' or '-' between them{hint}"));
        }
    }
    Ok(())
}

fn checked_tag(tag: &str) -> Result<String, String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let fits = tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
    let why = || format!("tag {tag:?}: letters, digits, '_', '.' and '-', {TAG_BYTES_MAX} at most, no '.' or '-' first");
    fits.then(|| tag.to_owned()).ok_or_else(why)
}

/// Content here is known by its SHA-256 only; other algorithms are refused by name.
fn checked_digest(digest: &str) -> Result<String, String> {
    let Some((algorithm, hex)) = digest.split_once(':') else {
        return Err(format!("digest {digest:?}: ALGORITHM:HEX"));
    };
    if algorithm != "sha256" {
        return Err(format!("digest {digest:?}: the algorithm {algorithm:?} is not known here, only sha256 is"));
    }
    let lower = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if hex.len() == 64 && hex.bytes().all(lower) {
        Ok(digest.to_owned())
    } else {
        Err(format!("digest {digest:?}: sha256 has 64 digits 0-9 and a-f"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn check(name: &str, expected: &str) {
        let text = match Reference::parse(name) {
            Ok(reference) => format!("{} | {} | {} | {reference}", reference.host(), reference.repository(), reference.manifest()),
            Err(why) => why,
        };
        assert_eq!(text, expected, "{name}");
    }

    #[test]
    fn names_have_one_meaning_and_one_short_form() {
        check("web", "docker.io | library/web | latest | web:latest");
        check("web:1", "docker.io | library/web | 1 | web:1");
        check("library/web:1", "docker.io | library/web | 1 | web:1");
        check("docker.io/library/web:1", "docker.io | library/web | 1 | web:1");
        check("index.docker.io/web:1", "docker.io | library/web | 1 | web:1");
        check("docker.io/me/web", "docker.io | me/web | latest | me/web:latest");
        check("library/a/b", "docker.io | library/a/b | latest | library/a/b:latest");
        check("localhost/web", "localhost | web | latest | localhost/web:latest");
        check("localhost:5000/web", "localhost:5000 | web | latest | localhost:5000/web:latest");
        check("localhost:5000/a/b__c-d.e:2_x", "localhost:5000 | a/b__c-d.e | 2_x | localhost:5000/a/b__c-d.e:2_x");
        check("[::1]:5000/web", "[::1]:5000 | web | latest | [::1]:5000/web:latest");
        check("Registry/web", "Registry | web | latest | Registry/web:latest");
    }

    #[test]
    fn a_digest_decides_and_the_tag_beside_it_stays_for_people() {
        let digest = format!("sha256:{HEX}");
        check(&format!("web@{digest}"), &format!("docker.io | library/web | {digest} | web@{digest}"));
        check(&format!("h:1/web:2@{digest}"), &format!("h:1 | web | {digest} | h:1/web:2@{digest}"));
    }

    #[test]
    fn the_default_registry_has_another_host_for_its_api() {
        let reference = Reference::parse("web").expect("a name");
        assert_eq!((reference.api_host(), reference.full().as_str()), ("registry-1.docker.io", "docker.io/library/web:latest"));
        assert_eq!(Reference::parse("h:1/web").expect("a name").api_host(), "h:1");
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_part_that_is_wrong() {
        check("", "image name \"\": it names no repository");
        check(
            "Web",
            "image name \"Web\": part \"Web\" of the repository: letters a-z and digits, with '.', '_', '__' or '-' between them; \
             repositories are in lower case",
        );
        check("a//b", "image name \"a//b\": part \"\" of the repository: letters a-z and digits, with '.', '_', '__' or '-' between them");
        check("web:", "image name \"web:\": tag \"\": letters, digits, '_', '.' and '-', 128 at most, no '.' or '-' first");
        check("web@sha256:12", "image name \"web@sha256:12\": digest \"sha256:12\": sha256 has 64 digits 0-9 and a-f");
        check("web@md5:12", "image name \"web@md5:12\": digest \"md5:12\": the algorithm \"md5\" is not known here, only sha256 is");
        check("host:port/web", "image name \"host:port/web\": \"host:port\" is not the host of a registry: HOST, HOST:PORT or [IPV6]:PORT");
        for name in
            ["../etc", "h:1/../x", "a/./b", "web..x", "a___b", "-a", "a-", "h:1/", "h:0/web", "[::1/web", "a b", "web:1:2", "h..x/web"]
        {
            assert!(Reference::parse(name).is_err(), "{name}");
        }
        assert!(Reference::parse(&"a".repeat(230)).is_ok());
        assert!(Reference::parse(&"a".repeat(250)).is_err());
    }

    proptest! {
        #[test]
        fn every_name_parses_or_is_refused_and_its_forms_parse_to_the_same(name in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}") {
            if let Ok(reference) = Reference::parse(&name) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()), &Ok(reference.clone()));
                prop_assert_eq!(&Reference::parse(&reference.full()), &Ok(reference.clone()));
            }
        }
    }
}
