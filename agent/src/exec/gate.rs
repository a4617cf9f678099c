//! A few at a time at a server that does one thing after the other.
//!
//! Who asks for a turn has it in the order of asking, and waits for it for as long as the server answers those before: many at once make each wait,
//! not fail. So does the server's own queue stay short, for who asks it for something else.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

/// Hands out turns.
#[derive(Debug)]
pub struct Gate {
    turns: Semaphore,
    /// When the server has last answered one of those that had a turn.
    answered: watch::Sender<Option<Instant>>,
}

impl Gate {
    /// So many have a turn at once.
    pub fn new(turns: usize) -> Self {
        Self { turns: Semaphore::new(turns), answered: watch::Sender::new(None) }
    }

    /// A turn, which lasts until it is dropped; `None` if for `patience` neither has it come nor has the server answered anyone.
    pub async fn turn(&self, patience: Duration) -> Option<SemaphorePermit<'_>> {
        let begun = Instant::now();
        let turn = self.turns.acquire();
        tokio::pin!(turn);
        loop {
            let due = self.due(begun, patience);
            tokio::select! {
                biased;
                turn = &mut turn => return turn.ok(),
                () = sleep_until(due) => {}
            }
            if self.due(begun, patience) == due {
                return None;
            }
        }
    }

    /// The server has answered.
    pub fn note_answer(&self) {
        self.answered.send_replace(Some(Instant::now()));
    }

    /// When who has waited since then waits no longer, unless the server answers before.
    fn due(&self, begun: Instant, patience: Duration) -> Instant {
        self.answered.borrow().map_or(begun, |answered| answered.max(begun)) + patience
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn who_waits_gives_up_when_nobody_is_answered() {
        let gate = Gate::new(1);
        let held = gate.turn(PATIENCE).await.expect("the first");
        assert!(gate.turn(PATIENCE).await.is_none());
        drop(held);
        assert!(gate.turn(PATIENCE).await.is_some());
    }

    #[tokio::test]
    async fn who_waits_goes_on_waiting_while_others_are_answered() {
        let gate = Gate::new(1);
        let held = gate.turn(PATIENCE).await.expect("the first");
        let others = async {
            // An answer of an hour from now, and not one after the other: however long this thread is kept from running, the wait is not over.
            gate.answered.send_replace(Some(Instant::now() + Duration::from_secs(3600)));
            sleep(PATIENCE * 3).await;
            drop(held);
        };
        let (second, ()) = tokio::join!(gate.turn(PATIENCE), others);
        assert!(second.is_some());
    }

    #[test]
    fn an_answer_begins_the_wait_anew_and_one_of_before_does_not_shorten_it() {
        let gate = Gate::new(1);
        let begun = Instant::now();
        assert_eq!(gate.due(begun, PATIENCE), begun + PATIENCE);
        gate.note_answer();
        assert!(gate.due(begun, PATIENCE) >= begun + PATIENCE);
        let answered = gate.answered.borrow().expect("just noted");
        assert_eq!(gate.due(begun, PATIENCE), answered + PATIENCE);
        let later = answered + Duration::from_secs(1);
        assert_eq!(gate.due(later, PATIENCE), later + PATIENCE);
    }
}
