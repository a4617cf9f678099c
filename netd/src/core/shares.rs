//! How much of what all have one may have, so that there is always some left for the others.
//!
//! In: who wants something. Out: whether it is theirs. Of the second half of all that there is each holder has an equal part at most, so that
//! some that take all that they may leave a part to whoever comes. Never: lets one's demand lessen what another is granted, unless half of
//! what all may hold is held.

use std::collections::BTreeMap;

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
        let holders = self.held.len() + usize::from(own == 0);
        let half = self.total_max / 2;
        let own_max = if self.total < half { self.each_max } else { self.each_max.min((half / holders).max(1)) };
        let granted = own < own_max && self.total < self.total_max;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_has_its_share_and_all_have_theirs() {
        let mut shares = Shares::new(2, 6);
        let taken = ["a", "a", "a", "b", "b", "c", "c", "d", "e"].map(|holder| shares.take(&holder));
        assert_eq!(taken, [true, true, false, true, false, true, false, true, true], "two of a's, one of each other's");
        assert!(!shares.take(&"f"), "it is all held");
        shares.give_back(&"nobody");
        assert!(!shares.take(&"f"));
        shares.give_back(&"a");
        assert!(shares.take(&"f"));
        for holder in ["a", "b", "c", "d", "e", "f"] {
            shares.give_back(&holder);
        }
        assert!(shares.held.is_empty());
        assert_eq!(shares.total, 0);
    }

    #[test]
    fn eight_that_take_all_they_may_leave_a_part_to_a_ninth() {
        let mut shares = Shares::new(64, 512);
        for _ in 0..64 {
            for greedy in 0..8 {
                shares.take(&greedy);
            }
        }
        let granted = (0..64).filter(|_| shares.take(&8)).count();
        assert_eq!(granted, 256 / 9);
        assert!((9..200).all(|late| shares.take(&late)), "and one to each of many");
    }
}
