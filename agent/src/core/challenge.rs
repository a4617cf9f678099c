//! Decides how to answer a registry that asks who we are.
//!
//! In: the `WWW-Authenticate` headers of an answer (RFC 9110 section 11.6.1; the Bearer form is that of distribution's token
//! specification), the text of a credentials file as `docker login` writes it. Out: the challenges, the credentials for a
//! repository. Never speaks with anybody.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::reference::DEFAULT_HOST;

/// One challenge of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A token of `realm` is wanted.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// Name and password are wanted.
    Basic,
}

/// What a registry may be told.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// A token that buys tokens (OAuth2 refresh token).
    IdentityToken(String),
}

/// Secrets do not end up in logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
        }
    }
}

/// The challenges of one header's value that are known here, in its order.
pub fn challenges(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        let scheme = &rest[..end];
        let (mut parameters, after) = parameters(&rest[end..]);
        if scheme.eq_ignore_ascii_case("bearer") {
            // Without a realm there is nobody to ask.
            if let Some(realm) = parameters.remove("realm") {
                found.push(Challenge::Bearer { realm, service: parameters.remove("service"), scope: parameters.remove("scope") });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        }
        rest = after.trim_start_matches([' ', ',']);
    }
    found
}

/// The `key=value` pairs at the start of `text`, and what follows them: nothing, or the next scheme.
fn parameters(text: &str) -> (BTreeMap<String, String>, &str) {
    let mut found = BTreeMap::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some(equals) = rest.find('=') {
        let key = rest[..equals].trim_end();
        if key.is_empty() || key.contains([' ', ',', '"']) {
            break;
        }
        let value = rest[equals + 1..].trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = value.find([',', ' ']).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            }
        };
        found.insert(key.to_ascii_lowercase(), value);
        rest = after.trim_start_matches([' ', ',']);
    }
    (found, rest)
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: String,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").finish_non_exhaustive()
    }
}

/// The credentials that the file holds for a repository: those of the longest key that fits (containers-auth.json(5)), or none.
pub fn credentials(file: &str, host: &str, repository: &str) -> Result<Option<Credentials>, String> {
    let file: File = serde_json::from_str(file).map_err(|error| error.to_string())?;
    let wanted = format!("{host}/{repository}");
    let mut best: Option<(String, &Entry)> = None;
    for (key, entry) in &file.auths {
        let place = place(key);
        let fits = wanted.strip_prefix(&place).is_some_and(|rest| rest.starts_with('/') || rest.is_empty());
        if fits && best.as_ref().is_none_or(|(other, _)| other.len() < place.len()) {
            best = Some((place, entry));
        }
    }
    let known = match best {
        Some((place, entry)) => of_entry(entry).map_err(|why| format!("entry of {place}: {why}"))?,
        None => None,
    };
    let helper = file.helpers.iter().find(|(key, _)| place(key) == host).map(|(_, helper)| helper.as_str());
    match (known, helper.or((!file.store.is_empty()).then_some(file.store.as_str()))) {
        (Some(known), _) => Ok(Some(known)),
        (None, Some(helper)) => {
            Err(format!("credentials for {host} are kept by the helper {helper:?}, and helpers are not run here: log in without one"))
        }
        (None, None) => Ok(None),
    }
}

/// `HOST` or `HOST/PATH` for a key, which may also be the address of a version of the API.
fn place(key: &str) -> String {
    let (key, address) = match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => (rest, true),
        None => (key, false),
    };
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    // The default registry has been known by several names; its file entries still are.
    let host =
        if host == DEFAULT_HOST || host.strip_suffix(DEFAULT_HOST).is_some_and(|rest| rest.ends_with('.')) { DEFAULT_HOST } else { host };
    let path = if address || matches!(path, "v1/" | "v2/" | "v1" | "v2") { "" } else { path.trim_end_matches('/') };
    if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") }
}

fn of_entry(entry: &Entry) -> Result<Option<Credentials>, String> {
    if !entry.identity_token.is_empty() {
        return Ok(Some(Credentials::IdentityToken(entry.identity_token.clone())));
    }
    if !entry.auth.is_empty() {
        let bytes = STANDARD.decode(&entry.auth).map_err(|error| format!("auth: {error}"))?;
        let text = String::from_utf8(bytes).map_err(|_| "auth: it is not text")?;
        let (user, password) = text.split_once(':').ok_or("auth: USER:PASSWORD in base64")?;
        return Ok(Some(Credentials::Password { user: user.to_owned(), password: password.trim_end_matches('\0').to_owned() }));
    }
    let named = !entry.username.is_empty();
    Ok(named.then(|| Credentials::Password { user: entry.username.clone(), password: entry.password.clone() }))
}

/// The value of an `Authorization` header for a name and a password (RFC 7617).
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Text as it stands in the query of an address (RFC 3986 section 3.4).
pub fn query_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.map(Into::into), scope: scope.map(Into::into) }
    }

    #[test]
    fn challenges_are_read_in_order_however_they_are_written() {
        let pull = "repository:a/b:pull,push";
        assert_eq!(
            challenges(&format!("Bearer realm=\"https://a/token\",service=\"reg\",scope=\"{pull}\"")),
            [bearer("https://a/token", Some("reg"), Some(pull))]
        );
        assert_eq!(challenges("basic realm=\"a \\\"b\\\", c\""), [Challenge::Basic]);
        assert_eq!(challenges("Basic"), [Challenge::Basic]);
        assert_eq!(
            challenges("Negotiate, Basic realm=x, BEARER realm = https://a , service=s"),
            [Challenge::Basic, bearer("https://a", Some("s"), None)]
        );
        assert_eq!(challenges("Bearer error=\"x\""), []);
        assert_eq!(challenges("Negotiate YWJj=="), []);
    }

    const FILE: &str = r#"{"auths": {
        "https://index.docker.io/v1/": {"auth": "bWU6cDp3"},
        "h:1": {"username": "u", "password": "p"},
        "h:1/team/": {"username": "t", "password": "p"},
        "http://old/v2/": {"identitytoken": "it"},
        "broken": {"auth": "bm8gY29sb24="},
        "empty": {}
    }, "credHelpers": {"helped": "vault"}}"#;

    fn check(host: &str, repository: &str, expected: &str) {
        let text = match credentials(FILE, host, repository) {
            Ok(Some(Credentials::Password { user, password })) => format!("{user} {password}"),
            Ok(Some(Credentials::IdentityToken(token))) => token,
            Ok(None) => "none".into(),
            Err(why) => why,
        };
        assert_eq!(text, expected, "{host}/{repository}");
    }

    #[test]
    fn credentials_are_those_of_the_longest_key_that_fits() {
        check("docker.io", "library/web", "me p:w");
        check("h:1", "web", "u p");
        check("h:1", "team/web", "t p");
        check("h:1", "teams/web", "u p");
        check("old", "web", "it");
        check("empty", "web", "none");
        check("h", "web", "none");
        check("evildocker.io", "library/web", "none");
        check("broken", "web", "entry of broken: auth: USER:PASSWORD in base64");
        check("helped", "web", "credentials for helped are kept by the helper \"vault\", and helpers are not run here: log in without one");
        assert!(credentials("{", "h", "web").is_err());
    }

    #[test]
    fn passwords_are_not_shown() {
        let secret = Credentials::Password { user: "u".into(), password: "hidden".into() };
        assert!(!format!("{secret:?}").contains("hidden"));
    }

    #[test]
    fn a_query_holds_only_what_it_may() {
        assert_eq!(query_encode("repository:a/b:pull,push"), "repository:a/b:pull,push");
        assert_eq!(query_encode("a b&c=d#ü"), "a%20b%26c%3Dd%23%C3%BC");
    }

    proptest! {
        #[test]
        fn any_header_is_read_to_its_end(header in ".{0,80}") {
            challenges(&header);
        }
    }
}
