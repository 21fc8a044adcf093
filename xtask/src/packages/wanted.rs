//! The one place that names Debian packages: what is installed on this machine, for which purpose.
//! (What the kernel's build needs is named by the crate that builds it.)

/// What `vmpod run` uses on any host: networks of pods, file systems of volumes.
pub const RUN: &[&str] = &["e2fsprogs", "iproute2", "nftables"];

/// What an emulated node needs beside QEMU: programs that start it, and programs that the node,
/// which sees this machine's files, needs inside.
pub const NODE: &[&str] = &[
    "e2fsprogs",
    "iproute2",
    "iptables",
    "kmod",
    "nftables",
    "openssh-client",
];

/// QEMU, from backports where the release's own is too old to keep a node alive.
pub const EMULATOR: &[&str] = &["qemu-system-x86"];

/// What makes images from packages: a Debian in a folder, and the layers' compression.
pub const IMAGES: &[&str] = &["mmdebstrap", "zstd"];

/// What the tests need beside that: an independent reader of the archives that are written here,
/// a program for small images, a registry to pull from, with a certificate, and a containerd with its usual runtime and network plugins; the client
/// of its CRI is generated.
pub const TEST: &[&str] = &[
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "cpio",
    "docker-registry",
    "openssl",
    "protobuf-compiler",
    "runc",
    "systemd",
];

/// What the bench compares pods with, and what has pods of both kinds.
pub const BENCH: &[&str] = &[
    "containerd",
    "containernetworking-plugins",
    "iptables",
    "protobuf-compiler",
    "runc",
];
