#!/usr/bin/env bash
# Removes what a killed run of the tests or the demo left behind, or looks whether anything is left.
#
# usage: clean.sh            remove it
#        clean.sh --check    remove nothing; fail and list it if anything is there
#
# Everything that a run makes carries the prefix and the run's process id in its name, so that runs that are still
# going on, and everything that is not ours, stay untouched.
set -euo pipefail

readonly PREFIX=imdsg

# Of both versions: the image test has parts of systemd's and of the memory controller's old hierarchy.
cgroup_roots() {
    awk '$0 ~ / - cgroup2? / { print $5 }' /proc/self/mountinfo
}

# What the runs made that are over: one line each, kind and name.
leftovers() {
    all | while read -r kind owner name; do
        if ! [[ -d /proc/$owner ]]; then echo "$kind $name"; fi
    done
}

# What all runs made: one line each, kind, the run's process id, name.
all() {
    local path name root
    for path in /run/netns/"$PREFIX"-*; do
        name=${path##*/}
        [[ $name =~ ^${PREFIX}-([0-9]+)- ]] && echo "namespace ${BASH_REMATCH[1]} $name"
    done
    for root in $(cgroup_roots); do
        for path in "$root/$PREFIX"_*.slice "$root/system.slice/$PREFIX"-*; do
            [[ ${path##*/} =~ ^${PREFIX}[-_]([0-9]+)[-_] ]] && [[ -d $path ]] && echo "cgroup ${BASH_REMATCH[1]} $path"
        done
    done
    for path in "${TMPDIR:-/tmp}/$PREFIX"-*; do
        [[ ${path##*/} =~ ^${PREFIX}-([0-9]+)- ]] && [[ -e $path ]] && echo "file ${BASH_REMATCH[1]} $path"
    done
    return 0
}

remove() {
    local kind=$1 name=$2 pid root
    case $kind in
    namespace)
        for pid in $(ip netns pids "$name" 2>/dev/null); do
            kill -KILL "$pid" 2>/dev/null || true
        done
        ip netns del "$name" || true
        ;;
    cgroup)
        echo 1 >"$name/cgroup.kill" 2>/dev/null || true
        # A killed process leaves its cgroup a little later.
        local tries=10
        while [[ -d $name ]] && ((tries-- > 0)); do
            find "$name" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
        done
        for root in $(cgroup_roots); do rmdir "$root/system.slice" 2>/dev/null || true; done
        ;;
    file) rm -rf --one-file-system -- "$name" ;;
    esac
}

# Root only: others can make none of these.
[[ $(id -u) == 0 ]] || exit 0

case ${1:-} in
--check)
    found=$(leftovers)
    if [[ -n $found ]]; then
        printf 'clean: left behind:\n%s\n' "$found" >&2
        exit 1
    fi
    ;;
'')
    leftovers | while read -r kind name; do
        printf 'clean: removing %s %s, whose run is over\n' "$kind" "$name" >&2
        remove "$kind" "$name"
    done
    ;;
*)
    printf 'usage: clean.sh [--check]\n' >&2
    exit 2
    ;;
esac
