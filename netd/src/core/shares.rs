//! How much of what all have one may have, so that there is always some left for the others.
//!
//! In: who wants something, and where time matters, when. Out: whether it is theirs. `Shares` bounds what is held at one time, `Budgets` what is used
//! up over time. Never: lets one's demand lessen what another is granted, unless what all may hold is held.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Questions over UDP that one device is answered per second, and how many at once after a quiet time.
const QUESTIONS_PER_SECOND: u32 = 20_000;
const QUESTIONS_AT_ONCE: u32 = 5_000;

/// Devices that are remembered before those are forgotten that have been quiet.
const DEVICES_REMEMBERED: usize = 1024;

/// Counts what is held at one time, by holder.
#[derive(Debug)]
pub struct Shares<H> {
    held: BTreeMap<H, usize>,
    total: usize,
    each_max: usize,
    total_max: usize,
}

impl<H: Ord + Clone> Shares<H> {
    /// So many for each holder, and so many for all of them.
    pub fn new(each_max: usize, total_max: usize) -> Self {
        Self { held: BTreeMap::new(), total: 0, each_max, total_max }
    }

    /// One more for this holder, if there is one.
    pub fn take(&mut self, holder: &H) -> bool {
        let own = self.held.get(holder).copied().unwrap_or_default();
        let granted = own < self.each_max && self.total < self.total_max;
        if granted {
            self.held.insert(holder.clone(), own + 1);
            self.total += 1;
        }
        granted
    }

    /// One that this holder had taken.
    pub fn give_back(&mut self, holder: &H) {
        let Some(own) = self.held.get_mut(holder) else { return };
        *own -= 1;
        self.total -= 1;
        if *own == 0 {
            self.held.remove(holder);
        }
    }
}

/// Each device's questions as a bucket that fills again with time: the time is kept at which it is full.
#[derive(Debug, Default)]
pub struct Budgets {
    full_at: BTreeMap<u32, Instant>,
}

impl Budgets {
    /// Whether a question that came in on this device is answered.
    pub fn take(&mut self, device: u32, now: Instant) -> bool {
        let question = Duration::from_secs(1) / QUESTIONS_PER_SECOND;
        if self.full_at.len() >= DEVICES_REMEMBERED && !self.full_at.contains_key(&device) {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let full_at = self.full_at.entry(device).or_insert(now);
        let then = (*full_at).max(now) + question;
        let granted = then <= now + question * QUESTIONS_AT_ONCE;
        if granted {
            *full_at = then;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_has_its_share_and_all_have_theirs() {
        let mut shares = Shares::new(2, 3);
        let taken = ["a", "a", "a", "b", "c"].map(|holder| shares.take(&holder));
        assert_eq!(taken, [true, true, false, true, false], "two of a's, one of b's, and then it is all held");
        shares.give_back(&"nobody");
        assert!(!shares.take(&"c"));
        shares.give_back(&"a");
        assert!(shares.take(&"c"));
        for holder in ["a", "b", "c"] {
            shares.give_back(&holder);
        }
        assert!(shares.held.is_empty());
        assert_eq!(shares.total, 0);
    }

    #[test]
    fn a_device_that_floods_has_its_budget_and_the_others_theirs() {
        let mut budgets = Budgets::default();
        let begin = Instant::now();
        let granted =
            |budgets: &mut Budgets, device: u32, count: usize, now: Instant| (0..count).filter(|_| budgets.take(device, now)).count();
        assert_eq!(granted(&mut budgets, 1, 100_000, begin), 5_000);
        assert_eq!(granted(&mut budgets, 2, 1_000, begin), 1_000);
        assert_eq!(granted(&mut budgets, 1, 100_000, begin + Duration::from_millis(100)), 2_000);
        assert_eq!(granted(&mut budgets, 1, 100_000, begin + Duration::from_secs(60)), 5_000, "no more is saved up than at once");
    }

    #[test]
    fn quiet_devices_are_forgotten() {
        let mut budgets = Budgets::default();
        let begin = Instant::now();
        for device in 0..5_000 {
            assert!(budgets.take(device, begin + Duration::from_secs(u64::from(device))));
        }
        assert!(budgets.full_at.len() <= DEVICES_REMEMBERED);
    }
}
