#!/usr/bin/env bash
# Builds the .deb and the .rpm into target/packages. Called by `make packages`.
#
# usage: packages.sh            build the release binary, then pack it
#        packages.sh --packed   pack the release binary that is there
#
# cargo-deb and cargo-generate-rpm are installed below target/tools when they are missing, which takes a few minutes
# once. Man pages and completions come from the program's own definitions.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly TARGET=${CARGO_TARGET_DIR:-$PWD/target}
readonly OUT=$PWD/target/packages
readonly TOOLS=$PWD/target/tools
readonly BINARY=$TARGET/release/imds-guard

say() { printf 'packages: %s\n' "$*" >&2; }

tool() {
    local name=$1 version=$2
    [[ -x $TOOLS/bin/$name ]] && return
    say "installing $name $version into target/tools (once, a few minutes)"
    # Their own link-time optimisation costs minutes and buys nothing here.
    CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install --locked --quiet --root "$TOOLS" "$name@$version"
}

generate() {
    rm -rf "$OUT"
    mkdir -p "$OUT/man" "$OUT/completions"
    "$BINARY" man "$OUT/man"
    "$BINARY" completions bash >"$OUT/completions/imds-guard.bash"
    "$BINARY" completions zsh >"$OUT/completions/_imds-guard"
    "$BINARY" completions fish >"$OUT/completions/imds-guard.fish"
    [[ -s $OUT/man/imds-guard.1 ]] || { say 'the program wrote no man page'; return 1; }
}

case ${1:-} in
'') cargo build --release --bin imds-guard ;;
--packed) [[ -x $BINARY ]] || { say "there is no $BINARY"; exit 1; } ;;
*)
    sed -n '4,5s/^# //p' "$0" >&2
    exit 2
    ;;
esac

tool cargo-deb 3.8.0
tool cargo-generate-rpm 0.21.1
generate
export PATH="$TOOLS/bin:$PATH"
cargo deb --quiet --no-build --no-strip --output "$OUT/"
cargo generate-rpm --target-dir "$TARGET" --output "$OUT/"
ls -l "$OUT"/*.deb "$OUT"/*.rpm
