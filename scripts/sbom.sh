#!/usr/bin/env bash
# Writes what the program is made of, as CycloneDX 1.5 in JSON, to target/packages/imds-guard.cdx.json. Called by
# `make sbom` and by scripts/packages.sh, which puts it into the packages.
#
# usage: sbom.sh [TARGET]    by default this machine's own
#
# Nothing in it changes between two runs: its time is that of the last commit (SOURCE_DATE_EPOCH), and it has no serial
# number.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly TARGET=${1:-$(rustc -vV | sed -n 's/^host: //p')}
readonly OUT=target/packages/imds-guard.cdx.json

cyclonedx=$(bash scripts/tool.sh cargo-cyclonedx 0.5.9)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# It writes beside the manifest, so it gets one of its own.
mkdir "$work/imds-guard"
cp Cargo.toml Cargo.lock "$work/imds-guard"
cp -r src benches examples "$work/imds-guard"
(cd "$work/imds-guard" && "$cyclonedx" cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps \
    --target "$TARGET" --override-filename imds-guard.cdx)
mkdir -p "${OUT%/*}"
python3 - "$work/imds-guard/imds-guard.cdx.json" "$work/imds-guard" "$OUT" <<'PYTHON'
import json, sys

made, folder, out = sys.argv[1:]
text = open(made).read().replace(f"path+file://{folder}", "pkg:cargo/imds-guard")
document = json.loads(text)
document.pop("serialNumber", None)
if folder in json.dumps(document):
    sys.exit("sbom: it names a folder of this machine")
with open(out, "w") as file:
    json.dump(document, file, indent=1, sort_keys=True)
    file.write("\n")
PYTHON
printf '%s\n' "$OUT"
