//! How many requests a caller may make: a rate, and as many at a stroke after a pause as a second is worth (a token bucket).
//!
//! In: how far a caller's bucket is used, and when. Out: how far it is used then, or how long to wait. The bucket is one number, so that
//! whoever keeps it can do so in an atomic: the time at which it is full again (the virtual scheduling algorithm of ITU-T I.371).

const SECOND_NS: u64 = 1_000_000_000;

/// Takes one request out of a bucket that is full again at `full_at_ns`: when it is full again then, or how many nanoseconds to wait.
/// `now_ns` never steps back.
pub fn take(full_at_ns: u64, now_ns: u64, per_second: u32) -> Result<u64, u64> {
    let interval = SECOND_NS / u64::from(per_second.max(1));
    let next = full_at_ns.max(now_ns).saturating_add(interval);
    match next.saturating_sub(now_ns).checked_sub(SECOND_NS) {
        None | Some(0) => Ok(next),
        Some(wait_ns) => Err(wait_ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests are let in at once, and how long the next one is to wait.
    fn burst(full_at_ns: &mut u64, now_ns: u64, per_second: u32) -> (u32, u64) {
        for made in 0.. {
            match take(*full_at_ns, now_ns, per_second) {
                Ok(next) => *full_at_ns = next,
                Err(wait_ns) => return (made, wait_ns),
            }
        }
        unreachable!("a bucket is empty at some time")
    }

    #[test]
    fn a_caller_has_a_burst_then_its_rate() {
        let mut bucket = 0;
        const TENTH: u64 = SECOND_NS / 10;
        assert_eq!(burst(&mut bucket, 0, 10), (10, TENTH));
        assert_eq!(burst(&mut bucket, TENTH / 2, 10), (0, TENTH / 2));
        assert_eq!(burst(&mut bucket, TENTH, 10), (1, TENTH));
        assert_eq!(burst(&mut bucket, 60 * SECOND_NS, 10), (10, TENTH), "a pause is worth a burst, not more");
        assert_eq!(burst(&mut 0, 0, 1), (1, SECOND_NS));
    }
}
