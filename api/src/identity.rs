//! Who someone is: what a certificate's subject says, and what a join token says.
//!
//! A certificate names its holder by `CN`, the id; `OU`, the part that it plays; `O`, the cluster's id (RFC 5280 §4.1.2.6).

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use sha2::{Digest, Sha256};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// The DNS name in every manager's certificate, and in no other: whoever connects to a manager asks for it.
pub const MANAGER_NAME: &str = "manager.rcluster";

/// The DNS name in the certificate of a manager that is locked, and in no other: only who unlocks asks for it.
pub const LOCKED_NAME: &str = "locked.rcluster";

/// What the holder of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Manager,
    Agent,
    User,
}

impl Part {
    /// The `OU` of the certificate.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Agent => "agent",
            Self::User => "user",
        }
    }
}

/// The holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub part: Part,
    /// Of the manager, node or user.
    pub id: String,
    pub cluster_id: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} of cluster {}", self.part.as_str(), self.id, self.cluster_id)
    }
}

/// A certificate that does not say who its holder is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdentityError {
    #[error("not an X.509 certificate")]
    Certificate,
    #[error("the certificate's subject has no {0}")]
    Missing(&'static str),
    #[error("the certificate is for {0:?}, which is no part of a cluster")]
    Part(String),
}

/// What a certificate says, in Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub identity: Identity,
    pub not_before: i64,
    pub not_after: i64,
}

/// Reads a certificate in DER form; whether to believe it is another question.
pub fn read(der: &[u8]) -> Result<Certificate, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Certificate)?;
    let subject = certificate.subject();
    let id = one(subject.iter_common_name(), "CN")?;
    let part = one(subject.iter_organizational_unit(), "OU")?;
    let cluster_id = one(subject.iter_organization(), "O")?;
    let part =
        [Part::Manager, Part::Agent, Part::User].into_iter().find(|known| known.as_str() == part).ok_or(IdentityError::Part(part))?;
    let validity = certificate.validity();
    let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    Ok(Certificate { identity: Identity { part, id, cluster_id }, not_before, not_after })
}

impl Certificate {
    /// When to renew it, in Unix seconds: at half of its life, or up to a fifth later, so that not all holders ask at once.
    pub fn renew_at(&self) -> i64 {
        let life = (self.not_after - self.not_before).max(0);
        let share = i64::from(digest(self.identity.id.as_bytes())[0]) * 200 / 255;
        self.not_before + life * (500 + share) / 1000
    }
}

/// Whether `certificate` was issued by the holder of `authority`'s name; both in DER form. Says nothing of the signature.
pub fn is_issued_by(certificate: &[u8], authority: &[u8]) -> bool {
    let (Ok((_, certificate)), Ok((_, authority))) = (X509Certificate::from_der(certificate), X509Certificate::from_der(authority)) else {
        return false;
    };
    let name = |name: &X509Name<'_>| name.as_raw().to_vec();
    name(certificate.issuer()) == name(authority.subject())
}

fn one<'a>(
    mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
    field: &'static str,
) -> Result<String, IdentityError> {
    let value = values.next().and_then(|value| value.as_str().ok()).filter(|value| !value.is_empty());
    value.map(str::to_owned).ok_or(IdentityError::Missing(field))
}

/// The digest of a certificate that a join token carries.
pub fn digest(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// Crockford's base 32: no letter is taken for another.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SECRET_BYTES: usize = 16;
const PREFIX: &str = "rcluster1";

/// What lets a host join: for which part, whom it may trust, and a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// A manager, else an agent.
    pub manager: bool,
    /// Of the certificate of the cluster's authority, see [`digest`].
    pub authority: [u8; 32],
    pub secret: Vec<u8>,
}

/// A text that is no join token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a join token: it reads rcluster1-agent-… or rcluster1-manager-…, as `rclusterctl cluster token` prints it, whole")]
pub struct NotAToken;

/// A new secret for [`JoinToken`].
pub fn join_secret(rng: &mut impl Rng) -> Vec<u8> {
    (0..SECRET_BYTES).map(|_| rng.random()).collect()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = if self.manager { Part::Manager } else { Part::Agent };
        write!(formatter, "{PREFIX}-{}-{}-{}", part.as_str(), encode(&self.authority), encode(&self.secret))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JoinToken")
    }
}

impl FromStr for JoinToken {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        let [PREFIX, part, authority, secret] = parts[..] else { return Err(NotAToken) };
        let manager = match part {
            "manager" => true,
            "agent" => false,
            _ => return Err(NotAToken),
        };
        let authority = decode(authority).and_then(|bytes| bytes.try_into().ok()).ok_or(NotAToken)?;
        let secret = decode(secret).filter(|secret| secret.len() == SECRET_BYTES).ok_or(NotAToken)?;
        Ok(Self { manager, authority, secret })
    }
}

/// Five bits a character, the last filled with zeros.
pub fn encode(bytes: &[u8]) -> String {
    let bit = |index: usize| bytes.get(index / 8).is_some_and(|byte| byte >> (7 - index % 8) & 1 == 1);
    let digit = |index: usize| (0..5).fold(0, |value, offset| value << 1 | usize::from(bit(index * 5 + offset)));
    (0..(bytes.len() * 8).div_ceil(5)).map(|index| char::from(ALPHABET[digit(index)])).collect()
}

pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.bytes().map(|byte| ALPHABET.iter().position(|known| *known == byte));
    let digits = digits.collect::<Option<Vec<usize>>>()?;
    let bit = |index: usize| digits.get(index / 5).is_some_and(|digit| digit >> (4 - index % 5) & 1 == 1);
    let byte = |index: usize| (0..8).fold(0, |value, offset| value << 1 | u8::from(bit(index * 8 + offset)));
    let bytes: Vec<u8> = (0..digits.len() * 5 / 8).map(byte).collect();
    (encode(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_was_and_anything_else_is_refused() {
        let token = JoinToken { manager: true, authority: [0xa5; 32], secret: (0..16).collect() };
        let text = token.to_string();
        assert!(text.starts_with("rcluster1-manager-"), "{text}");
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!("{token:?}"), "JoinToken");
        let agent = JoinToken { manager: false, ..token.clone() };
        assert_eq!(agent.to_string().parse::<JoinToken>().unwrap(), agent);
        for wrong in ["", "rcluster1-manager", &text[1..], &text[..text.len() - 1], &text.replace("manager", "user"), &format!("{text}0")] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(NotAToken), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        assert_eq!(read(b"").unwrap_err(), IdentityError::Certificate);
        assert_eq!(read(&[0x30; 100]).unwrap_err(), IdentityError::Certificate);
    }
}
