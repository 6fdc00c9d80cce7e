#!/usr/bin/env bash
# What the guard does under fire. Called by `make soak`; arguments go to tests/soak/run.py.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/needs.sh bench
cargo build --release --quiet
exec python3 tests/soak/run.py --binary "${CARGO_TARGET_DIR:-target}/release/imds-guard" "$@"
