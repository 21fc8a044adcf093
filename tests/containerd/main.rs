//! What containerd's clients see: the same under runc and under vmpod wherever it should be the same.

mod pods;
mod tasks;
