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
# shellcheck source=scripts/image-lib.sh
source scripts/image-lib.sh

# What the package would install, from this tree; for a test while the packages are not built.
install_tree() {
    local root=$1 binary=$2
    install -D -m 0755 "$binary" "$root/usr/bin/imds-guard"
    install -D -m 0644 policy.toml "$root/etc/imds-guard/policy.toml"
    install -d "$root/etc/imds-guard/policy.d"
    install -D -m 0644 systemd/imds-guard.service "$root/usr/lib/systemd/system/imds-guard.service"
    install -D -m 0644 systemd/imds-guard.sysusers.conf "$root/usr/lib/sysusers.d/imds-guard.conf"
    install -D -m 0644 systemd/imds-guard.tmpfiles.conf "$root/usr/lib/tmpfiles.d/imds-guard.conf"
    install -D -m 0644 systemd/imds-guard.logrotate "$root/etc/logrotate.d/imds-guard"
    install -D -m 0755 systemd/remember-direction "$root/usr/lib/imds-guard/remember-direction"
    systemctl --root="$root" --quiet enable imds-guard.service
    chroot "$root" systemd-sysusers imds-guard.conf
    install -d -m 0750 "$root/var/log/imds-guard"
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
    GUEST_OPTIONS="slow=8 only=kill-9-keeper,kill-9-proxy,oom-kills-proxy,oom-kills-all,restart,reload upgrade=/results/next.deb,/results/later.deb"
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
