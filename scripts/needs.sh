#!/usr/bin/env bash
# Installs what the demo or the tests need and this machine lacks, by the system's own package manager, and says so.
#
# usage: needs.sh demo|test|bench|image
#
# Installing takes root; without it, sudo is asked. Nothing is installed that is there already.
set -euo pipefail

say() { printf '%s\n' "needs: $*" >&2; }

# What to look for, and what to install for it: on Debian and its kin, and on Fedora and its kin (commas between).
wanted_for() {
    cat <<'LIST'
nft     nftables      nftables
ip      iproute2      iproute
curl    curl          curl
setpriv util-linux    util-linux
awk     mawk          gawk
cc      gcc,libc6-dev gcc
LIST
    if [[ $1 == test ]]; then
        cat <<'LIST'
/usr/bin/python3 python3      python3
venv             python3-venv python3-pip
systemd-analyze  systemd      systemd
iptables-restore iptables     iptables-nft
chromium         chromium     chromium
LIST
    fi
    if [[ $1 == test || $1 == image ]]; then
        cat <<'LIST'
debootstrap      debootstrap       debootstrap
systemd-nspawn   systemd-container systemd-container
script           bsdutils          util-linux-script
LIST
    fi
    if [[ $1 == image ]]; then
        cat <<'LIST'
qemu-system-x86_64 qemu-system-x86 qemu-system-x86-core
mke2fs             e2fsprogs       e2fsprogs
LIST
    fi
    if [[ $1 == bench ]]; then
        cat <<'LIST'
/usr/bin/python3 python3   python3
wrk              wrk       wrk
nginx            nginx     nginx
haproxy          haproxy   haproxy
conntrack        conntrack conntrack-tools
sysctl           procps    procps-ng
LIST
    fi
}

has() {
    case $1 in
    /*) [[ -x $1 ]] ;;
    venv) /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    # Debian keeps administrators' programs out of a user's PATH.
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
    esac
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        say "root is needed for: $*"
        return 1
    fi
}

main() {
    local what=${1:?usage: needs.sh demo|test|bench|image} missing=() thing debian fedora
    local -A debian_of=() fedora_of=()
    while read -r thing debian fedora; do
        if ! has "$thing"; then
            missing+=("$thing")
            debian_of[$thing]=$debian
            fedora_of[$thing]=$fedora
        fi
    done < <(wanted_for "$what")
    if ((${#missing[@]} == 0)); then
        return 0
    fi
    local -a packages
    if command -v apt-get >/dev/null; then
        for thing in "${missing[@]}"; do packages+=("${debian_of[$thing]}"); done
        IFS=', ' read -ra packages <<<"${packages[*]}"
        say "installing with apt-get: ${packages[*]}"
        as_root apt-get update -q
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
    elif command -v dnf >/dev/null; then
        for thing in "${missing[@]}"; do packages+=("${fedora_of[$thing]}"); done
        IFS=', ' read -ra packages <<<"${packages[*]}"
        say "installing with dnf: ${packages[*]}"
        as_root dnf install -y "${packages[@]}"
    else
        say "please install what provides: ${missing[*]} (neither apt-get nor dnf is here)"
        return 1
    fi
    for thing in "${missing[@]}"; do
        if ! has "$thing"; then
            say "$thing is still missing"
            return 1
        fi
    done
}

main "$@"
