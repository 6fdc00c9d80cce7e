#!/usr/bin/env bash
# Runs the examples of docs/image.md, as they stand there.
#
# usage: image-examples.sh [--required] DEB [packer] [mkosi] [cloud-init]
#            all of them, or those that are named. Packer's builder is one that takes a machine as it is, since no cloud
#            is here: its provisioners run by SSH in a Debian root. mkosi builds its image, cloud-init runs its user-data
#            in a booted one.
#        image-examples.sh schema
#            cloud-init's own judgement of its example; a second or two, for `make test`
#
# As root. What cannot be had (packer, mkosi, Debian's mirror) is skipped loudly; with --required it fails.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/image-lib.sh
source scripts/image-lib.sh
readonly PORT=2222

left_out() {
    printf '\n*** The example for %s was SKIPPED: %s\n\n' "$1" "$2" >&2
    ! $REQUIRED
}

ok() { printf 'ok    %s\n' "$*"; }

# The first block of a language below a heading of the page; a fence may say more than its language.
block() {
    awk -v heading="## $1" -v fence="\`\`\`$2" '$0 == heading { here = 1 } here && ($0 == fence || index($0, fence " ") == 1) { inside = 1; next }
        inside && $0 == "```" { exit } inside' docs/image.md
}

team_policy() { printf '[[agent]]\nname = "billing"\nunit = "billing.service"\nuser = "root"\nallow = ["config"]\n'; }

# Another overlay over the Debian root.
fresh() {
    mkdir -p "$WORK/$1".{upper,work,root}
    mount -t overlay -o "lowerdir=$CACHE/root,upperdir=$WORK/$1.upper,workdir=$WORK/$1.work" imdsg "$WORK/$1.root"
}

# What each example leaves: the package, enabled, the team's policy, and an image in which nothing is wrong.
built() {
    local what=$1 root=$2
    [[ -x $root/usr/bin/imds-guard && -L $root/etc/systemd/system/sysinit.target.wants/imds-guard.service ]]
    [[ $(stat -c %u%a "$root/etc/imds-guard/policy.d/50-team.toml") == 0644 ]]
    grep -q '^imds-guard:' "$root/etc/passwd"
    ok "$what: installed, enabled, with the team's policy"
}

packer_example() {
    local root=$WORK/packer.root work=$WORK/packer sshd status=0
    command -v packer >/dev/null || { left_out Packer 'packer is not installed'; return; }
    fresh packer
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    if ! chroot "$root" sh -ec 'apt-get update -q; DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        openssh-server sudo; mkdir -p /run/sshd /root/.ssh; ssh-keygen -q -N "" -t ed25519 -f /root/key
        mv /root/key.pub /root/.ssh/authorized_keys; chmod 700 /root/.ssh' >"$RESULTS/packer.log" 2>&1; then
        left_out Packer 'its Debian root could not be given an SSH server'
        return
    fi
    mkdir -p "$work/target/packages"
    mv "$root/root/key" "$work/key"
    cp "$DEB" "$work/target/packages/imds-guard_0.1.0-1_amd64.deb"
    team_policy >"$work/50-team.toml"
    block Packer hcl | sed 's/source\.amazon-ebs\.hardened/source.null.hardened/' >"$work/build.pkr.hcl"
    cat >"$work/source.pkr.hcl" <<SOURCE
source "null" "hardened" {
  communicator         = "ssh"
  ssh_host             = "127.0.0.1"
  ssh_port             = $PORT
  ssh_username         = "root"
  ssh_private_key_file = "key"
}
SOURCE
    mount -t proc proc "$root/proc"
    ip netns exec "$VM" chroot "$root" /usr/sbin/sshd -D -p "$PORT" &
    sshd=$!
    (
        cd "$work"
        export HOME=$work CHECKPOINT_DISABLE=1 TMPDIR=$work
        packer validate . && ip netns exec "$VM" timeout 200 packer build -color=false .
    ) >>"$RESULTS/packer.log" 2>&1 || status=$?
    kill "$sshd"
    wait "$sshd" 2>/dev/null || true
    umount "$root/proc"
    ((status == 0)) || { tail -20 "$RESULTS/packer.log" >&2; return 1; }
    grep -q 'platform: full' "$RESULTS/packer.log"
    built "Packer $(packer version | sed -n 's/^Packer v//p')" "$root"
}

mkosi_example() {
    local work=$WORK/mkosi cgroup
    command -v mkosi >/dev/null || { left_out mkosi 'mkosi is not installed'; return; }
    mkdir -p "$work"/mkosi.extra/{opt,etc/imds-guard/policy.d}
    cp "$DEB" "$work/mkosi.extra/opt/imds-guard.deb"
    team_policy >"$work/mkosi.extra/etc/imds-guard/policy.d/50-team.toml"
    block mkosi ini >"$work/mkosi.conf"
    block mkosi sh >"$work/mkosi.postinst"
    chmod 0755 "$work/mkosi.postinst"
    for cgroup in $(cgroup_roots); do mkdir -p "$cgroup/$NAME"; done
    if ! (
        for cgroup in $(cgroup_roots); do echo "$BASHPID" >"$cgroup/$NAME/cgroup.procs"; done
        cd "$work"
        timeout 550 mkosi --nspawn-keep-unit --workspace-dir "$work" build
    ) >"$RESULTS/mkosi.log" 2>&1; then
        # A mirror that is not there is no fault of the example's.
        grep -q 'Base system installed successfully' "$RESULTS/mkosi.log" || { left_out mkosi 'no Debian mirror'; return; }
        tail -20 "$RESULTS/mkosi.log" >&2
        return 1
    fi
    grep -q 'platform: full' "$RESULTS/mkosi.log"
    built "$(mkosi --version)" "$work/image"
}

cloud_init_example() {
    local root=$WORK/root
    cp "$DEB" "$root/opt/imds-guard.deb"
    block cloud-init yaml >"$RESULTS/user-data"
    schema "$root"
    IMAGE_TEST_COMMAND='/usr/bin/python3 /opt/image-test/first_boot.py /results'
    prepare "$root"
    ip netns exec "$CLOUD" python3 -I tests/image/cloud.py 169.254.169.254 80 "$RESULTS/cloud.log" --user-data "$RESULTS/user-data" >/dev/null &
    CLOUD_PID=$!
    run_nspawn "$root"
    python3 -I tests/image/verdict.py "$RESULTS/verdict.json"
}

schema() {
    local root=$1
    block cloud-init yaml >"$root/tmp/user-data.yaml"
    [[ $(head -1 "$root/tmp/user-data.yaml") == '#cloud-config' ]]
    chroot "$root" cloud-init schema --config-file /tmp/user-data.yaml >"$root/tmp/schema.txt" 2>&1 ||
        { cat "$root/tmp/schema.txt" >&2; return 1; }
    grep -q '^Valid' "$root/tmp/schema.txt" || { cat "$root/tmp/schema.txt" >&2; return 1; }
    ok "cloud-init: $(cat "$root/tmp/schema.txt")"
}

usage() {
    sed -n '4,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

REQUIRED=false
[[ ${1:-} != --required ]] || { REQUIRED=true; shift; }
[[ $# -gt 0 ]] || usage
need_tools ip unshare chroot mount systemctl
make_root
if [[ $1 != schema ]]; then
    need_tools systemd-nspawn script
    DEB=$(realpath "$1")
    [[ -f $DEB ]] || usage
fi
$REQUIRED && enter --required "$@" || enter "$@"
mkdir -p "$RESULTS"
if [[ $1 == schema ]]; then
    schema "$WORK/root"
    exit
fi
shift
rm -rf "$RESULTS"
mkdir -p "$RESULTS"
make_network "$CLOUD" "$VM"
for example in "${@:-packer mkosi cloud-init}"; do
    for one in $example; do
        case $one in
        packer) packer_example ;;
        mkosi) mkosi_example ;;
        cloud-init) cloud_init_example ;;
        *) usage ;;
        esac
    done
done
