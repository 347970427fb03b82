"""`swarm-peer` on a machine with two devices: both names are its CPU's, and torch takes either."""

import sys
from unittest.mock import patch

from swarm_peer.peer.cli import main

DEVICES = ("cpu", "cpu:0")

if __name__ == "__main__":
    with patch("swarm_peer.peer.join.devices_of", lambda said: DEVICES):
        sys.exit(main())
