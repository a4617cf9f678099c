//! Decides what a container's checks mean.
//!
//! In: the check as specified, when the container started, how each check went and when. Out: when the next one is due, and the health.
//! Until the first success the container is starting, and it may take `start_period` and then `retries` times `interval`, which is what
//! Docker gives; from then on `retries` failures in a row make it unhealthy. Never looks at a clock.

use rcluster_api::health::{Health, HealthCheck};
use rcluster_api::resource::Millis;
use serde::Deserialize;

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

/// `Healthcheck` of an image's configuration, as Docker writes it (moby, `api/types/container`): times in nanoseconds, 0 for the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageHealthcheck {
    test: Vec<String>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

impl ImageHealthcheck {
    /// The check that it asks for; `None` for `NONE` and for a form that is not known.
    pub fn check(self) -> Option<HealthCheck> {
        let (kind, words) = self.test.split_first()?;
        let command = match (kind.as_str(), words) {
            ("CMD", words) if !words.is_empty() => words.to_vec(),
            ("CMD-SHELL", [line]) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
            _ => return None,
        };
        let default = HealthCheck::default();
        let or = |nanoseconds: i64, default: Millis| match u64::try_from(nanoseconds) {
            Ok(nanoseconds @ 1..) => Millis((nanoseconds / 1_000_000).max(1)),
            _ => default,
        };
        Some(HealthCheck {
            command,
            interval: or(self.interval, default.interval),
            timeout: or(self.timeout, default.timeout),
            start_period: or(self.start_period, default.start_period),
            start_interval: or(self.start_interval, default.start_interval),
            retries: u32::try_from(self.retries).ok().filter(|retries| *retries > 0).unwrap_or(default.retries),
            ..default
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_check_is_dockers() {
        let check = |text: &str| serde_json::from_str::<ImageHealthcheck>(text).expect("JSON").check();
        let shell = check(r#"{"Test":["CMD-SHELL","curl -f http://localhost/"],"Interval":5000000000,"Retries":2}"#).expect("a check");
        assert_eq!(
            (shell.command[2].as_str(), shell.interval, shell.timeout, shell.retries),
            ("curl -f http://localhost/", Millis(5000), Millis(30_000), 2)
        );
        assert_eq!(check(r#"{"Test":["CMD","/ok"]}"#).expect("a check").command, ["/ok"]);
        assert_eq!((check(r#"{"Test":["NONE"]}"#), check("{}")), (None, None));
    }

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
