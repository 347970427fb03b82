"""Which process of this machine has a TCP connection: Linux' /proc, read for what a connection itself does not tell.

Sees the processes of the same user. Raises nothing: what cannot be read is nobody's.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

Endpoint = tuple[str, int]

LISTENING = "0A"


def listener_with(connection: Endpoint, listeners: Iterable[Endpoint]) -> Endpoint | None:
    """The endpoint among `listeners` at which the process listens whose end of a connection is at `connection`."""
    connected: set[str] = set()
    listening: dict[str, Endpoint] = {}
    wanted = set(listeners)
    for local, state, inode in _sockets():
        if state == LISTENING:
            if local in wanted:
                listening[inode] = local
        elif local == connection:
            connected.add(inode)
    for inodes in _inodes_by_process():
        if connected & inodes:
            for inode, endpoint in listening.items():
                if inode in inodes:
                    return endpoint
    return None


def _sockets() -> Iterator[tuple[Endpoint, str, str]]:
    """(local endpoint, state, inode) of every IPv4 TCP socket."""
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        address, port = fields[1].split(":")
        yield (socket.inet_ntoa(struct.pack("=I", int(address, 16))), int(port, 16)), fields[3], fields[9]


def _inodes_by_process() -> Iterator[set[str]]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            inodes = set()
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                for descriptor in os.scandir(process / "fd"):
                    with contextlib.suppress(OSError):
                        kind, _, inode = os.readlink(descriptor.path).partition(":")
                        if kind == "socket":
                            inodes.add(inode.strip("[]"))
            yield inodes
