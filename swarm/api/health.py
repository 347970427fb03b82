"""`python -m swarm_peer.swarm.api.health TARGET`: whether a coordinator or peer says that it is well, for containers.

TARGET is HOST:PORT, `unix:PATH`, or `unix:FOLDER/` for the first socket there. Exit code 0 if it serves, 1 if not.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SECONDS = 5.0


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m swarm_peer.swarm.api.health HOST:PORT|unix:PATH|unix:FOLDER/", file=sys.stderr)
        return 2
    target = arguments[0]
    if target.startswith("unix:") and target.endswith("/"):
        found = sorted(Path(target.removeprefix("unix:")).glob("*.sock"))
        if not found:
            print(f"no socket is in {target}", file=sys.stderr)
            return 1
        target = f"unix:{found[0]}"
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            print(f"{target}: {error.code().name}", file=sys.stderr)
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return int(answer.status != health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
