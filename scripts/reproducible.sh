#!/usr/bin/env bash
# Builds the release twice, in two folders of different names, and compares the bytes. Called by `make reproducible`; takes
# two whole builds.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for folder in one another-with-a-longer-name; do
    mkdir "$work/$folder"
    git archive HEAD | tar -x -C "$work/$folder"
    (cd "$work/$folder" && unset CARGO_TARGET_DIR && bash scripts/release.sh --quiet)
done
sha256sum "$work"/*/target/release/imds-guard | sed "s|$work/||"
cmp "$work"/one/target/release/imds-guard "$work"/another-with-a-longer-name/target/release/imds-guard
echo 'reproducible: the same bytes'
