//! When the kernel is read back between two regular checks: some time after a picture, and after someone else has changed something. The host's
//! own routes, which may be very many, are read when they are others, and then alone.
//!
//! A look takes the owner's time, so looks wait for others that are asked for meanwhile, and leave most of the time to commands.

use std::mem;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Owner, REST};
use crate::kernel::Kernel;
use crate::kernel::watch::News;

/// From when a look is asked for to the look.
const LOOK_AFTER: Duration = Duration::from_millis(200);

/// The next look.
#[derive(Debug, Default)]
pub(super) struct Looks {
    due: Option<Instant>,
    /// It is for what the kernel holds of ours.
    kernel: bool,
    /// It is for the host's own routes.
    routes: bool,
    /// How long the last one took.
    took: Duration,
    /// Who is told when it is done.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Looks {
    /// A look at what is ours is to be taken soon; the one that is due already is as good.
    pub(super) fn ask(&mut self, now: Instant) {
        self.kernel = true;
        self.set_due(now);
    }

    fn set_due(&mut self, now: Instant) {
        let due = now + LOOK_AFTER.max(self.took * REST);
        self.due.get_or_insert(due);
    }

    /// The same at the host's routes.
    pub(super) fn ask_for_routes(&mut self, now: Instant) {
        self.routes = true;
        self.set_due(now);
    }

    /// Tells one when the look that is due is done.
    pub(super) fn tell(&mut self, done: oneshot::Sender<()>) {
        self.waiting.push(done);
    }

    /// When.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }
}

impl<K: Kernel> Owner<K> {
    /// Someone else has changed something; that a pod's device goes after the pod is as it should be.
    pub(super) fn hear(&mut self, news: &News, done: oneshot::Sender<()>) {
        let mut is_news = news.changed;
        for link in &news.gone {
            is_news |= self.leaving.remove(link).is_none();
        }
        if is_news {
            self.looks.ask(Instant::now());
        }
        if news.routes {
            self.looks.ask_for_routes(Instant::now());
        }
        if is_news || news.routes {
            self.looks.tell(done);
        } else {
            let _ = done.send(());
        }
    }

    /// Takes the look that is due.
    pub(super) fn look(&mut self) {
        let begun = Instant::now();
        self.looks.due = None;
        // What happens from here on may be missed by this one.
        let waiting = mem::take(&mut self.looks.waiting);
        if mem::take(&mut self.looks.routes) {
            self.read_routes();
        }
        if mem::take(&mut self.looks.kernel) {
            self.verify();
        }
        self.looks.took = begun.elapsed();
        for done in waiting {
            // Who does not wait any more need not hear of it.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_are_asked_for_together_are_one_and_leave_most_of_the_time() {
        let mut looks = Looks::default();
        let begin = Instant::now();
        for ms in [0, 50, 199] {
            looks.ask(begin + Duration::from_millis(ms));
        }
        assert_eq!(looks.due(), Some(begin + Duration::from_millis(200)));
        looks = Looks { took: Duration::from_millis(100), ..Looks::default() };
        looks.ask(begin);
        assert_eq!(looks.due(), Some(begin + Duration::from_millis(400)));
    }
}
