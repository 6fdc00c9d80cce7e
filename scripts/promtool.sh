#!/usr/bin/env bash
# Prints where Prometheus's promtool is: on this machine, or unpacked below target/ from the distribution's package, which
# is not installed (it would start a server).
#
# Exit 1, with the reason on stderr, where it can't be had; the tests that need it then say that they were skipped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly HOME_OF_TOOL=${CARGO_TARGET_DIR:-$root/target}/promtool
readonly TOOL=$HOME_OF_TOOL/usr/bin/promtool

if command -v promtool; then
    exit 0
fi
mkdir -p "$HOME_OF_TOOL"
# Tests run side by side; one of them unpacks and the others wait.
exec 9>"$HOME_OF_TOOL/.lock"
flock 9
if [[ ! -x $TOOL ]]; then
    failed=$HOME_OF_TOOL/.failed
    if [[ -e $failed ]] && (($(date +%s) - $(stat -c %Y "$failed") < 600)); then
        cat "$failed" >&2
        exit 1
    fi
    unpack() {
        command -v apt-get >/dev/null || { echo 'there is no apt-get to get it with'; return 1; }
        cd "$HOME_OF_TOOL"
        timeout 120 apt-get download -q prometheus
        dpkg-deb --extract prometheus_*.deb .
        rm -f prometheus_*.deb
    }
    if ! (unpack) >"$HOME_OF_TOOL/log" 2>&1 || [[ ! -x $TOOL ]]; then
        tail -n 5 "$HOME_OF_TOOL/log" | tee "$failed" >&2
        exit 1
    fi
    rm -f "$failed"
fi
printf '%s\n' "$TOOL"
