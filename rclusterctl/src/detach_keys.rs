//! Decides which keys leave a terminal.
//!
//! In: the keys as a user names them, and what is typed. Out: what is to be passed on, and whether the user leaves. Typed keys that begin the
//! sequence are held back until the next one tells, as in Docker.

use std::str::FromStr;

/// Docker's.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";

/// The keys, as bytes of a terminal; with none nobody leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = String;

    /// Reads keys between commas: a character, or `ctrl-` and a letter or one of `@ [ \ ] ^ _`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let key = |key: &str| match key.strip_prefix("ctrl-").unwrap_or(key).as_bytes() {
            // The control characters are 64 below the characters that name them (ASCII).
            [named] if key.len() > 1 && matches!(named.to_ascii_uppercase(), b'@'..=b'_') => Some(named.to_ascii_uppercase() - 64),
            [byte @ b'!'..=b'~'] if key.len() == 1 => Some(*byte),
            _ => None,
        };
        let keys = text.split(',').map(|word| key(word).ok_or_else(|| {
            format!("{word:?} is no key: give a character, or ctrl- and one of a-z @ [ \\ ] ^ _, with commas between them, such as {DEFAULT}")
        }));
        Ok(Self(keys.collect::<Result<_, _>>()?))
    }
}

/// Goes through what is typed.
#[derive(Debug)]
pub struct Watch {
    keys: DetachKeys,
    /// How many of the keys were typed last.
    typed: usize,
}

/// What is to be done with what was typed.
#[derive(Debug, PartialEq, Eq)]
pub struct Typed {
    pub pass_on: Vec<u8>,
    /// What comes after it is for nobody.
    pub leaves: bool,
}

impl Watch {
    pub fn new(keys: DetachKeys) -> Self {
        Self { keys, typed: 0 }
    }

    /// The next bytes.
    pub fn handle(&mut self, bytes: &[u8]) -> Typed {
        let DetachKeys(keys) = &self.keys;
        if keys.is_empty() {
            return Typed { pass_on: bytes.to_vec(), leaves: false };
        }
        let mut pass_on = Vec::new();
        for byte in bytes {
            let mut held = keys[..self.typed].to_vec();
            held.push(*byte);
            // The longest end of it that begins the sequence is held, the rest is certain.
            let certain = (0..=held.len()).find(|from| keys.starts_with(&held[*from..])).unwrap_or(held.len());
            pass_on.extend(&held[..certain]);
            self.typed = held.len() - certain;
            if self.typed == keys.len() {
                return Typed { pass_on, leaves: true };
            }
        }
        Typed { pass_on, leaves: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_docker_reads_them() {
        for (text, keys) in
            [("", &b""[..]), (DEFAULT, b"\x10\x11"), ("ctrl-@,ctrl-[,ctrl-_", b"\0\x1b\x1f"), ("a,~,ctrl-A", b"a~\x01"), ("c", b"c")]
        {
            assert_eq!(text.parse::<DetachKeys>(), Ok(DetachKeys(keys.to_vec())), "{text}");
        }
        for text in ["ctrl-", "ctrl-1", "ctrl-pq", "ab", "a,,b", ",", "ä", " ", "alt-a"] {
            let error = text.parse::<DetachKeys>().expect_err(text);
            assert!(error.contains("is no key: give a character, or ctrl-"), "{error}");
        }
    }

    fn check(keys: &str, typed: &[&[u8]], passed: &[u8], leaves: bool) {
        let mut watch = Watch::new(keys.parse().expect("keys"));
        let mut all = Vec::new();
        let mut left = false;
        for piece in typed {
            let Typed { pass_on, leaves } = watch.handle(piece);
            all.extend(pass_on);
            left |= leaves;
        }
        assert_eq!((all.as_slice(), left), (passed, leaves), "{keys} {typed:?}");
    }

    #[test]
    fn only_the_whole_sequence_leaves_and_the_rest_is_passed_on() {
        check(DEFAULT, &[b"ls\r"], b"ls\r", false);
        check(DEFAULT, &[b"ls\x10\x11rm"], b"ls", true);
        check(DEFAULT, &[b"a\x10", b"\x11"], b"a", true);
        check(DEFAULT, &[b"\x10"], b"", false);
        check(DEFAULT, &[b"\x10", b"b"], b"\x10b", false);
        check(DEFAULT, &[b"\x10\x10\x11"], b"\x10", true);
        check("a,a,b", &[b"aaab"], b"a", true);
        check("a,b,a,c", &[b"abab", b"ac"], b"ab", true);
        check("", &[b"\x10\x11"], b"\x10\x11", false);
    }
}
