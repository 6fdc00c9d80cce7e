#!/usr/bin/env bash
# Every test: unit, property, snapshot, documentation, and (as root) end to end. Called by `make test`.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

loud() {
    local line
    printf '\n' >&2
    for line in "$@"; do printf '*** %s\n' "$line" >&2; done
    printf '\n' >&2
}

is_root=false
has_clients=true
if [[ $(id -u) == 0 ]]; then
    is_root=true
    export PATH="$PATH:/usr/sbin:/sbin"
    bash scripts/needs.sh test
    bash scripts/clean.sh
    # The first namespace of all makes /run/netns a mount of its own; tests that start together would race for that.
    ip netns add "imdsg-$$-first" && ip netns del "imdsg-$$-first"
    if ! bash scripts/clients.sh >/dev/null; then
        has_clients=false
        loud 'boto3, google-auth and azure-identity could not be installed from PyPI: their tests are SKIPPED.'
    fi
fi

# Without root, too. The tests that need them pass without a word where they cannot be had.
for tool in promtool sigma collector; do
    if ! bash "scripts/$tool.sh" >/dev/null; then
        loud "scripts/$tool.sh found no $tool: the tests that need it are SKIPPED."
    fi
done

status=0
cargo test --doc --quiet || status=$?
if cargo nextest --version >/dev/null 2>&1; then
    arguments=(--config-file scripts/nextest.toml)
    if $is_root; then arguments+=(--run-ignored all); fi
    if ! $has_clients; then arguments+=(-E 'not test(/^clients::/)'); fi
    cargo nextest run "${arguments[@]}" "$@" || status=$?
else
    arguments=()
    if $is_root; then arguments+=(--include-ignored); fi
    if ! $has_clients; then arguments+=(--skip clients::); fi
    cargo test --no-fail-fast --lib --bins --tests "$@" -- "${arguments[@]}" || status=$?
fi

if $is_root; then
    # systemd as PID 1 with the unit: what happens in each mode when the guard is killed, hangs, is gone or broken.
    bash scripts/image-test.sh quick || status=1
    bash scripts/image-examples.sh schema || status=1
    if ! bash scripts/clean.sh --check; then
        status=1
        bash scripts/clean.sh
    fi
else
    loud 'Not root: the end-to-end tests were SKIPPED. They are most of what matters.' \
        "Run them with: sudo env \"PATH=\$PATH\" make test"
fi
exit "$status"
