//! The parser and the check on small texts, and the shipped fragment against what the guest is
//! promised to offer.

use super::*;

fn shipped() -> Fragment {
    Fragment::parse(KERNEL_CONFIG).expect("kernel.config is readable")
}

#[test]
fn parse_values_unset_and_comments_are_told_apart() {
    let fragment = Fragment::parse(
        "# A comment about CONFIG_A.\nCONFIG_A=y\nCONFIG_N=64\n# CONFIG_B is not set\n\nCONFIG_C=n\nCONFIG_S=\"x=y\"\n",
    )
    .expect("readable");
    assert!(fragment.enables("A"));
    assert_eq!(fragment.value("N"), Some("64"));
    assert_eq!(fragment.value("S"), Some("\"x=y\""));
    assert!(fragment.disables("B") && fragment.disables("C"));
    assert!(!fragment.enables("B") && !fragment.disables("A") && !fragment.disables("ABSENT"));
}

#[test]
fn parse_stray_text_is_refused_with_its_line() {
    for stray in ["CONFIG A=y", "CONFIG_A", "CONFIG_A=", "A=y", "CONFIG_A-B=y"] {
        assert_eq!(
            Fragment::parse(&format!("CONFIG_X=y\n{stray}\n")),
            Err(FragmentError::Unreadable {
                line: 2,
                text: stray.to_owned()
            })
        );
    }
}

#[test]
fn parse_option_named_twice_is_refused_by_name() {
    assert_eq!(
        Fragment::parse("CONFIG_A=y\n# CONFIG_A is not set\n"),
        Err(FragmentError::Duplicate {
            line: 2,
            symbol: "A".to_owned()
        })
    );
}

#[test]
fn unmet_dropped_option_is_named_with_both_values() {
    let fragment =
        Fragment::parse("CONFIG_A=y\nCONFIG_N=64\n# CONFIG_OFF is not set\nCONFIG_GONE=y\n")
            .expect("readable");
    let unmet = fragment.unmet("CONFIG_A=y\nCONFIG_N=8\nCONFIG_OFF=y\n# CONFIG_GONE is not set\n");
    let texts: Vec<String> = unmet.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "CONFIG_GONE is not set, asked for y",
            "CONFIG_N is 8, asked for 64",
            "CONFIG_OFF is y, asked for not set",
        ]
    );
}

#[test]
fn unmet_config_with_everything_asked_is_empty() {
    let fragment = Fragment::parse("CONFIG_A=y\n# CONFIG_B is not set\n").expect("readable");
    assert_eq!(fragment.unmet("CONFIG_A=y\nCONFIG_EXTRA=y\n"), []);
}

/// Each promise of the guest image with the options that keep it. The kernel build checks that
/// the options survive Kconfig; this checks that nobody drops the request.
const PROMISES: &[(&str, &[&str])] = &[
    (
        "virtio over MMIO, devices on the command line",
        &["VIRTIO_MMIO", "VIRTIO_MMIO_CMDLINE_DEVICES"],
    ),
    ("network device", &["VIRTIO_NET"]),
    ("block device", &["VIRTIO_BLK"]),
    ("shared file system", &["FUSE_FS", "VIRTIO_FS"]),
    ("host channel", &["VSOCKETS", "VIRTIO_VSOCKETS"]),
    ("entropy device", &["HW_RANDOM", "HW_RANDOM_VIRTIO"]),
    (
        "balloon that reports free pages",
        &["VIRTIO_BALLOON", "PAGE_REPORTING"],
    ),
    (
        "all namespaces",
        &[
            "NAMESPACES",
            "UTS_NS",
            "TIME_NS",
            "IPC_NS",
            "USER_NS",
            "PID_NS",
            "NET_NS",
            "CGROUPS",
        ],
    ),
    (
        "cgroup v2 controllers",
        &[
            "MEMCG",
            "CGROUP_SCHED",
            "CFS_BANDWIDTH",
            "CPUSETS",
            "CGROUP_PIDS",
            "BLK_CGROUP",
            "BLK_DEV_THROTTLING",
            "CGROUP_HUGETLB",
        ],
    ),
    (
        "device filter of a container",
        &["CGROUP_BPF", "BPF_SYSCALL"],
    ),
    ("seccomp", &["SECCOMP", "SECCOMP_FILTER", "BPF_JIT"]),
    ("overlay", &["OVERLAY_FS"]),
    ("tmpfs", &["TMPFS", "TMPFS_XATTR", "TMPFS_POSIX_ACL"]),
    (
        "ext4",
        &["EXT4_FS", "EXT4_FS_POSIX_ACL", "EXT4_FS_SECURITY"],
    ),
    ("erofs", &["EROFS_FS", "EROFS_FS_XATTR"]),
    (
        "nftables",
        &[
            "NF_TABLES",
            "NF_TABLES_INET",
            "NF_TABLES_IPV4",
            "NF_TABLES_IPV6",
            "NFT_NAT",
        ],
    ),
    (
        "iptables over nftables",
        &["NFT_COMPAT", "NETFILTER_XTABLES"],
    ),
    (
        "legacy iptables",
        &[
            "IP_NF_IPTABLES",
            "IP_NF_FILTER",
            "IP_NF_NAT",
            "IP_NF_MANGLE",
            "IP6_NF_IPTABLES",
            "IP6_NF_FILTER",
            "IP6_NF_NAT",
        ],
    ),
    (
        "redirection of a sidecar proxy",
        &[
            "NF_CONNTRACK",
            "NETFILTER_XT_TARGET_REDIRECT",
            "NETFILTER_XT_MATCH_OWNER",
            "NETFILTER_XT_TARGET_TPROXY",
            "NETFILTER_XT_MATCH_CONNTRACK",
            "NETFILTER_XT_MATCH_MARK",
            "NETFILTER_XT_MATCH_MULTIPORT",
            "NETFILTER_XT_MATCH_COMMENT",
            "NETFILTER_XT_MATCH_STATE",
        ],
    ),
    (
        "a container engine inside a pod",
        &[
            "BRIDGE",
            "BRIDGE_NETFILTER",
            "VETH",
            "NF_NAT",
            "NETFILTER_XT_TARGET_MASQUERADE",
            "NETFILTER_XT_NAT",
            "NETFILTER_XT_MATCH_ADDRTYPE",
            "BLK_DEV_LOOP",
            "TUN",
        ],
    ),
    (
        "clock of the hypervisor",
        &[
            "HYPERVISOR_GUEST",
            "PARAVIRT",
            "KVM_GUEST",
            "PARAVIRT_CLOCK",
        ],
    ),
    ("boot by another VMM", &["PVH"]),
    ("more than one processor", &["SMP", "X86_MPPARSE"]),
    (
        "console and initramfs",
        &["SERIAL_8250_CONSOLE", "BLK_DEV_INITRD", "DEVTMPFS"],
    ),
    (
        "what programs of a container call",
        &[
            "EPOLL",
            "EVENTFD",
            "TIMERFD",
            "SIGNALFD",
            "FUTEX",
            "AIO",
            "IO_URING",
            "INOTIFY_USER",
            "FANOTIFY",
            "FILE_LOCKING",
            "SYSVIPC",
            "POSIX_MQUEUE",
            "POSIX_TIMERS",
            "MULTIUSER",
            "UNIX",
            "PACKET",
            "INET",
            "IPV6",
            "X86_IOPL_IOPERM",
        ],
    ),
];

#[test]
fn shipped_fragment_every_promise_of_the_guest_is_asked_for() {
    let fragment = shipped();
    for (promise, symbols) in PROMISES {
        for symbol in *symbols {
            assert!(
                fragment.enables(symbol),
                "{promise}: CONFIG_{symbol}=y is not in kernel.config"
            );
        }
    }
}

#[test]
fn shipped_fragment_what_costs_boot_time_stays_off() {
    let fragment = shipped();
    for symbol in [
        "MODULES", "PCI", "ACPI", "VT", "SERIO", "INPUT", "KALLSYMS", "FTRACE",
    ] {
        assert!(
            fragment.disables(symbol),
            "CONFIG_{symbol} must be asked not to be set"
        );
    }
    assert_eq!(fragment.value("SERIAL_8250_NR_UARTS"), Some("1"));
}
