//! What goes wrong for agents; the managers have faults of their own (`crate::faults`).

use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Cluster, Event, FIRST_AGENT, Here};
use crate::network::exponential;

/// A kind of trouble that is drawn again and again while a seed's faults are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A host has no power for a while.
    PowerCut,
    /// An agent dies, and is started again; its containers go on.
    Restart,
    /// A node reaches no manager.
    CutOff,
    /// A node does not reach some of the managers.
    CutFromSome,
}

impl Trouble {
    pub const ALL: [Self; 4] = [Self::PowerCut, Self::Restart, Self::CutOff, Self::CutFromSome];
}

impl Cluster {
    /// The next trouble of this seed.
    pub(super) fn strike(&mut self, here: &mut Here<'_>) {
        if self.is_calm || self.plan.troubles.is_empty() {
            return;
        }
        let next_us = exponential(&mut self.chance, self.plan.trouble_every_us).max(1_000);
        self.later(here.now_us + next_us, Event::Strike);
        let Some(trouble) = self.plan.troubles.choose(&mut self.chance).copied() else { return };
        let until_us = here.now_us + self.chance.random_range(1_000..=self.plan.trouble_lasts_us);
        let at = self.chance.random_range(0..self.agents.len());
        here.tell(|| format!("{trouble:?} n{} for {} ms", at + 1, (until_us - here.now_us) / 1000));
        self.counts.troubles += 1;
        let (agent, managers) = (FIRST_AGENT + at, here.hosts.len());
        match trouble {
            Trouble::PowerCut | Trouble::Restart if self.agents[at].process.is_none() => return,
            Trouble::PowerCut => {
                self.stop(at, true, here);
                self.later(until_us, Event::Start(at));
            }
            Trouble::Restart => {
                self.stop(at, false, here);
                let until_us = here.now_us + self.chance.random_range(10_000..=2_000_000);
                self.later(until_us, Event::Start(at));
            }
            Trouble::CutOff | Trouble::CutFromSome => {
                let share = if trouble == Trouble::CutOff { 1.0 } else { 0.5 };
                let cut: Vec<usize> = (0..managers).filter(|_| self.chance.random_bool(share)).collect();
                let links = cut.into_iter().flat_map(|host| [(agent, host), (host, agent)]).collect();
                self.cut(links, until_us, here);
            }
        }
        self.agents[at].troubled_us = self.agents[at].troubled_us.max(until_us);
    }

    fn cut(&mut self, links: Vec<(usize, usize)>, until_us: u64, here: &mut Here<'_>) {
        self.cuts += 1;
        here.network.cut(self.cuts, links);
        self.later(until_us, Event::Over(self.cuts));
    }
}
