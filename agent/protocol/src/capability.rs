//! The capabilities of Linux 6.12 (capabilities(7)), by name and number: host and guest have to mean the same.

/// Names without `CAP_`; the position is the number of include/uapi/linux/capability.h.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of the capability called `name` (upper case, without `CAP_`); `None`: there is none.
#[must_use]
pub fn number(name: &str) -> Option<usize> {
    CAPABILITIES.iter().position(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_a_capability_is_the_kernels() {
        let numbers = [
            "CHOWN",
            "SYS_ADMIN",
            "CHECKPOINT_RESTORE",
            "chown",
            "CAP_CHOWN",
        ]
        .map(number);
        assert_eq!(numbers, [Some(0), Some(21), Some(40), None, None]);
    }
}
