//! The pod's state machine: init containers in order, restarts with back-off, the end.
