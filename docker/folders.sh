#!/usr/bin/env bash
# Makes the folders below $1 that a container's volumes are for, its user's own.
set -euo pipefail
for folder in data shared; do
  mkdir -p "$1/$folder"
  [ "$(id -u)" != 0 ] || chown 10001:10001 "$1/$folder"
done
