//! The network of standalone pods: bridge, addresses, taps, NAT and host ports.
