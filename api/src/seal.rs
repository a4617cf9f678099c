//! Encryption of what stands on disks: keys, and sealing and opening of bytes with them. Pure but for the randomness that it draws.
//!
//! AES-256-GCM throughout (NIST SP 800-38D). A nonce that comes back under one key would lay both texts open, so nonces are drawn at random
//! and keys are short-lived: who seals much derives a key for each file (HKDF-SHA256, RFC 5869), of which 2³² messages may be sealed
//! (SP 800-38D §8.3). What is sealed is bound to a *context*: bytes that stand elsewhere, or say whose they are, and that have to be the
//! same when it is opened.
//!
//! ```text
//!  sealed   nonce 12 │ ciphertext, as long as the text │ tag 16
//! ```

use std::fmt;
use std::str::FromStr;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::data::Payload;
use crate::identity::{decode, encode};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes that sealing adds.
pub const OVERHEAD_BYTES: usize = NONCE_LEN + TAG_BYTES;
const TAG_BYTES: usize = 16;

/// A key. It does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

/// What cannot be opened: another key sealed it, it belongs elsewhere, or it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it was not sealed with this key, or was changed since")]
pub struct NotOpened;

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key")
    }
}

impl Key {
    /// A new key.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The key that these bytes are, if they are as many.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The bytes: for what keeps the key.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Another key for the purpose that `label` names; equal seeds give equal keys, and no derived key tells of this one.
    pub fn derive(&self, seed: &[u8], label: &str) -> Self {
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, seed).extract(&self.0);
        let label = [label.as_bytes()];
        let output = derived.expand(&label, hkdf::HKDF_SHA256).expect("the output is as long as the hash");
        let mut bytes = [0; KEY_BYTES];
        output.fill(&mut bytes).expect("the output is as long as the key");
        Self(bytes)
    }

    /// By what people tell keys apart; says nothing of the key.
    pub fn fingerprint(&self) -> String {
        encode(&self.derive(&[], "rcluster fingerprint").0[..5])
    }
}

/// A key that is ready to seal and open.
pub struct Cipher(LessSafeKey);

impl fmt::Debug for Cipher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Cipher")
    }
}

impl Cipher {
    pub fn new(key: &Key) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key.0).expect("a key has the cipher's length")))
    }

    /// Seals the text that `write` appends to `out`, in place; what stood there before stays.
    pub fn seal_into<E>(&self, context: &[u8], out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        out.extend_from_slice(&nonce);
        let begin = out.len();
        write(out)?;
        let sealed = self.0.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut out[begin..]);
        let tag = sealed.expect("a text is shorter than 64 GiB");
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// The text that was sealed.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(NotOpened)?;
        let mut text = sealed.to_vec();
        let opened = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut text);
        let length = opened.map_err(|_| NotOpened)?.len();
        text.truncate(length);
        Ok(text)
    }
}

/// Seals a text.
pub fn seal(key: &Key, context: &[u8], text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + OVERHEAD_BYTES);
    let written = Cipher::new(key).seal_into(context, &mut out, |out| {
        out.extend_from_slice(text);
        Ok::<(), std::convert::Infallible>(())
    });
    match written {
        Ok(()) => out,
        Err(never) => match never {},
    }
}

/// Opens what [`seal`] made.
pub fn open(key: &Key, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
    Cipher::new(key).open(context, sealed)
}

/// Seals a key with another one.
pub fn wrap(with: &Key, context: &[u8], key: &Key) -> Payload {
    Payload(seal(with, context, &key.0))
}

/// Opens what [`wrap`] made.
pub fn unwrap(with: &Key, context: &[u8], wrapped: &Payload) -> Result<Key, NotOpened> {
    Key::from_bytes(&open(with, context, &wrapped.0)?).ok_or(NotOpened)
}

const PREFIX: &str = "rckey-1-";
/// How many bytes of the key's digest stand behind it, so that a key that was copied wrong is not tried.
const CHECKSUM_BYTES: usize = 4;

/// The key that people keep, and unlock managers with: `rckey-1-…`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnlockKey(pub Key);

/// A text that is no unlock key. It is not repeated: it may be one but for a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAnUnlockKey {
    #[error("not an unlock key: it reads rckey-1-… and 58 letters and digits, as `rclusterctl cluster autolock on` printed it, whole")]
    Form,
    #[error("the unlock key has a letter that is wrong: its checksum does not fit. Copy it again, whole")]
    Checksum,
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("UnlockKey")
    }
}

impl fmt::Display for UnlockKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [self.0.bytes(), &checksum(self.0.bytes())[..]].concat();
        write!(formatter, "{PREFIX}{}", encode(&bytes))
    }
}

impl FromStr for UnlockKey {
    type Err = NotAnUnlockKey;

    /// As it was printed, in capitals as well, with `o` for 0 and `i` or `l` for 1, which the alphabet lacks.
    fn from_str(text: &str) -> Result<Self, NotAnUnlockKey> {
        let text = text.trim().to_ascii_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(NotAnUnlockKey::Form)?;
        let digits: String = digits.chars().map(plain).collect();
        let bytes = decode(&digits).filter(|bytes| bytes.len() == KEY_BYTES + CHECKSUM_BYTES).ok_or(NotAnUnlockKey::Form)?;
        let (key, sum) = bytes.split_at(KEY_BYTES);
        let key = Key::from_bytes(key).ok_or(NotAnUnlockKey::Form)?;
        if sum == checksum(key.bytes()) { Ok(Self(key)) } else { Err(NotAnUnlockKey::Checksum) }
    }
}

impl TryFrom<String> for UnlockKey {
    type Error = NotAnUnlockKey;

    fn try_from(text: String) -> Result<Self, NotAnUnlockKey> {
        text.parse()
    }
}

impl From<UnlockKey> for String {
    fn from(key: UnlockKey) -> Self {
        key.to_string()
    }
}

fn checksum(key: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let digest = Sha256::digest(key);
    digest[..CHECKSUM_BYTES].try_into().expect("a digest is longer")
}

/// The digit that a letter is taken for.
fn plain(letter: char) -> char {
    match letter {
        'o' => '0',
        'i' | 'l' => '1',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> Key {
        Key([fill; KEY_BYTES])
    }

    #[test]
    fn what_is_sealed_is_opened_by_its_key_and_context_alone() {
        let sealed = seal(&key(1), b"m1", b"hunter2");
        assert_eq!(sealed.len(), 7 + OVERHEAD_BYTES);
        assert!(!sealed.windows(4).any(|part| part == b"hunt"));
        assert_eq!(open(&key(1), b"m1", &sealed).unwrap(), b"hunter2");
        assert_eq!(open(&key(2), b"m1", &sealed), Err(NotOpened));
        assert_eq!(open(&key(1), b"m2", &sealed), Err(NotOpened));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&key(1), b"m1", &changed), Err(NotOpened), "byte {at}");
            assert_eq!(open(&key(1), b"m1", &sealed[..at]), Err(NotOpened), "{at} bytes");
        }
    }

    #[test]
    fn no_two_seals_are_alike() {
        assert_ne!(seal(&key(1), b"", b"a"), seal(&key(1), b"", b"a"));
        assert_ne!(Key::random(), Key::random());
    }

    #[test]
    fn keys_are_wrapped_and_derived() {
        let wrapped = wrap(&key(1), b"m1", &key(7));
        assert_eq!(unwrap(&key(1), b"m1", &wrapped).unwrap(), key(7));
        assert_eq!(unwrap(&key(2), b"m1", &wrapped), Err(NotOpened));
        assert_eq!(key(1).derive(b"s", "a"), key(1).derive(b"s", "a"));
        let others = [key(1).derive(b"t", "a"), key(1).derive(b"s", "b"), key(2).derive(b"s", "a"), key(1)];
        assert!(others.iter().all(|other| *other != key(1).derive(b"s", "a")));
        assert_eq!(key(1).fingerprint().len(), 8);
        assert_ne!(key(1).fingerprint(), key(2).fingerprint());
    }

    #[test]
    fn an_unlock_key_comes_back_as_it_was_and_a_wrong_letter_is_told() {
        let unlock = UnlockKey(key(0xa5));
        let text = unlock.to_string();
        assert!(text.starts_with("rckey-1-") && text.len() == 66, "{text}");
        assert_eq!(text.parse::<UnlockKey>().unwrap(), unlock);
        assert_eq!(format!("\n{} ", text.to_uppercase()).parse::<UnlockKey>().unwrap(), unlock);
        assert_eq!(format!("{unlock:?} {:?}", unlock.0), "UnlockKey Key");
        let zeros = UnlockKey(key(0)).to_string();
        let written = format!("rckey-1-{}", zeros[8..].replace('0', "O"));
        assert_eq!(written.parse::<UnlockKey>().unwrap(), UnlockKey(key(0)));
        for at in 8..text.len() - 1 {
            let other = if &text[at..=at] == "0" { "2" } else { "0" };
            let wrong = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert_eq!(wrong.parse::<UnlockKey>(), Err(NotAnUnlockKey::Checksum), "{wrong}");
        }
        for wrong in ["", "rckey-1-", &text[..60], &text[1..], &text.replace("-1-", "-2-"), &format!("{text}0"), "rckey-1-ü"] {
            assert_eq!(wrong.parse::<UnlockKey>(), Err(NotAnUnlockKey::Form), "{wrong}");
        }
    }
}
