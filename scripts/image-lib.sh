# What the image tests have in common, for scripts/image-test.sh and scripts/image-examples.sh to source: a Debian root, an
# overlay over it, a network with the metadata service in it, systemd as PID 1. Everything that is made is in namespaces,
# cgroups and overlays of its own and gone afterwards.
# shellcheck shell=bash

readonly HERE=$PWD
readonly CACHE=${CARGO_TARGET_DIR:-$HERE/target}/image
readonly RESULTS=${IMAGE_TEST_RESULTS:-$CACHE/results}
readonly SUITE=bookworm
readonly PATIENCE=${IMAGE_TEST_SECONDS:-400}
# python3-cffi-backend by name: debootstrap does not resolve the virtual package that python3-cryptography asks for.
PACKAGES=systemd,systemd-sysv,dbus,udev,kmod,nftables,ufw,cloud-init,python3-cffi-backend,iproute2
PACKAGES+=,isc-dhcp-client,netplan.io,curl,procps,logrotate,linux-image-cloud-amd64,initramfs-tools
readonly PACKAGES

skip() {
    printf '\n*** The image test was SKIPPED: %s\n\n' "$*" >&2
    [[ -z ${IMAGE_TEST_REQUIRED:-} ]] || exit 1
    exit 0
}

need_tools() {
    local tool
    [[ $(id -u) == 0 ]] || skip 'it takes root'
    for tool in "$@"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$tool" >/dev/null || skip "$tool is not installed"
    done
    export PATH="$PATH:/usr/sbin:/sbin"
}

# The Debian root, made once. About two minutes and 600 MB.
make_root() {
    local root=$CACHE/root
    [[ -e $root/etc/debian_version ]] && return
    need_tools debootstrap
    mkdir -p "$CACHE"
    rm -rf "$root.partial"
    printf 'image-test: making a Debian root in %s (once, about two minutes)\n' "$root" >&2
    if ! timeout 900 debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$root.partial" ${MIRROR:+"$MIRROR"} \
        >"$CACHE/debootstrap.log" 2>&1; then
        tail -3 "$CACHE/debootstrap.log" >&2
        rm -rf "$root.partial"
        skip 'debootstrap failed: is a Debian mirror in reach?'
    fi
    rm -rf "$root.partial"/{debootstrap,etc/resolv.conf} "$root.partial"/var/cache/apt/archives/*.deb
    mv "$root.partial" "$root"
}

# As an image's build does it: nothing runs, dpkg alone.
install_deb() {
    local root=$1 deb=$2
    cp "$deb" "$root/tmp/imds-guard.deb"
    chroot "$root" dpkg -i /tmp/imds-guard.deb
    rm "$root/tmp/imds-guard.deb"
}

# What makes a Debian root this test's image: EC2's data source without a firmware that tells, and the tests themselves.
prepare() {
    local root=$1
    : >"$root/etc/machine-id"
    echo image-test >"$root/etc/hostname"
    rm -f "$root/etc/resolv.conf" # cloud-init would wait for the build machine's name server
    if [[ -e $root/etc/imds-guard/policy.toml ]]; then
        # A container shows the host's firmware strings, so that the cloud is named.
        sed -i 's/^cloud = "auto"/cloud = "aws"/' "$root/etc/imds-guard/policy.toml"
    fi
    cat >"$root/etc/cloud/cloud.cfg.d/90-image-test.cfg" <<CONFIG
datasource_list: [Ec2]
datasource: {Ec2: {strict_id: ${STRICT_ID:-false}, timeout: 5, max_wait: 20}}
network: {config: disabled}
locale: C.UTF-8
CONFIG
    # For the matrix in little time; an image keeps the ten seconds of the unit.
    if [[ -n ${WATCHDOG:-} ]]; then
        install -d "$root/etc/systemd/system/imds-guard.service.d"
        printf '[Service]\nWatchdogSec=%s\n' "$WATCHDOG" >"$root/etc/systemd/system/imds-guard.service.d/test.conf"
    fi
    # The network is there already, as in an image whose network comes up early.
    ln -sf /dev/null "$root/etc/systemd/system/networking.service"
    systemctl --root="$root" --quiet enable nftables.service ufw.service
    install -D -m 0644 -t "$root/opt/image-test" tests/image/{guest,probe,packages,first_boot}.py
    cat >"$root/etc/systemd/system/image-test.service" <<UNIT
[Unit]
Description=Image test
# It looks at the boot, and so waits for none of it.
DefaultDependencies=no
After=local-fs.target
[Service]
ExecStart=${IMAGE_TEST_COMMAND:-/usr/bin/python3 /opt/image-test/guest.py /results ${GUEST_OPTIONS:-}}
ExecStopPost=/bin/sh -c "journalctl -b --no-pager -o short-monotonic >/results/journal.txt"
ExecStopPost=-/bin/sh -c "test ! -b /dev/vdb || tar -C /results -cf /dev/vdb ."
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=journal+console
RuntimeMaxSec=${PATIENCE_INSIDE:-$PATIENCE}
UNIT
    ln -s /etc/systemd/system/image-test.service "$root/etc/systemd/system/sysinit.target.wants/"
}

# Two namespaces: the cloud with the metadata address, and the vm's network. Neither has a way out.
make_network() {
    local cloud=$1 vm=$2
    ip netns add "$cloud"
    ip netns add "$vm"
    ip -n "$cloud" link set lo up
    ip -n "$vm" link set lo up
    ip -n "$cloud" addr add 169.254.169.254/32 dev lo
    ip -n "$cloud" link add uplink type veth peer name eth0 netns "$vm"
    ip -n "$cloud" addr add 10.99.0.1/24 dev uplink
    ip -n "$cloud" link set uplink up
    ip -n "$vm" addr add 10.99.0.2/24 dev eth0
    ip -n "$vm" link set eth0 up
    ip -n "$vm" route add default via 10.99.0.1
}

cgroup_roots() {
    awk '$0 ~ / - cgroup2 / || $0 ~ / - cgroup .*name=systemd/ { print $5 }' /proc/self/mountinfo
}

# Where the memory controller is still version 1, and the unified hierarchy has none.
old_memory_root() { awk '$0 ~ / - cgroup / && $NF ~ /(^|,)memory(,|$)/ { print $5; exit }' /proc/self/mountinfo; }

processes_below() { find "$1" -name cgroup.procs -exec cat {} + 2>/dev/null; }

clean() {
    local status=$? root tries pid
    [[ -z ${CLOUD_PID:-} ]] || kill "$CLOUD_PID" 2>/dev/null || true
    for root in $(cgroup_roots) $(old_memory_root); do
        # What was killed leaves its cgroup a little later.
        tries=25
        while [[ -d $root/$NAME ]] && ((tries-- > 0)); do
            for pid in $(processes_below "$root/$NAME"); do
                kill -KILL "$pid" 2>/dev/null || true
            done
            find "$root/$NAME" -depth -type d -exec rmdir {} \; 2>/dev/null || true
            [[ ! -d $root/$NAME ]] || sleep 0.2
        done
    done
    for root in "$CLOUD" "$VM"; do
        ip netns del "$root" 2>/dev/null || true
    done
    # All that is below it is mounted there and nowhere else: unmounted, never removed through a mount.
    [[ -z ${WORK:-} ]] || { umount --recursive --lazy "$WORK" 2>/dev/null || true; rmdir "$WORK"; }
    exit "$status"
}

# An overlay over the Debian root in a mount namespace of its own: the cache stays as it is, and nothing stays mounted.
enter() {
    if [[ -z ${IMAGE_TEST_INSIDE:-} ]]; then
        IMAGE_TEST_INSIDE=1 exec unshare --mount --propagation slave -- "$HERE/scripts/${0##*/}" "$@"
    fi
    readonly CLOUD=imdsg-$$-imgc VM=imdsg-$$-imgv NAME=imdsg_$$_image.slice
    trap clean EXIT
    trap 'exit 130' INT TERM
    WORK=$(mktemp -d "/tmp/imdsg-$$-image.XXXX")
    mount -t tmpfs -o size=2G,mode=0700 imdsg "$WORK"
    mkdir "$WORK"/{upper,work,root}
    mount -t overlay -o "lowerdir=$CACHE/root,upperdir=$WORK/upper,workdir=$WORK/work" imdsg "$WORK/root"
}

# In a cgroup of its own, so that neither nspawn nor its payload lands in the host's root cgroup. nspawn keeps /proc/sys
# of the host read-only.
run_nspawn() {
    local root=$1 cgroups memory
    cgroups=$(cgroup_roots)
    memory=$(old_memory_root)
    for cgroup in $cgroups $memory; do mkdir -p "$cgroup/$NAME"; done
    (
        for cgroup in $cgroups; do echo "$BASHPID" >"$cgroup/$NAME/cgroup.procs"; done
        export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
        exec timeout -k 5 "$((PATIENCE + 60))" script -qec "systemd-nspawn -q -D $root --boot --network-namespace-path=/run/netns/$VM \
            --keep-unit --register=no --resolv-conf=off --machine=imdsg-$$-image --bind=$RESULTS:/results ${memory:+--bind=$memory/$NAME:/opt/memory} \
            --capability=CAP_NET_ADMIN,CAP_SYS_PTRACE,CAP_BPF,CAP_PERFMON --system-call-filter=bpf \
            --console=interactive systemd.mask=console-getty.service systemd.journald.forward_to_console=1 systemd.show_status=0 ci.ds=Ec2" /dev/null
    ) </dev/null >"$RESULTS/console.txt" 2>&1 || true
}
