//! VXLAN network identifiers (RFC 7348 §5: 24 bits). The next is sought after the last that was given, so that one just freed rests.

use std::collections::BTreeSet;

/// Smaller ones are left to people who configure VXLAN by hand on the same hosts.
const FIRST: u32 = 4096;
const LAST: u32 = (1 << 24) - 1;

/// The next VNI after `cursor` that no network has. A cluster from before there were cursors goes on above the highest in use.
pub fn next(cursor: u32, used: &BTreeSet<u32>) -> Option<u32> {
    let before = if cursor == 0 { used.last().copied().unwrap_or_default() } else { cursor };
    let after = if (FIRST..LAST).contains(&before) { before + 1 } else { FIRST };
    (after..=LAST).chain(FIRST..after).find(|vni| !used.contains(vni))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_in_turn_and_none_at_once_again() {
        for (cursor, used, expected) in [
            (0, vec![], FIRST),
            (0, vec![FIRST, FIRST + 7], FIRST + 8),
            (FIRST, vec![], FIRST + 1),
            (FIRST, vec![FIRST + 1], FIRST + 2),
            (LAST, vec![FIRST], FIRST + 1),
            (0, vec![LAST], FIRST),
        ] {
            assert_eq!(next(cursor, &used.iter().copied().collect()), Some(expected), "after {cursor} beside {used:?}");
        }
    }
}
