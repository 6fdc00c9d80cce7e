#!/usr/bin/env bash
# Builds the .deb and the .rpm into target/packages. Called by `make packages`.
#
# usage: packages.sh [--static] [--packed]
#            --static  link the program statically, to musl (Rust's target x86_64-unknown-linux-musl): it then runs on any
#                      Linux of that architecture, whatever its C library
#            --packed  pack the release binary that is there, instead of building it
#
# cargo-deb and cargo-generate-rpm are installed below target/tools when they are missing, which takes a few minutes
# once. Man pages and completions come from the program's own definitions.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly TARGET=${CARGO_TARGET_DIR:-$PWD/target}
readonly OUT=$PWD/target/packages
readonly TOOLS=$PWD/target/tools
readonly MUSL=x86_64-unknown-linux-musl

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
    local binary=$1
    rm -rf "$OUT"
    mkdir -p "$OUT/man" "$OUT/completions"
    "$binary" man "$OUT/man"
    "$binary" completions bash >"$OUT/completions/imds-guard.bash"
    "$binary" completions zsh >"$OUT/completions/_imds-guard"
    "$binary" completions fish >"$OUT/completions/imds-guard.fish"
    [[ -s $OUT/man/imds-guard.1 ]] || { say 'the program wrote no man page'; return 1; }
}

main() {
    local build=true target=() binary=$TARGET/release/imds-guard
    while (($# > 0)); do
        case $1 in
        --static)
            target=(--target "$MUSL")
            binary=$TARGET/$MUSL/release/imds-guard
            # ring has parts in C and assembler.
            command -v musl-gcc >/dev/null || { say 'musl-gcc is missing: install musl-tools'; exit 1; }
            ;;
        --packed) build=false ;;
        *)
            sed -n '4,7s/^# \{0,1\}//p' "$0" >&2
            exit 2
            ;;
        esac
        shift
    done
    if $build; then
        bash scripts/release.sh "${target[@]}"
    elif [[ ! -x $binary ]]; then
        say "there is no $binary"
        exit 1
    fi
    tool cargo-deb 3.8.0
    tool cargo-generate-rpm 0.21.1
    generate "$binary"
    bash scripts/sbom.sh "${target[1]:-}" >/dev/null
    export PATH="$TOOLS/bin:$PATH"
    cargo deb --quiet --no-build --no-strip "${target[@]}" --output "$OUT/"
    cargo generate-rpm --target-dir "$TARGET" "${target[@]}" --output "$OUT/"
    ls -l "$OUT"/*.deb "$OUT"/*.rpm
}

main "$@"
