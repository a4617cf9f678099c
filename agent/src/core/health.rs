//! Decides what a container's checks mean.
//!
//! In: the check as specified, when the container started, how each check went and when. Out: when the next one is due, and the health.
//! Until the first success the container is starting, and it may take `start_period` and then `retries` times `interval`, which is what
//! Docker gives; from then on `retries` failures in a row make it unhealthy. Never looks at a clock.

use rcluster_api::health::{Health, HealthCheck};

/// The checks of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checks {
    check: HealthCheck,
    started_at_ms: u64,
    health: Health,
    /// In a row, since the first success.
    failures: u32,
    /// When the last check ended.
    last_ms: Option<u64>,
}

impl Checks {
    /// Of a container whose health so far is known; `Health::None` when nothing is.
    pub fn new(check: HealthCheck, started_at_ms: u64, health: Health) -> Self {
        let health = if health == Health::None { Health::Starting } else { health };
        Self { check, started_at_ms, health, failures: 0, last_ms: None }
    }

    /// What is to be checked.
    pub fn check(&self) -> &HealthCheck {
        &self.check
    }

    /// What the checks have shown.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Unix time of the next check; the first is due at once.
    pub fn due_ms(&self) -> u64 {
        let pause = if self.health == Health::Starting { self.check.start_interval.min(self.check.interval) } else { self.check.interval };
        self.last_ms.map_or(0, |last| last.saturating_add(pause.0))
    }

    /// A check has ended; the health from now on.
    pub fn take(&mut self, succeeded: bool, now_ms: u64) -> Health {
        self.last_ms = Some(now_ms);
        self.failures = if succeeded { 0 } else { self.failures.saturating_add(1) };
        self.health = match (self.health, succeeded) {
            (_, true) => Health::Healthy,
            (Health::None | Health::Starting, false) if now_ms < self.starting_until_ms() => Health::Starting,
            (Health::None | Health::Starting, false) => Health::Unhealthy,
            (Health::Healthy, false) if self.failures < self.check.retries => Health::Healthy,
            (Health::Healthy | Health::Unhealthy, false) => Health::Unhealthy,
        };
        self.health
    }

    fn starting_until_ms(&self) -> u64 {
        let tries = self.check.interval.0.saturating_mul(u64::from(self.check.retries));
        self.started_at_ms.saturating_add(self.check.start_period.0).saturating_add(tries)
    }
}

#[cfg(test)]
mod tests {
    use rcluster_api::resource::Millis;

    use super::*;

    fn checks(health: Health) -> Checks {
        let check = HealthCheck { interval: Millis(10), start_period: Millis(100), start_interval: Millis(2), ..HealthCheck::default() };
        Checks::new(check, 1_000, health)
    }

    #[test]
    fn a_container_has_its_start_period_and_all_retries_to_succeed_once() {
        let mut checks = checks(Health::None);
        assert_eq!((checks.health(), checks.due_ms()), (Health::Starting, 0));
        for now in [1_001, 1_050, 1_129] {
            assert_eq!(checks.take(false, now), Health::Starting);
            assert_eq!(checks.due_ms(), now + 2);
        }
        assert_eq!(checks.clone().take(true, 1_129), Health::Healthy);
        assert_eq!(checks.take(false, 1_130), Health::Unhealthy);
    }

    #[test]
    fn a_healthy_container_may_fail_now_and_then_but_not_in_a_row() {
        let mut checks = checks(Health::None);
        checks.take(true, 1_001);
        assert_eq!(checks.due_ms(), 1_011);
        for succeeded in [false, false, true, false, false] {
            assert_eq!(checks.take(succeeded, 9_000), Health::Healthy);
        }
        assert_eq!(checks.take(false, 9_001), Health::Unhealthy);
    }

    #[test]
    fn an_agent_started_anew_goes_on_with_the_health_it_knew() {
        let mut checks = checks(Health::Healthy);
        assert_eq!(checks.take(false, 9_000), Health::Healthy);
    }
}
