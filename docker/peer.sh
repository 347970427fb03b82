#!/usr/bin/env bash
# Waits until a coordinator has left in $SWARM_SHARED/join how to join its run, and joins it; arguments go to the peer.
set -euo pipefail
until [ -s "$SWARM_SHARED/join" ]; do sleep 1; done
read -r -a where <"$SWARM_SHARED/join"
exec swarm-peer join "${where[@]}" --listen "${SWARM_LISTEN:-/ip4/0.0.0.0/tcp/4001}" "$@"
