//! What a seed does around the stores.

use rand::Rng;
use rand::seq::IteratorRandom;

use super::trouble::Trouble;
use crate::chance::stream;

/// All that a seed decides for agents and users before it begins.
#[derive(Debug, Clone)]
pub struct Plan {
    pub agents: usize,
    pub users: usize,
    pub troubles: Vec<Trouble>,
    /// Mean time between two of them.
    pub trouble_every_us: u64,
    /// Longest time that one of them lasts.
    pub trouble_lasts_us: u64,
    /// Mean time of a user between two requests.
    pub think_us: u64,
    /// How far people's clocks are apart at most.
    pub skew_ms: i64,
    /// What a step of a task takes, at the mean.
    pub step_us: u64,
    /// Part of the packets that is sent a second time because it was lost.
    pub loss: f64,
    /// Part of the pulls that fail.
    pub pull_failures: f64,
}

impl Plan {
    /// The plan of `seed`.
    pub fn draw(seed: u64) -> Self {
        let chance = &mut stream(seed, "cluster plan");
        let share = [0.0, 0.0, 0.4, 0.8][chance.random_range(0..4)];
        let trouble_every_us = [2_000_000, 6_000_000, 15_000_000].into_iter().choose(chance).unwrap_or_default();
        Self {
            agents: chance.random_range(1..=6),
            users: chance.random_range(1..=2),
            troubles: Trouble::ALL.into_iter().filter(|_| chance.random_bool(share)).collect(),
            trouble_every_us,
            trouble_lasts_us: trouble_every_us * [1, 3, 6][chance.random_range(0..3)] / 2,
            think_us: [500_000, 3_000_000, 10_000_000][chance.random_range(0..3)],
            skew_ms: [0, 0, 3_000][chance.random_range(0..3)],
            step_us: [1_000, 50_000, 400_000][chance.random_range(0..3)],
            loss: [0.0, 0.0, 0.02][chance.random_range(0..3)],
            pull_failures: [0.0, 0.0, 0.1][chance.random_range(0..3)],
        }
    }
}
