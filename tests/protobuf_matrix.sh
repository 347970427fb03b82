#!/usr/bin/env bash
# Proves that the code in protos/, as it is checked in, works on every protobuf runtime that pyproject.toml allows.
# Each runtime gets a throwaway virtual environment with nothing else in it; protobuf_round_trip.py loads the files by their
# paths, so that neither the package nor torch is imported. $PYTHON (default: python3) makes the environments; arguments
# replace the list of releases.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

releases=("5.29.*" "6.*" "7.*")
[ "$#" -eq 0 ] || releases=("$@")

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

for release in "${releases[@]}"; do
    environment="$folder/${release//[^0-9]/-}"
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --disable-pip-version-check -q "protobuf==$release"
    # The one warning that protobuf documents: code generated one major version before the runtime's still works.
    "$environment/bin/python" -W error -W "ignore:Protobuf gencode version:UserWarning" tests/protobuf_round_trip.py
done
