//! OCI runtime configurations, composed from a Pod and its image configurations.
