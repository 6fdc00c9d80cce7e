#!/usr/bin/env bash
# The guard's figures, side by side with nginx and HAProxy where those can do the same. Called by `make bench`, which puts
# the tables into docs/performance.md; arguments go to benches/load/run.py.
#
# usage: bench.sh [--quick] [--only requests,polls,...] [--docs docs/performance.md] ...
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly TARGET=${CARGO_TARGET_DIR:-target}

bash scripts/needs.sh bench
bash scripts/release.sh --quiet --example audit_events
exec python3 benches/load/run.py --binary "$TARGET/release/imds-guard" --events "$TARGET/release/examples/audit_events" "$@"
