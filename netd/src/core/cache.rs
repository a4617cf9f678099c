//! What other resolvers have answered, for as long as they said.
//!
//! In: answers with how long they hold, questions, the time. Out: the answer to an equal question and its age. Never: holds more than
//! `ENTRIES_MAX` answers or `BYTES_MAX` bytes of them; what would end soonest goes first.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::foreign::Key;

const ENTRIES_MAX: usize = 4096;

const BYTES_MAX: usize = 4 << 20;

/// One answer that is larger is not worth the others' place.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Answers by question.
#[derive(Debug, Default)]
pub struct Cache {
    entries: BTreeMap<Key, Entry>,
    /// The entries in the order in which they end.
    ends: BTreeSet<(Instant, Key)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Vec<u8>,
    since: Instant,
    until: Instant,
}

impl Cache {
    /// The answer to such a question, and how old it is.
    pub fn get(&self, key: &Key, now: Instant) -> Option<(&[u8], Duration)> {
        let entry = self.entries.get(key).filter(|entry| now < entry.until)?;
        Some((entry.answer.as_slice(), now.saturating_duration_since(entry.since)))
    }

    /// Remembers an answer for so long.
    pub fn put(&mut self, key: Key, answer: Vec<u8>, lifetime: Duration, now: Instant) {
        self.remove(&key);
        if answer.len() > ANSWER_BYTES_MAX {
            return;
        }
        let until = now + lifetime;
        self.bytes += answer.len();
        self.ends.insert((until, key.clone()));
        self.entries.insert(key, Entry { answer, since: now, until });
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some((_, key)) = self.ends.first().cloned() else { return };
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.answer.len();
            self.ends.remove(&(entry.until, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::core::foreign::Question;

    fn key(number: usize) -> Key {
        let name = [&[4][..], format!("{number:04}").as_bytes(), &[0]].concat();
        Question { id: 0, recursion_desired: true, flags: 0, name, kind: 1, dnssec_ok: None, bytes_max: 512 }.key(&Arc::default())
    }

    fn check(cache: &Cache) {
        assert_eq!(cache.ends.len(), cache.entries.len());
        assert_eq!(cache.bytes, cache.entries.values().map(|entry| entry.answer.len()).sum::<usize>());
        assert!(cache.entries.len() <= ENTRIES_MAX && cache.bytes <= BYTES_MAX);
    }

    #[test]
    fn an_answer_is_had_until_it_ends_and_tells_its_age() {
        let (mut cache, begin) = (Cache::default(), Instant::now());
        cache.put(key(1), vec![1], Duration::from_secs(10), begin);
        let after = |cache: &Cache, seconds: u64| {
            cache.get(&key(1), begin + Duration::from_secs(seconds)).map(|(answer, age)| (answer.to_vec(), age.as_secs()))
        };
        assert_eq!(after(&cache, 0), Some((vec![1], 0)));
        assert_eq!(after(&cache, 9), Some((vec![1], 9)));
        assert_eq!(after(&cache, 10), None);
        assert_eq!(cache.get(&key(2), begin), None);
        cache.put(key(1), vec![2, 2], Duration::from_secs(60), begin + Duration::from_secs(5));
        assert_eq!(after(&cache, 20), Some((vec![2, 2], 15)));
        check(&cache);
    }

    #[test]
    fn however_much_is_put_in_it_stays_within_its_bounds_and_what_ends_soonest_goes() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for number in 0..ENTRIES_MAX + 100 {
            let lifetime = Duration::from_secs(if number % 2 == 0 { 5 } else { 3600 });
            cache.put(key(number), vec![0; 10], lifetime, now);
        }
        check(&cache);
        assert_eq!(cache.entries.len(), ENTRIES_MAX);
        assert!((1..ENTRIES_MAX).step_by(2).all(|number| cache.get(&key(number), now).is_some()));
        for number in 0..1000 {
            cache.put(key(number), vec![0; ANSWER_BYTES_MAX], Duration::from_secs(60), now);
        }
        check(&cache);
        cache.put(key(7), vec![0; ANSWER_BYTES_MAX + 1], Duration::from_secs(3600), now);
        assert_eq!(cache.get(&key(7), now), None, "too large, and what was there is old");
        check(&cache);
    }
}
