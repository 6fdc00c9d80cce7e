#!/usr/bin/env bash
# Installs Python packages into a virtual environment below target/, once, and prints its interpreter.
#
# usage: venv.sh NAME PACKAGE...
#
# Exit 1, with the reason on stderr, where they can't be had; the tests that need them then say that they were skipped.
set -euo pipefail

readonly NAME=${1:?usage: venv.sh NAME PACKAGE...}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ENVIRONMENT=${CARGO_TARGET_DIR:-$root/target}/$NAME
readonly DONE=$ENVIRONMENT/.installed

mkdir -p "$ENVIRONMENT"
# Tests run side by side; one of them installs and the others wait.
exec 9>"$ENVIRONMENT/.lock"
flock 9

if [[ ! -e $DONE ]] || [[ $(cat "$DONE") != "$*" ]]; then
    # The reason of an earlier failure counts for this run: several tests must not wait for the same dead network.
    failed=$ENVIRONMENT/.failed
    if [[ -e $failed ]] && (($(date +%s) - $(stat -c %Y "$failed") < 600)); then
        cat "$failed" >&2
        exit 1
    fi
    install() {
        # A user's own Python may lie where the callers of the tests can't go.
        /usr/bin/python3 -m venv --clear "$ENVIRONMENT/venv" &&
            timeout 300 "$ENVIRONMENT/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    }
    if ! install "$@" >"$ENVIRONMENT/log" 2>&1; then
        tail -n 20 "$ENVIRONMENT/log" | tee "$failed" >&2
        exit 1
    fi
    rm -f "$failed"
    printf '%s' "$*" >"$DONE"
fi
printf '%s\n' "$ENVIRONMENT/venv/bin/python"
