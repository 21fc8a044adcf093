//! Pod manifests: parsing, validation as the Kubernetes API server does it, and what they ask of a machine.
