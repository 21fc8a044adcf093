//! What is to be done so that the pods are those that the folder asks for. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmpod_shim::manifest::plan::RestartPolicy;

use super::folder::Desired;

/// Delay before a pod that failed as a whole is started again, doubled with each failure (kubelet: the same).
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LAST_DELAY: Duration = Duration::from_secs(300);
/// A pod that ran for so long is forgiven.
const FORGIVEN_SECONDS: u64 = 600;

/// A pod that was started from the folder.
#[derive(Clone, Debug)]
pub(super) struct Actual {
    pub(super) file: PathBuf,
    pub(super) hash: String,
    pub(super) ended: bool,
    pub(super) succeeded: bool,
    pub(super) reason: String,
    pub(super) restart_policy: RestartPolicy,
    pub(super) ran_seconds: u64,
}

/// Failed starts of a file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Failures {
    delay: Duration,
    until: Option<Instant>,
}

impl Failures {
    /// Counts one, at `now`.
    pub(super) fn one_more(&mut self, now: Instant) {
        self.delay = (self.delay * 2).clamp(FIRST_DELAY, LAST_DELAY);
        self.until = Some(now + self.delay);
    }

    fn hold(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Something to do. Pods are named by their place in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Start the pod of a file.
    Start { file: PathBuf, hash: String },
    /// Stop a pod in order.
    Stop { index: usize, why: &'static str },
    /// Remove a pod that has ended; `failed`: it counts as a failure of its file.
    Remove { index: usize, failed: bool },
}

/// Compares the folder with the pods.
pub(super) fn decide(
    desired: &Desired,
    actual: &[&Actual],
    starting: impl Fn(&Path) -> bool,
    failures: &BTreeMap<PathBuf, Failures>,
    now: Instant,
) -> Vec<Decision> {
    let mut decisions = Vec::new();
    for (index, pod) in actual.iter().enumerate() {
        let why = match desired.pods.get(&pod.file) {
            Some(hash) if *hash == pod.hash => None,
            Some(_) => Some("its manifest has changed"),
            None if desired.broken.contains_key(&pod.file) => None,
            None => Some("its manifest is gone"),
        };
        match (why, pod.ended) {
            (Some(_), true) => decisions.push(Decision::Remove {
                index,
                failed: false,
            }),
            (Some(why), false) => decisions.push(Decision::Stop { index, why }),
            (None, true) if restarts(pod) && desired.pods.contains_key(&pod.file) => {
                decisions.push(Decision::Remove {
                    index,
                    failed: pod.ran_seconds < FORGIVEN_SECONDS,
                });
            }
            (None, _) => {}
        }
    }
    for (file, hash) in &desired.pods {
        let there = actual.iter().any(|pod| pod.file == *file);
        let held = failures.get(file).is_some_and(|f| f.hold(now));
        if !there && !held && !starting(file) {
            decisions.push(Decision::Start {
                file: file.clone(),
                hash: hash.clone(),
            });
        }
    }
    decisions
}

/// Whether a pod that has ended is to run again. What the pod itself is to blame for stays, as a kubelet leaves it.
fn restarts(pod: &Actual) -> bool {
    if ["Evicted", "DeadlineExceeded"].contains(&pod.reason.as_str()) {
        return false;
    }
    match pod.restart_policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => !pod.succeeded,
        RestartPolicy::Never => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> Desired {
        Desired {
            pods: files
                .iter()
                .map(|(file, hash)| ((*file).into(), (*hash).into()))
                .collect(),
            broken: BTreeMap::new(),
        }
    }

    fn pod(file: &str, hash: &str, ended: bool) -> Actual {
        Actual {
            file: file.into(),
            hash: hash.into(),
            ended,
            succeeded: false,
            reason: String::new(),
            restart_policy: RestartPolicy::Always,
            ran_seconds: 5,
        }
    }

    fn decided(desired: &Desired, actual: &[&Actual]) -> Vec<Decision> {
        decide(desired, actual, |_| false, &BTreeMap::new(), Instant::now())
    }

    fn start(file: &str, hash: &str) -> Decision {
        Decision::Start {
            file: file.into(),
            hash: hash.into(),
        }
    }

    #[test]
    fn new_files_are_started_unless_they_are_or_have_failed_just_now() {
        let desired = folder(&[("a", "1"), ("b", "2")]);
        assert_eq!(decided(&desired, &[]), [start("a", "1"), start("b", "2")]);
        assert_eq!(
            decided(&desired, &[&pod("a", "1", false)]),
            [start("b", "2")]
        );
        let now = Instant::now();
        let mut failures = BTreeMap::from([(PathBuf::from("a"), Failures::default())]);
        failures.get_mut(Path::new("a")).unwrap().one_more(now);
        let busy = |file: &Path| file == Path::new("b");
        assert_eq!(decide(&desired, &[], busy, &failures, now), []);
        let later = now + FIRST_DELAY;
        assert_eq!(
            decide(&desired, &[], busy, &failures, later),
            [start("a", "1")]
        );
    }

    #[test]
    fn pods_whose_file_changed_or_went_are_stopped_then_removed() {
        let desired = folder(&[("a", "2")]);
        let why = "its manifest has changed";
        assert_eq!(
            decided(&desired, &[&pod("a", "1", false), &pod("b", "1", false)]),
            [
                Decision::Stop { index: 0, why },
                Decision::Stop {
                    index: 1,
                    why: "its manifest is gone"
                }
            ]
        );
        assert_eq!(
            decided(&desired, &[&pod("a", "1", true)]),
            [Decision::Remove {
                index: 0,
                failed: false
            }],
            "the new one is started in the next round"
        );
    }

    #[test]
    fn pod_whose_file_is_broken_goes_on() {
        let mut desired = folder(&[]);
        desired.broken.insert("a".into(), "no YAML".into());
        assert_eq!(decided(&desired, &[&pod("a", "1", false)]), []);
        assert_eq!(decided(&desired, &[&pod("a", "1", true)]), []);
    }

    #[test]
    fn pods_that_have_ended_run_again_by_their_policy() {
        let desired = folder(&[("a", "1")]);
        let again = [Decision::Remove {
            index: 0,
            failed: true,
        }];
        let mut ended = pod("a", "1", true);
        assert_eq!(decided(&desired, &[&ended]), again);
        ended.restart_policy = RestartPolicy::Never;
        assert_eq!(decided(&desired, &[&ended]), []);
        ended.restart_policy = RestartPolicy::OnFailure;
        assert_eq!(decided(&desired, &[&ended]), again);
        ended.succeeded = true;
        assert_eq!(decided(&desired, &[&ended]), []);
        ended.restart_policy = RestartPolicy::Always;
        ended.reason = "Evicted".into();
        assert_eq!(decided(&desired, &[&ended]), []);
    }

    #[test]
    fn failures_double_the_delay_to_the_limit() {
        let mut failures = Failures::default();
        let now = Instant::now();
        let delays: Vec<u64> = (0..7)
            .map(|_| {
                failures.one_more(now);
                failures.delay.as_secs()
            })
            .collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }
}
