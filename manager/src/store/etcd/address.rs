//! Where the etcd is, and how a manager shows who it is there.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rcluster_api::validate;
use thiserror::Error;

const SCHEME: &str = "etcd://";

/// `etcd://HOST:PORT[,HOST:PORT…]/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `HOST:PORT` each.
    pub endpoints: Vec<String>,
    /// Begins with `/` and does not end with one.
    pub prefix: String,
}

/// Not an address of an etcd.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not etcd://HOST:PORT[,HOST:PORT…]/PREFIX: {why}")]
pub struct NotAnAddress {
    text: String,
    why: String,
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let refused = |why: &str| NotAnAddress { text: text.to_owned(), why: why.to_owned() };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| refused("etcd is the only other store there is"))?;
        let (endpoints, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if prefix.is_empty() || prefix.split('/').any(str::is_empty) {
            return Err(refused("it needs a prefix under which this cluster's keys stand, like /rcluster"));
        }
        if !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte)) {
            return Err(refused("a prefix has letters, digits, '-', '_', '.' and '/'"));
        }
        let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
        for endpoint in &endpoints {
            validate::check_address(endpoint).map_err(|error| refused(&error.to_string()))?;
        }
        Ok(Self { endpoints, prefix: format!("/{prefix}") })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}{}", self.endpoints.join(","), self.prefix)
    }
}

/// The address, and what shows who a manager is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub address: Address,
    /// PEM of who signs the certificates of etcd: the connections are TLS. Without it they are in plain text.
    pub ca: Option<PathBuf>,
    /// PEM of a certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// A name, and the file with its password.
    pub user: Option<(String, PathBuf)>,
}

impl Access {
    /// The flags that give it to a manager, as one writes them after a command.
    pub fn flags(&self) -> String {
        let Self { address, ca, certificate, user } = self;
        let mut flags = format!(" --store {address}");
        if ca.is_none() {
            flags += " --etcd-insecure";
        }
        let files =
            [("ca", ca.as_ref()), ("cert", certificate.as_ref().map(|(file, _)| file)), ("key", certificate.as_ref().map(|(_, key)| key))];
        for (name, file) in files.into_iter().filter_map(|(name, file)| Some((name, file?))) {
            flags += &format!(" --etcd-{name} {}", file.display());
        }
        if let Some((name, file)) = user {
            flags += &format!(" --etcd-user {name} --etcd-password-file {}", file.display());
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> String {
        text.parse::<Address>().map_or_else(|error| error.to_string(), |address| format!("{address} {}", address.endpoints.len()))
    }

    #[test]
    fn an_address_has_endpoints_and_a_prefix() {
        assert_eq!(check("etcd://a:2379/x"), "etcd://a:2379/x 1");
        assert_eq!(check("etcd://a:2379,10.0.0.2:2379/team/x"), "etcd://a:2379,10.0.0.2:2379/team/x 2");
        for (text, why) in [
            ("consul://a:1/x", "the only other store"),
            ("etcd://a:2379", "needs a prefix"),
            ("etcd://a:2379/", "needs a prefix"),
            ("etcd://a:2379/x//y", "needs a prefix"),
            ("etcd://a:2379/x y", "a prefix has letters"),
            ("etcd://a/x", "a"),
            ("etcd:///x", ""),
        ] {
            let refused = check(text);
            assert!(refused.contains("is not etcd://") && refused.contains(why), "{refused}");
        }
    }
}
