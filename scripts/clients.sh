#!/usr/bin/env bash
# Installs the clouds' own Python clients below target/, once, and prints the interpreter that has them.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/venv.sh" clients boto3 google-auth requests azure-identity
