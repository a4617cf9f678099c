//! How many audit events a flood of refused requests may make.
//!
//! In: how a call ended, and when. Out: whether it is told of. Never: a change that was made and is not told of.

/// Calls without effect that are told of one by one, each second.
const REFUSALS_MAX: u32 = 20;
const SECOND_MS: u64 = 1000;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Who made it did not wait for the answer: it may have been carried out.
    Unknown,
    /// It was refused, or failed; that costs the caller next to nothing.
    Refused,
}

/// Counts refusals.
#[derive(Debug, Default)]
pub struct Flood {
    second: u64,
    told: u32,
    omitted: u64,
}

impl Flood {
    /// Whether a call that has ended at `now_ms` is to be told of: if so, how many before it were not.
    pub fn judge(&mut self, outcome: Outcome, now_ms: u64) -> Option<u64> {
        if outcome == Outcome::Refused {
            let second = now_ms / SECOND_MS;
            if second != self.second {
                (self.second, self.told) = (second, 0);
            }
            if self.told >= REFUSALS_MAX {
                self.omitted += 1;
                return None;
            }
            self.told += 1;
        }
        Some(std::mem::take(&mut self.omitted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_summed_up_and_hides_no_change() {
        let mut flood = Flood::default();
        for _ in 0..REFUSALS_MAX {
            assert_eq!(flood.judge(Outcome::Refused, 5), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(flood.judge(Outcome::Refused, 999), None);
        }
        assert_eq!(flood.judge(Outcome::Done, 999), Some(7));
        assert_eq!(flood.judge(Outcome::Done, 999), Some(0));
        assert_eq!(flood.judge(Outcome::Unknown, 999), Some(0));
        assert_eq!(flood.judge(Outcome::Refused, 999), None);
        assert_eq!(flood.judge(Outcome::Refused, 1000), Some(1));
    }
}
