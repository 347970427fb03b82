#!/usr/bin/env bash
# Leads the run of the manifest $1, and leaves for peers how to join it in $SWARM_SHARED/join: its id and addresses.
# $SWARM_ANNOUNCE: the addresses to tell them (such as /dns4/coordinator/tcp/4001); other arguments go to the coordinator.
set -euo pipefail
manifest=$1
shift
announce=()
[ -z "${SWARM_ANNOUNCE-}" ] || announce=(--announce "$SWARM_ANNOUNCE")
mkdir -p "$SWARM_SHARED"
rm -f "$SWARM_SHARED/join"
swarm-coordinator start "$manifest" --listen "${SWARM_LISTEN:-/ip4/0.0.0.0/tcp/4001}" "${announce[@]}" \
  --http "${SWARM_HTTP:-0.0.0.0:8080}" --api "${SWARM_API:-127.0.0.1:50051}" --json "$@" |
  python3 -c '
import json, os, sys
path = os.path.join(os.environ["SWARM_SHARED"], "join")
for line in sys.stdin:
    event = json.loads(line)
    if event["event"] not in ("visited", "pulse", "settled"):
        print(line, end="", flush=True)
    if event["event"] == "listening":
        with open(path + ".new", "w") as file:
            print("--run", event["run_id"], "--initial-peers", *event["addresses"], file=file)
        os.replace(path + ".new", path)
'
