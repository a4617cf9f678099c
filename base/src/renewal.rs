//! When to look again at credentials that are to be fresh always, and what is said of it.

use std::fmt::Display;
use std::time::Duration;

use tracing::{info, warn};

use crate::backoff::Backoff;

/// How often the calendar is looked at, at least and at most.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// The times at which one holder looks.
#[derive(Debug, Clone)]
pub struct Looks {
    backoff: Backoff,
}

impl Looks {
    /// After a renewal that failed it is tried again after `first`, and less and less often up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { backoff: Backoff::new(first, max) }
    }

    /// How long until the next look. `left`: until the credentials are to be renewed, if there are any. `renewed`: how that went, if it was
    /// tried.
    pub fn next<E: Display>(&mut self, left: Option<Duration>, renewed: Option<Result<(), E>>) -> Duration {
        match renewed {
            Some(Ok(())) => {
                info!("new credentials");
                self.backoff.reset();
                LOOK.0
            }
            Some(Err(error)) => {
                warn!("{error:#}: trying on");
                self.backoff.delay()
            }
            None => left.unwrap_or(LOOK.1).clamp(LOOK.0, LOOK.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_again_soon_after_a_renewal_and_else_when_one_is_due_or_can_be_tried() {
        let second = Duration::from_secs(1);
        let mut looks = Looks::new(second * 10, second * 20);
        let mut next = |left: Option<u64>, renewed| looks.next::<&str>(left.map(Duration::from_secs), renewed);
        assert_eq!(
            [next(None, None), next(Some(9000), None), next(Some(30), None), next(Some(0), None)],
            [600, 600, 30, 1].map(Duration::from_secs)
        );
        assert_eq!(next(Some(0), Some(Ok(()))), second);
        assert!((second * 5..=second * 10).contains(&next(Some(0), Some(Err("no")))));
        assert!((second * 10..=second * 20).contains(&next(Some(0), Some(Err("no")))));
        next(Some(0), Some(Ok(())));
        assert!((second * 5..=second * 10).contains(&next(Some(0), Some(Err("no")))));
    }
}
