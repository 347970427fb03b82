#!/usr/bin/env bash
# Builds the wheel of this source tree, native kernels included, into the folder $1. $PYTHON: which Python (python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
"${PYTHON:-python3}" -m pip wheel --disable-pip-version-check -q --no-deps -w "$1" .
