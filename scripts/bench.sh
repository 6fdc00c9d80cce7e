#!/usr/bin/env bash
# Load side by side: direct, nginx, HAProxy, imds-guard. Called by `make bench`; arguments go to benches/load/run.py.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/needs.sh bench
cargo build --release --quiet
exec python3 benches/load/run.py --binary "${CARGO_TARGET_DIR:-target}/release/imds-guard" "$@"
