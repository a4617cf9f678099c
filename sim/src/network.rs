//! The wires between the hosts: when a message arrives, and whether it does.

use std::collections::BTreeMap;

use rand::Rng;

use crate::chance::{Chance, stream};
use crate::plan::Plan;

/// Messages on their way are the world's events; this says when they arrive.
pub struct Network {
    chance: Chance,
    latency_us: (u64, u64),
    loss: f64,
    duplication: f64,
    reordering: bool,
    /// Links that carry nothing, by the fault that has cut them.
    cuts: BTreeMap<u64, Vec<(usize, usize)>>,
    /// Until when a link holds everything back.
    clogs: BTreeMap<(usize, usize), u64>,
    /// The latest arrival on each link, for those that keep the order.
    arrivals: BTreeMap<(usize, usize), u64>,
}

impl Network {
    pub fn new(plan: &Plan) -> Self {
        Self {
            chance: stream(plan.seed, "network"),
            latency_us: plan.latency_us,
            loss: plan.loss,
            duplication: plan.duplication,
            reordering: plan.reordering,
            cuts: BTreeMap::new(),
            clogs: BTreeMap::new(),
            arrivals: BTreeMap::new(),
        }
    }

    /// All faults off.
    pub fn calm(&mut self) {
        (self.loss, self.duplication, self.reordering) = (0.0, 0.0, false);
        self.cuts.clear();
        self.clogs.clear();
    }

    pub fn cut(&mut self, fault: u64, links: Vec<(usize, usize)>) {
        self.cuts.insert(fault, links);
    }

    pub fn mend(&mut self, fault: u64) {
        self.cuts.remove(&fault);
    }

    pub fn clog(&mut self, link: (usize, usize), until_us: u64) {
        self.clogs.insert(link, until_us);
    }

    pub fn is_cut(&self, link: (usize, usize)) -> bool {
        self.cuts.values().any(|links| links.contains(&link))
    }

    /// How long a message travels.
    pub fn latency(&mut self) -> u64 {
        let (least, mean) = self.latency_us;
        least + exponential(&mut self.chance, mean)
    }

    /// When a message that is sent at `at_us` arrives; twice, or never. `times`: how much longer it takes than a small one.
    pub fn arrivals(&mut self, link: (usize, usize), at_us: u64, times: u64) -> Vec<u64> {
        if self.is_cut(link) || self.chance.random_bool(self.loss) {
            return Vec::new();
        }
        let copies = if self.chance.random_bool(self.duplication) { 2 } else { 1 };
        let start = self.clogs.get(&link).map_or(at_us, |until| at_us.max(*until));
        let mut arrivals = Vec::with_capacity(copies);
        for _ in 0..copies {
            let mut arrival = start + self.latency() * times;
            if !self.reordering {
                let latest = self.arrivals.entry(link).or_default();
                arrival = arrival.max(*latest);
                *latest = arrival;
            }
            arrivals.push(arrival);
        }
        arrivals
    }
}

/// A time with this mean, most of them short, few long.
pub fn exponential(chance: &mut Chance, mean_us: u64) -> u64 {
    // Whole numbers: the same on every machine. The sum of geometric parts halves its chance with each mean.
    let halvings = chance.random::<u64>().leading_zeros();
    let part = chance.random_range(0..=mean_us);
    (u64::from(halvings.min(12)) * mean_us + part) * 2 / 3
}
