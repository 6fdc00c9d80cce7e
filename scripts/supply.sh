#!/usr/bin/env bash
# Looks at what the program is made of: licences, doubles, sources, and known holes. Called by `make supply`.
#
# The last needs the advisory database of RustSec, which is fetched from GitHub; where it cannot be had, this says so. With
# SUPPLY_STRICT=1 that is a failure.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

deny=$(bash scripts/tool.sh cargo-deny 0.20.2)
status=0
# Yanked versions are looked up in the registry's index, which is asked anyway when something is built.
"$deny" --locked check bans licenses sources || status=$?

database=$(mktemp -d)
trap 'rm -rf "$database"' EXIT
if git -c http.lowSpeedLimit=1000 -c http.lowSpeedTime=10 clone --quiet --depth 1 \
    https://github.com/RustSec/advisory-db "$database/db" 2>/dev/null; then
    "$deny" --locked check advisories || status=$?
else
    printf '*** The advisory database cannot be had here: known holes were NOT looked for.\n' >&2
    if [[ ${SUPPLY_STRICT:-} == 1 ]]; then status=1; fi
fi
exit "$status"
