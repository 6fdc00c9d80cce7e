#!/usr/bin/env bash
# Boots a Debian image that carries the guard, and breaks it in every way.
#
# usage: image-test.sh boot [--binary FILE | --deb FILE] [--only FAULT,...]
#            systemd as PID 1 by systemd-nspawn: is the guard there before anything could ask; then the matrix of failure
#            directions, mode by fault. Without --deb the files of this tree are put in place with the binary.
#        image-test.sh quick [--binary FILE]
#            the same in less than a minute, for `make test`: the watchdog's time is shorter, and both modes run side by side
#        image-test.sh qemu DEB
#            a boot with a kernel and firmware of its own (qemu, without KVM): cloud-init by its EC2 data source, and the
#            faults that tell most; several minutes
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
    install -D -m 0644 -t "$root/opt/image-test" tests/image/{guest,probe,packages}.py
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

processes_below() { find "$1" -name cgroup.procs -exec cat {} + 2>/dev/null; }

clean() {
    local status=$? root tries pid
    [[ -z ${CLOUD_PID:-} ]] || kill "$CLOUD_PID" 2>/dev/null || true
    for root in $(cgroup_roots); do
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
    while (($# > 0)); do
        case $1 in
        --binary) binary=$2 ;;
        --deb) deb=$2 ;;
        --only) GUEST_OPTIONS+=" only=$2" ;;
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

# A machine of its own: its kernel, an initial RAM disk with the disk's driver alone, and firmware that says EC2. qemu and
# its user-mode network run in the cloud's namespace, where the metadata address is and nothing else.
qemu() {
    local deb=${1:?usage: image-test.sh qemu DEB} root=$WORK/root release uuid=ec2a1b2c-1111-2222-3333-444455556666 masks= unit
    local patience=${IMAGE_TEST_SECONDS:-1200}
    rm -rf "$RESULTS"
    mkdir -p "$RESULTS" "$root/results"
    install_deb "$root" "$deb"
    next_version "$deb" "$root/results/next.deb" +next
    next_version "$deb" "$root/results/later.deb" +next2
    STRICT_ID=true
    GUEST_OPTIONS="slow=8 only=kill-9-keeper,kill-9-proxy,restart,reload upgrade=/results/next.deb,/results/later.deb"
    PATIENCE_INSIDE=$((patience - 100))
    prepare "$root"
    # Its firmware tells the cloud, and its network comes by DHCP.
    sed -i 's/^cloud = "aws"/cloud = "auto"/' "$root/etc/imds-guard/policy.toml"
    sed -i '/^network:/d' "$root/etc/cloud/cloud.cfg.d/90-image-test.cfg"
    rm -f "$root/etc/systemd/system/networking.service"
    echo '/dev/vda / ext4 defaults 0 0' >"$root/etc/fstab"
    release=$(basename "$root"/boot/vmlinuz-* | sed s/vmlinuz-//)
    cp -r "$root/etc/initramfs-tools" "$root/tmp/initrd"
    sed -i 's/^MODULES=.*/MODULES=list/' "$root/tmp/initrd/initramfs.conf"
    printf 'virtio_pci\nvirtio_blk\next4\n' >"$root/tmp/initrd/modules"
    mount -t proc proc "$root/proc"
    chroot "$root" mkinitramfs -d /tmp/initrd -o /tmp/initrd.img "$release" 2>"$RESULTS/initrd.txt" || true
    umount "$root/proc"
    mv "$root/tmp/initrd.img" "$WORK/initrd.img"
    rm -r "$root/tmp/initrd"
    cp "$root/boot/vmlinuz-$release" "$WORK/vmlinuz"
    mke2fs -q -F -t ext4 -d "$root" -L root "$CACHE/disk.img" 2G
    truncate -s 8M "$WORK/results.raw"
    make_network "$CLOUD" "$VM"
    ip netns exec "$CLOUD" python3 -I "$HERE/tests/image/cloud.py" 169.254.169.254 80 "$RESULTS/cloud.log" --v2-only >/dev/null &
    CLOUD_PID=$!
    for unit in systemd-journal-flush.service apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service \
        dpkg-db-backup.timer fstrim.timer getty@tty1.service serial-getty@ttyS0.service systemd-update-utmp.service; do
        masks+=" systemd.mask=$unit"
    done
    nice timeout -k 5 "$patience" ip netns exec "$CLOUD" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
        -m 1024 -smp 2 -machine pc,hpet=off -cpu Nehalem -accel tcg,thread=multi,tb-size=512 \
        -kernel "$WORK/vmlinuz" -initrd "$WORK/initrd.img" \
        -append "root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=-1 random.trust_cpu=on mitigations=off systemd.show_status=0 net.ifnames=0$masks" \
        -drive "file=$CACHE/disk.img,format=raw,if=virtio,snapshot=on,cache=unsafe" \
        -drive "file=$WORK/results.raw,format=raw,if=virtio,cache=unsafe" \
        -netdev user,id=n0 -device virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56,romfile= \
        -smbios 'type=0,vendor=Amazon EC2' -smbios "type=1,manufacturer=Amazon EC2,product=t3.small,serial=$uuid,uuid=$uuid" \
        -serial stdio </dev/null >"$RESULTS/console.txt" 2>&1 || true
    tar -xf "$WORK/results.raw" -C "$RESULTS" ./verdict.json ./journal.txt || true
    rm -f "$CACHE/disk.img"
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
        exec timeout -k 5 "$((PATIENCE + 60))" script -qec "systemd-nspawn -q -D $root --boot --network-namespace-path=/run/netns/$VM \
            --keep-unit --register=no --machine=imdsg-$$-image --bind=$RESULTS:/results \
            --capability=CAP_NET_ADMIN,CAP_SYS_PTRACE,CAP_BPF,CAP_PERFMON --system-call-filter=bpf \
            --console=interactive systemd.mask=console-getty.service systemd.journald.forward_to_console=1 systemd.show_status=0 ci.ds=Ec2" /dev/null
    ) </dev/null >"$RESULTS/console.txt" 2>&1 || true
}

# The same package with a higher version and another shipped policy, to upgrade to.
next_version() {
    local deb=$1 to=$2 suffix=${3:-+next} tree=$WORK/next
    dpkg-deb --raw-extract "$deb" "$tree"
    sed -i "s/^Version: .*/&$suffix/" "$tree/DEBIAN/control"
    echo '# A comment of the next version.' >>"$tree/etc/imds-guard/policy.toml"
    dpkg-deb --root-owner-group --build "$tree" "$to" >/dev/null
    rm -r "$tree"
}

packages() {
    local deb=${1:?usage: image-test.sh packages DEB [RPM]} rpm=${2:-} root=$WORK/root
    rm -rf "$RESULTS"
    mkdir -p "$RESULTS"
    [[ -z $rpm ]] || rpm_into_root "$rpm"
    cp "$deb" "$RESULTS/old.deb"
    next_version "$deb" "$RESULTS/new.deb"
    IMAGE_TEST_COMMAND='/usr/bin/python3 /opt/image-test/packages.py /results /results/old.deb /results/new.deb'
    prepare "$root"
    make_network "$CLOUD" "$VM"
    ip netns exec "$CLOUD" python3 -I "$HERE/tests/image/cloud.py" 169.254.169.254 80 "$RESULTS/cloud.log" >/dev/null &
    CLOUD_PID=$!
    run_nspawn "$root"
    python3 -I "$HERE/tests/image/verdict.py" "$RESULTS/verdict.json"
}

# Without its dependencies, since a Debian root has no database of rpm's. Its scripts run.
rpm_into_root() {
    local package=$1 root=$WORK/rpm
    command -v rpm >/dev/null || { skip_rpm; return; }
    mkdir -p "$WORK/rpm-upper" "$WORK/rpm-work" "$root"
    mount -t overlay -o "lowerdir=$CACHE/root,upperdir=$WORK/rpm-upper,workdir=$WORK/rpm-work" imdsg "$root"
    install -D -m 0644 "$package" "$root/tmp/imds-guard.rpm"
    rpm --root="$root" --dbpath=/var/lib/rpm -i --nodeps "/tmp/imds-guard.rpm" 2>/dev/null ||
        rpm --root="$root" --dbpath=/var/lib/rpm -i --nodeps "$package"
    [[ -x $root/usr/bin/imds-guard && -e $root/etc/imds-guard/policy.toml ]]
    [[ -L $root/etc/systemd/system/sysinit.target.wants/imds-guard.service ]]
    chroot "$root" id imds-guard >/dev/null
    echo '# changed' >>"$root/etc/imds-guard/policy.toml"
    rpm --root="$root" --dbpath=/var/lib/rpm -e --nodeps imds-guard
    [[ ! -e $root/usr/bin/imds-guard && -e $root/etc/imds-guard/policy.toml.rpmsave ]]
    [[ ! -L $root/etc/systemd/system/sysinit.target.wants/imds-guard.service ]]
    umount "$root"
    echo 'ok    rpm: installs, enables, makes the user; erases, and keeps a changed policy'
}

skip_rpm() { printf '\n*** rpm is not installed: the .rpm was not tried. SKIPPED.\n\n' >&2; }

usage() {
    sed -n '3,19s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

# The matrix of `make test`: each mode in a boot of its own, at the same time.
quick() {
    local mode status=0 pids=() modes=(audit enforce)
    for mode in "${modes[@]}"; do
        IMAGE_TEST_INSIDE='' IMAGE_TEST_RESULTS=$CACHE/results-$mode WATCHDOG=2s \
            GUEST_OPTIONS="modes=$mode $([[ $mode == audit ]] || echo boot=no)" \
            bash "$HERE/scripts/image-test.sh" boot "$@" >"$CACHE/quick-$mode.txt" 2>&1 &
        pids+=($!)
    done
    for mode in "${modes[@]}"; do
        wait "${pids[0]}" || status=1
        pids=("${pids[@]:1}")
        cat "$CACHE/quick-$mode.txt"
    done
    return "$status"
}

case ${1:-} in
quick)
    need_tools systemd-nspawn script ip nft unshare systemctl
    make_root
    shift
    quick "$@"
    ;;
qemu)
    need_tools qemu-system-x86_64 mke2fs ip nft unshare systemctl dpkg-deb
    make_root
    enter "$@"
    shift
    qemu "$@"
    ;;
boot)
    need_tools systemd-nspawn script ip nft unshare systemctl
    make_root
    enter "$@"
    shift
    boot "$@"
    ;;
packages)
    need_tools systemd-nspawn script ip nft unshare systemctl dpkg-deb
    make_root
    enter "$@"
    shift
    packages "$@"
    ;;
root) make_root ;;
*) usage ;;
esac
