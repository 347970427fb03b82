"""Whether this machine lets a test have network namespaces of its own."""

import os
import sys

import pytest
from swarm_peer.errors import EmulationError
from swarm_peer.simulations.namespace import enter_namespace
from swarm_peer.simulations.nat import Nat


def _may(nat: Nat | None = None) -> bool:
    pid = os.fork()
    if not pid:
        try:
            enter_namespace("11.77.9.9", 1500, nat=nat)
        except EmulationError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


needs_namespaces = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not _may(), reason="no network namespaces here"
)

needs_iptables = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not _may("cone"), reason="no routers by iptables here"
)
