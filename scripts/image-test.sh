#!/usr/bin/env bash
# Boots a Debian image that carries the guard, and breaks it in every way.
#
# usage: image-test.sh boot [--binary FILE | --deb FILE] [--only FAULT,...]
#            systemd as PID 1 by systemd-nspawn: is the guard there before anything could ask; then the matrix of failure
#            directions, mode by fault. Without --deb the files of this tree are put in place with the binary.
#        image-test.sh packages DEB [RPM]
#            install, upgrade, remove and purge in a clean Debian root; the .rpm into a root by rpm
#        image-test.sh root
#            only make the Debian root (once; kept below target/image)
#
# As root. Prints one line for each check; the verdict, for machines, is in target/image/results/. Everything that is
# made is in namespaces, cgroups and overlays of its own and gone afterwards. Without debootstrap, systemd-nspawn or
# Debian's mirror it says so loudly and passes, unless IMAGE_TEST_REQUIRED is set.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly HERE=$PWD
readonly CACHE=${CARGO_TARGET_DIR:-$HERE/target}/image
readonly RESULTS=$CACHE/results
readonly SUITE=bookworm
# python3-cffi-backend by name: debootstrap does not resolve the virtual package that python3-cryptography asks for.
readonly PACKAGES=systemd,systemd-sysv,dbus,udev,kmod,nftables,ufw,cloud-init,python3-cffi-backend,iproute2,isc-dhcp-client,netplan.io,curl,procps,logrotate,linux-image-cloud-amd64,initramfs-tools

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

# What the package would install, from this tree; for a test while the packages are not built.
install_tree() {
    local root=$1 binary=$2
    install -D -m 0755 "$binary" "$root/usr/bin/imds-guard"
    install -D -m 0644 policy.toml "$root/etc/imds-guard/policy.toml"
    install -d "$root/etc/imds-guard/policy.d"
    install -D -m 0644 systemd/imds-guard.service "$root/usr/lib/systemd/system/imds-guard.service"
    install -D -m 0644 systemd/imds-guard.sysusers.conf "$root/usr/lib/sysusers.d/imds-guard.conf"
    install -D -m 0644 systemd/imds-guard.tmpfiles.conf "$root/usr/lib/tmpfiles.d/imds-guard.conf"
    install -D -m 0755 systemd/remember-direction "$root/usr/lib/imds-guard/remember-direction"
    systemctl --root="$root" --quiet enable imds-guard.service
    chroot "$root" systemd-sysusers imds-guard.conf
}

# What makes a Debian root this test's image: EC2's data source without a firmware that tells, and the tests themselves.
prepare() {
    local root=$1
    : >"$root/etc/machine-id"
    echo image-test >"$root/etc/hostname"
    # The clouds' own files are pinned, since a container shows the host's firmware strings.
    sed -i 's/^cloud = "auto"/cloud = "aws"/' "$root/etc/imds-guard/policy.toml"
    cat >"$root/etc/cloud/cloud.cfg.d/90-image-test.cfg" <<'CONFIG'
datasource_list: [Ec2]
datasource: {Ec2: {strict_id: false, timeout: 5, max_wait: 20}}
network: {config: disabled}
locale: C.UTF-8
CONFIG
    # The network is there already, as in an image whose network comes up early.
    ln -sf /dev/null "$root/etc/systemd/system/networking.service"
    systemctl --root="$root" --quiet enable nftables.service ufw.service
    install -D -m 0644 -t "$root/opt/image-test" tests/image/guest.py tests/image/probe.py
    cat >"$root/etc/systemd/system/image-test.service" <<UNIT
[Unit]
Description=Image test
After=multi-user.target cloud-init.target
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /opt/image-test/guest.py /results ${ONLY:-}
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=journal+console
TimeoutStartSec=600
UNIT
    ln -s /etc/systemd/system/image-test.service "$root/etc/systemd/system/multi-user.target.wants/"
    # In an own target, so that it waits for all others.
    sed -i 's/^After=multi-user.target /After=/' "$root/etc/systemd/system/image-test.service"
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

clean() {
    local status=$? root tries
    [[ -z ${CLOUD_PID:-} ]] || kill "$CLOUD_PID" 2>/dev/null || true
    for root in $(cgroup_roots); do
        [[ -d $root/$NAME ]] || continue
        echo 1 2>/dev/null >"$root/$NAME/cgroup.kill" || true
        for tries in 1 2 3 4 5; do
            find "$root/$NAME" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.2
        done
    done
    for root in "$CLOUD" "$VM"; do
        ip netns del "$root" 2>/dev/null || true
    done
    [[ -z ${WORK:-} ]] || { umount "$WORK/root" "$WORK" 2>/dev/null || true; rm -rf "$WORK"; }
    exit "$status"
}

# An overlay over the Debian root in a mount namespace of its own: the cache stays as it is, and nothing stays mounted.
enter() {
    if [[ -z ${IMAGE_TEST_INSIDE:-} ]]; then
        IMAGE_TEST_INSIDE=1 exec unshare --mount --propagation slave -- "$HERE/scripts/image-test.sh" "$@"
    fi
    readonly CLOUD=imdsg-$$-imgc VM=imdsg-$$-imgv NAME=imdsg_$$_image.slice
    trap clean EXIT
    trap 'exit 130' INT TERM
    WORK=$(mktemp -d "/tmp/imdsg-$$-image.XXXX")
    mount -t tmpfs -o size=2G,mode=0700 imdsg "$WORK"
    mkdir "$WORK"/{upper,work,root}
    mount -t overlay -o "lowerdir=$CACHE/root,upperdir=$WORK/upper,workdir=$WORK/work" imdsg "$WORK/root"
}

boot() {
    local binary=${CARGO_TARGET_DIR:-target}/debug/imds-guard deb=
    ONLY=
    while (($# > 0)); do
        case $1 in
        --binary) binary=$2 ;;
        --deb) deb=$2 ;;
        --only) ONLY=$2 ;;
        *) usage ;;
        esac
        shift 2
    done
    local root=$WORK/root
    if [[ -n $deb ]]; then
        install_deb "$root" "$deb"
    else
        install_tree "$root" "$binary"
    fi
    prepare "$root"
    rm -rf "$RESULTS"
    mkdir -p "$RESULTS"
    make_network "$CLOUD" "$VM"
    ip netns exec "$CLOUD" python3 -I "$HERE/tests/image/cloud.py" 169.254.169.254 80 "$RESULTS/cloud.log" >/dev/null &
    CLOUD_PID=$!
    run_nspawn "$root"
    python3 -I "$HERE/tests/image/verdict.py" "$RESULTS/verdict.json"
}

# In a cgroup of its own, so that neither nspawn nor its payload lands in the host's root cgroup. nspawn keeps /proc/sys
# of the host read-only.
run_nspawn() {
    local root=$1 cgroups
    cgroups=$(cgroup_roots)
    for cgroup in $cgroups; do mkdir -p "$cgroup/$NAME"; done
    (
        for cgroup in $cgroups; do echo "$BASHPID" >"$cgroup/$NAME/cgroup.procs"; done
        export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
        exec timeout -k 5 600 script -qec "systemd-nspawn -q -D $root --boot --network-namespace-path=/run/netns/$VM \
            --keep-unit --register=no --machine=imdsg-image --bind=$RESULTS:/results \
            --capability=CAP_NET_ADMIN,CAP_SYS_PTRACE,CAP_BPF,CAP_PERFMON --system-call-filter=bpf \
            --console=interactive systemd.mask=console-getty.service ci.ds=Ec2" /dev/null
    ) </dev/null >"$RESULTS/console.txt" 2>&1 || true
}

usage() {
    sed -n '3,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

case ${1:-} in
boot)
    need_tools systemd-nspawn script ip nft unshare systemctl
    make_root
    enter "$@"
    shift
    boot "$@"
    ;;
root) make_root ;;
*) usage ;;
esac
