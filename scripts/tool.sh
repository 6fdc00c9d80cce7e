#!/usr/bin/env bash
# Installs a tool of cargo's below target/tools, if that version of it is not there, and prints where its program is.
#
# usage: tool.sh NAME VERSION
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly NAME=${1:?usage: tool.sh NAME VERSION} VERSION=${2:?usage: tool.sh NAME VERSION}
readonly TOOLS=$PWD/target/tools

if ! grep -qF "\"$NAME $VERSION " "$TOOLS/.crates.toml" 2>/dev/null; then
    printf 'tool: installing %s %s into target/tools (once, a few minutes)\n' "$NAME" "$VERSION" >&2
    # A tool's own optimisation costs minutes and buys nothing here.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
        cargo install --locked --quiet --root "$TOOLS" "$NAME@$VERSION" >&2
fi
printf '%s\n' "$TOOLS/bin/$NAME"
