#!/usr/bin/env bash
# Installs pySigma and two of its backends below target/, once, and prints the interpreter that has them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/venv.sh" sigma pysigma pysigma-backend-elasticsearch pysigma-backend-kusto
