#!/bin/sh
# PID 1 of the emulated node until it hands over to busybox init. It runs from the initramfs,
# builds the node's root out of the machine's own files (9p, read-only) and memory (overlay), and
# never writes to the machine. Parameters come from the node's directory, named by vmpod.dir= on
# the kernel command line; xtask/src/node/boot.rs writes them.
PATH=/bin

fail() {
    echo "vmpod-node: FAILED: $*"
    sync
    poweroff -f
}

mkdir -p /proc /sys /dev /run /lower /live /rw /newroot
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run

while read -r module options; do
    # Options are several words, hence no quotes.
    insmod "/modules/$module" $options || echo "vmpod-node: module $module did not load"
done < /modules/order

dir=
for word in $(cat /proc/cmdline); do
    case "$word" in
        vmpod.dir=*) dir="${word#vmpod.dir=}" ;;
    esac
done
[ -n "$dir" ] || fail "no vmpod.dir= on the kernel command line"

# The machine's files, twice: `lower` is cached for good (nothing in /usr changes under a running
# node), `live` is checked at each open, so that a rebuilt binary is seen at once.
p9="trans=virtio,version=9p2000.L,msize=512000,ro"
mount -t 9p -o "$p9,cache=loose" machine /lower || fail "mounting the machine's root over 9p"
mount -t 9p -o "$p9,cache=readahead" live /live || fail "mounting the machine's live files over 9p"
mount -t tmpfs -o "mode=755,size=75%" tmpfs /rw
mkdir /rw/upper /rw/work
mount -t overlay -o "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work,xino=off" overlay /newroot \
    || fail "mounting the overlay"

hostname=vmpod-node
modules=
epoch=
. "/live$dir/params" || fail "reading $dir/params"

# In count mode and on machines whose emulated clock chip lags, the machine's own time is better.
[ -n "$epoch" ] && [ "$(date +%s)" -lt "$epoch" ] && date -s "@$epoch" > /dev/null

# The scratch disk holds what must lie on a real file system and may outlive a boot.
mkdir -p /newroot/scratch
mount -t ext4 -o discard /dev/vda /newroot/scratch || fail "mounting the scratch disk"
for name in vmpod containerd; do
    mkdir -p "/newroot/scratch/$name" "/newroot/var/lib/$name"
    mount --bind "/newroot/scratch/$name" "/newroot/var/lib/$name"
done

for name in proc sys dev run tmp var/tmp; do
    mkdir -p "/newroot/$name"
done
mkdir -p /run/vmpod-node/exec
cp /bin/busybox /run/vmpod-node/busybox
cp -r /sshd /run/vmpod-node/sshd
mount --move /proc /newroot/proc
mount --move /sys /newroot/sys
mount --move /dev /newroot/dev
mount --move /run /newroot/run
mkdir -p /newroot/dev/pts /newroot/dev/shm /newroot/dev/mqueue /newroot/dev/hugepages /newroot/run/lock
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /newroot/dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /newroot/dev/shm
mount -t mqueue mqueue /newroot/dev/mqueue
mount -t hugetlbfs hugetlbfs /newroot/dev/hugepages
mount -t tmpfs -o mode=1777 tmpfs /newroot/tmp
mount -t tmpfs -o mode=1777 tmpfs /newroot/var/tmp
ln -sfn /proc/self/fd /newroot/dev/fd
ln -sfn /proc/self/fd/0 /newroot/dev/stdin
ln -sfn /proc/self/fd/1 /newroot/dev/stdout
ln -sfn /proc/self/fd/2 /newroot/dev/stderr

mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /newroot/sys/fs/cgroup
for controller in $(cat /newroot/sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /newroot/sys/fs/cgroup/cgroup.subtree_control
done
mount -t securityfs securityfs /newroot/sys/kernel/security
mount -t bpf bpf /newroot/sys/fs/bpf
mount -t debugfs debugfs /newroot/sys/kernel/debug
mount -t tracefs tracefs /newroot/sys/kernel/tracing

# Paths whose changes outside must be seen inside at once: checkout, target directory, cache.
while read -r path; do
    [ -e "/live$path" ] || continue
    mkdir -p "/newroot$path"
    mount --bind "/live$path" "/newroot$path" || fail "binding $path"
done < "/live$dir/live"

if [ -n "$modules" ]; then
    release="$(uname -r)"
    mkdir -p "/newroot/lib/modules/$release"
    mount --bind "/live$modules/$release" "/newroot/lib/modules/$release"
fi

# Identity and network. The addresses are those of QEMU's user network.
echo "$hostname" > /newroot/etc/hostname
hostname "$hostname"
printf '127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost\n' "$hostname" > /newroot/etc/hosts
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2

grep -q '^sshd:' /newroot/etc/passwd \
    || echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >> /newroot/etc/passwd
# /bin/sh starts several times faster than bash with its start-up files, and `exec` runs one per command.
sed -i 's|^\(root:.*:\)[^:]*$|\1/bin/sh|' /newroot/etc/passwd
rm -f /newroot/etc/nologin /newroot/run/nologin
mkdir -p /newroot/run/sshd
chmod 600 /newroot/run/vmpod-node/sshd/host_key /newroot/run/vmpod-node/sshd/authorized_keys
cat > /newroot/etc/inittab <<'TAB'
::respawn:/run/vmpod-node/sshd/run
::ctrlaltdel:/run/vmpod-node/busybox poweroff -f
TAB

mount --make-rshared /newroot
echo "4 4 1 7" > /newroot/proc/sys/kernel/printk
echo "vmpod-node: READY"
exec switch_root /newroot /run/vmpod-node/busybox init
