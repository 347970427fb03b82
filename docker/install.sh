#!/usr/bin/env bash
# Installs the wheel in the folder $2 into a new virtual environment at $1, with the tested versions of what it needs.
# $TORCH_INDEX: where torch comes from, besides the usual index; the default is its builds for CPUs.
set -euo pipefail
prefix=$1 wheels=$2
here=$(dirname "${BASH_SOURCE[0]}")
"${PYTHON:-python3}" -m venv "$prefix"
pip() { "$prefix/bin/python" -m pip install --disable-pip-version-check --no-cache-dir -q -c "$here/../constraints.txt" "$@"; }
index=()
[ -z "${TORCH_INDEX-}" ] || index=(--extra-index-url "$TORCH_INDEX")
pip "${index[@]}" "$(grep -E '^torch==' "$here/../constraints.txt")"
pip "$wheels"/swarm_peer-*.whl
