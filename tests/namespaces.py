"""Whether this machine lets a test have network namespaces of its own."""

import os
import sys

import pytest
from swarm_peer.errors import EmulationError
from swarm_peer.simulations.namespace import enter_namespace
from swarm_peer.simulations.nat import Nat


def _may(tcp: str, nat: Nat | None = None) -> bool:
    pid = os.fork()
    if not pid:
        try:
            enter_namespace("11.77.9.9", 1500, tcp, nat)
        except EmulationError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


TCP = next((tcp for tcp in ("cubic", "reno") if sys.platform.startswith("linux") and _may(tcp)), "")
"""How connections in a namespace may find their rate here: as Linux' do, if this kernel lets a namespace choose that,
or by what every kernel does. Nothing: there can be no namespace."""

needs_namespaces = pytest.mark.skipif(not TCP, reason="no network namespaces here")

needs_iptables = pytest.mark.skipif(not TCP or not _may(TCP, "cone"), reason="no routers by iptables here")
