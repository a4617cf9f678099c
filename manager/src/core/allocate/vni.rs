//! VXLAN network identifiers (RFC 7348 §5: 24 bits). The next is sought after the last that was given, so that one just freed rests.

use std::collections::BTreeSet;

/// Smaller ones are left to people who configure VXLAN by hand on the same hosts.
const FIRST: u32 = 4096;
const LAST: u32 = (1 << 24) - 1;

/// The next VNI after `cursor` that no network has. A cluster from before there were cursors goes on above the highest in use.
pub fn next(cursor: u32, used: &BTreeSet<u32>) -> Option<u32> {
    let before = last(cursor, used);
    let after = if (FIRST..LAST).contains(&before) { before + 1 } else { FIRST };
    (after..=LAST).chain(FIRST..after).find(|vni| !used.contains(vni))
}

/// The cursor so many numbers further.
pub fn ahead(cursor: u32, used: &BTreeSet<u32>, numbers: u32) -> u32 {
    let before = last(cursor, used).clamp(FIRST, LAST);
    FIRST + (before - FIRST + numbers) % (LAST - FIRST + 1)
}

/// The number that was given last.
fn last(cursor: u32, used: &BTreeSet<u32>) -> u32 {
    if cursor == 0 { used.last().copied().unwrap_or_default() } else { cursor }
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

    #[test]
    fn numbers_are_left_out_and_it_goes_round() {
        for (cursor, used, expected) in [(FIRST, vec![], FIRST + 5), (0, vec![FIRST + 7], FIRST + 12), (LAST, vec![], FIRST + 4)] {
            assert_eq!(ahead(cursor, &used.iter().copied().collect(), 5), expected, "after {cursor} beside {used:?}");
        }
    }
}
