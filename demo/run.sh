#!/usr/bin/env bash
# `make demo`: installs what is missing, builds, and runs the demonstration (examples/demo) as root.
#
# Whatever happens, namespaces, cgroups and processes of the demonstration are gone afterwards.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- env "PATH=$PATH" "$@"
    else
        printf 'demo: network namespaces take root, and sudo is not here either\n' >&2
        return 1
    fi
}

bash scripts/needs.sh demo
export PATH="$PATH:/usr/sbin:/sbin"

printf 'demo: building (the first time takes a few minutes)\n' >&2
cargo build --release --quiet --bin imds-guard --example demo
binary=${CARGO_TARGET_DIR:-target}/release/examples/demo

# The program removes what it made, also when it fails; this is for Ctrl-C and kill -9.
trap 'as_root bash scripts/clean.sh' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

as_root "$binary"
