//! When tracked connections are looked through for those that lead nowhere any more, and are forgotten.
//!
//! To read them all takes time where there are many, so they are read when some of them can be such: when an address has lost its task, or
//! does not serve any more, and at each regular check. Where it takes long, reads wait for others that are asked for meanwhile, after the
//! answer, and leave most of the time to commands.

use std::collections::BTreeSet;
use std::mem;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::{Owner, REST, in_full};
use crate::core::flows;
use crate::core::picture::Attachment;
use crate::kernel::Kernel;

/// A read that takes no longer keeps nobody waiting.
const SHORT: Duration = Duration::from_millis(10);

/// The next read.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    due: Option<Instant>,
    /// How long the last one took.
    took: Duration,
    /// Addresses that have lost their tasks since then: nothing that is tracked of them is their next task's.
    gone: BTreeSet<IpAddr>,
}

impl Forgetting {
    /// When.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it can be done at once; if not, it is due later.
    fn ask(&mut self, now: Instant) -> bool {
        let is_short = self.took <= SHORT;
        if !is_short {
            self.due.get_or_insert(now + self.took * REST);
        }
        is_short
    }
}

impl<K: Kernel> Owner<K> {
    /// Some connections may lead nowhere from here on, and those of addresses that are `gone` do.
    pub(super) fn strand(&mut self, gone: BTreeSet<IpAddr>) {
        self.forgetting.gone.extend(gone);
        if self.forgetting.ask(Instant::now()) {
            self.forget_stale();
        }
    }

    /// Nothing of whoever had this pod's addresses before is to be left when it comes.
    pub(super) fn clear_for(&mut self, pod: &Attachment) {
        if pod.networks.iter().any(|membership| self.forgetting.gone.contains(&IpAddr::from(membership.ip))) {
            self.forget_stale();
        }
    }

    /// At the regular check.
    pub(super) fn forget_regularly(&mut self) {
        if flows::any(&self.picture) || !self.forgetting.gone.is_empty() {
            self.forget_stale();
        }
    }

    /// Has connections forgotten that lead to where nothing of theirs is any more; what cannot be is tried again at the next check.
    pub(super) fn forget_stale(&mut self) {
        let begun = Instant::now();
        self.forgetting.due = None;
        let gone = mem::take(&mut self.forgetting.gone);
        let found = self.kernel.flows(&flows::stale(&self.picture, &self.attachments, &gone));
        let stale = match found {
            Ok(stale) => stale,
            Err(error) => {
                self.forgetting.gone = gone;
                return warn!(error = in_full(&error), "the tracked connections could not be read");
            }
        };
        for flow in stale {
            match self.kernel.forget(&flow) {
                Ok(()) => debug!(%flow, "connection forgotten"),
                Err(error) => {
                    warn!(%flow, error = in_full(&error), "a connection could not be forgotten");
                    let ends = [flow.source.0, flow.destination.0, flow.server()];
                    self.forgetting.gone.extend(ends.into_iter().filter(|ip| gone.contains(ip)));
                }
            }
        }
        self.forgetting.took = begun.elapsed();
    }

    /// Has the host forget connections that do not go where their ports lead; what cannot be is tried again at the next check.
    pub(super) fn forget_misled(&mut self) {
        let host = &self.held.host;
        let misled = match self.kernel.host_flows(&|flow| flows::misled(&host.ports, &host.ports6, flow)) {
            Ok(misled) => misled,
            Err(error) => return warn!(error = in_full(&error), "the connections that the host tracks could not be read"),
        };
        for flow in misled {
            match self.kernel.forget_on_host(&flow) {
                Ok(()) => debug!(%flow, "connection forgotten on the host"),
                Err(error) => warn!(%flow, error = in_full(&error), "a connection could not be forgotten on the host"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_done_at_once_and_what_is_not_once_for_all_who_ask() {
        let begin = Instant::now();
        let mut forgetting = Forgetting::default();
        assert!(forgetting.ask(begin) && forgetting.due().is_none());
        forgetting.took = Duration::from_millis(100);
        for ms in [0, 50] {
            assert!(!forgetting.ask(begin + Duration::from_millis(ms)));
        }
        assert_eq!(forgetting.due(), Some(begin + Duration::from_millis(400)));
    }
}
