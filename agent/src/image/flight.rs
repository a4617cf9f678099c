//! Work that many may ask for at once and that is done once.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;

use super::ImageError;

/// How a flight ended, for everybody who waited.
pub type Landed = Result<(), Arc<ImageError>>;

/// Whoever waits for it also drives it.
pub type Work = Shared<BoxFuture<'static, Landed>>;

/// Work under way, by what it is about. Nobody who waits is left: the work ends.
pub struct Flights<P>(Mutex<BTreeMap<String, UnderWay<P>>>);

type UnderWay<P> = (WeakShared<BoxFuture<'static, Landed>>, watch::Receiver<P>);

/// A share in work under way.
#[derive(Clone)]
pub struct Flight<P> {
    pub progress: watch::Receiver<P>,
    pub work: Work,
}

impl<P> Default for Flights<P> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<P> fmt::Debug for Flights<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<P: Default> Flights<P> {
    /// A share in the work on `key`: in what is under way, or in what `begin` makes.
    pub fn join<F: Future<Output = Landed> + Send + 'static>(&self, key: &str, begin: impl FnOnce(watch::Sender<P>) -> F) -> Flight<P> {
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, (work, _)| work.upgrade().is_some_and(|work| work.peek().is_none()));
        if let Some((work, progress)) = under_way.get(key)
            && let Some(work) = work.upgrade()
        {
            return Flight { progress: progress.clone(), work };
        }
        let (sender, progress) = watch::channel(P::default());
        let work = begin(sender).boxed().shared();
        if let Some(weak) = work.downgrade() {
            under_way.insert(key.to_owned(), (weak, progress.clone()));
        }
        Flight { progress, work }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn many_ask_and_it_is_done_once_and_anew_when_all_is_over() {
        let (flights, begun, go) = (Flights::<()>::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let join = || {
            let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
            flights.join("a", |_| async move {
                begun.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
                Ok(())
            })
        };
        let (first, second) = (join(), join());
        go.notify_one();
        let (first, second) = tokio::join!(first.work, second.work);
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        go.notify_one();
        assert!(join().work.await.is_ok());
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn the_work_goes_on_for_those_who_still_wait_and_ends_with_the_last() {
        let (flights, alive) = (Flights::<()>::default(), Arc::new(()));
        let join = || {
            let alive = Arc::clone(&alive);
            flights.join("a", |_| async move {
                std::future::pending::<()>().await;
                drop(alive);
                Ok(())
            })
        };
        let (first, second) = (join(), join());
        drop(first);
        assert_eq!(Arc::strong_count(&alive), 2, "the work holds one");
        drop(second);
        assert_eq!(Arc::strong_count(&alive), 1, "the work is gone");
    }
}
