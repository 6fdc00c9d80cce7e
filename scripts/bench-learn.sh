#!/usr/bin/env bash
# How fast `imds-guard learn` reads ten million events, and in how much memory. Called by `make bench-learn`; arguments go to
# benches/learn/run.py.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --release --quiet --bin imds-guard
exec python3 benches/learn/run.py --binary "${CARGO_TARGET_DIR:-target}/release/imds-guard" "$@"
