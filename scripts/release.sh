#!/usr/bin/env bash
# Builds the program as it is released: no path of the machine that built it gets into it, so that two builds of one commit
# with one compiler are the same bytes. `make reproducible` proves it. Arguments go to cargo build.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

home=${CARGO_HOME:-$HOME/.cargo}
sysroot=$(rustc --print sysroot)
export RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$PWD=/imds-guard --remap-path-prefix=$home=/cargo \
--remap-path-prefix=$sysroot=/rust"
# ring's C code is compiled here, too: __FILE__ is among what it says when it fails.
export CFLAGS="${CFLAGS:-} -ffile-prefix-map=$PWD=/imds-guard -ffile-prefix-map=$home=/cargo"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
exec cargo build --release --locked --bin imds-guard "$@"
