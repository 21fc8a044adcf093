//! Counts the attempts of one probe against its thresholds, as the kubelet's prober does. Pure.

/// The count of one probe of one attempt of a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tally {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
}

impl Tally {
    pub(super) fn new(success_threshold: u32, failure_threshold: u32) -> Self {
        Self {
            success_threshold,
            failure_threshold,
            last: None,
            run: 0,
        }
    }

    /// Counts an attempt. Returns the probe's word when the attempts in a row have reached their threshold.
    pub(super) fn count(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        (self.run >= threshold).then_some(success)
    }

    /// Whether the present run of failures has not passed its threshold.
    pub(super) fn is_news(&self) -> bool {
        self.run <= self.failure_threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tally_speaks_when_attempts_in_a_row_reach_their_threshold() {
        let mut tally = Tally::new(2, 3);
        let words: Vec<_> = [true, true, false, false, true, false, false, false, false]
            .map(|success| tally.count(success))
            .into();
        assert_eq!(
            words,
            [
                None,
                Some(true),
                None,
                None,
                None,
                None,
                None,
                Some(false),
                Some(false)
            ]
        );
        assert!(!tally.is_news());
        tally.count(true);
        tally.count(false);
        assert!(tally.is_news());
    }
}
