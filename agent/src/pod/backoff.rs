//! Restart back-off of one container, as the kubelet has it.
//!
//! The first restart is at once; the next waits the initial delay after the exit, and each further one twice as long as
//! the one before up to the limit. A container that ran for the reset time starts anew.

use std::time::Duration;

/// Delays of a pod's restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// Delay of the second restart.
    pub initial: Duration,
    /// Longest delay.
    pub limit: Duration,
    /// A container that ran this long is forgiven.
    pub reset: Duration,
}

impl Default for BackoffPolicy {
    /// Kubernetes' own (PodSpec.restartPolicy: 10 s doubling to 5 min, reset after 10 min).
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(10),
            limit: Duration::from_secs(300),
            reset: Duration::from_secs(600),
        }
    }
}

/// Back-off of one container.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    /// Delay of the next restart; `None` before the first one.
    next: Option<Duration>,
}

impl Backoff {
    /// Delay before the restart of a container that ran for `ran`.
    pub fn delay(&mut self, policy: &BackoffPolicy, ran: Duration) -> Duration {
        if ran >= policy.reset {
            self.next = None;
        }
        let delay = self.next.unwrap_or(Duration::ZERO).min(policy.limit);
        self.next = Some(match self.next {
            None => policy.initial,
            Some(delay) => delay.saturating_mul(2).min(policy.limit),
        });
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_to_the_limit_and_is_reset() {
        let policy = BackoffPolicy::default();
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..9)
            .map(|_| backoff.delay(&policy, Duration::ZERO).as_secs())
            .collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(
            backoff.delay(&policy, Duration::from_secs(600)),
            Duration::ZERO
        );
        assert_eq!(
            backoff.delay(&policy, Duration::from_secs(599)).as_secs(),
            10
        );
    }
}
