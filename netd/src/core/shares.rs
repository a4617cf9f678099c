//! How much of what all have one may have, so that there is always some left for the others.
//!
//! In: who wants something. Out: whether it is theirs. Never: lets one's demand lessen what another is granted, unless what all may hold is
//! held.

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
}
