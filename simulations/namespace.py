"""A network of its own for this process: a namespace whose only way out is a TUN device, of which another process holds
the other end.

Behind a router at home (`nat.py`) the process has a private address, and the kernel's iptables translate it: whoever
it has not called first does not reach it.

Linux only; as root, or as a user who may make user namespaces. Errors: `EmulationError` where that is not allowed.
"""

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

from ..errors import EmulationError
from .nat import Nat

CLONE_NEWNET = 0x40000000
CLONE_NEWUSER = 0x10000000

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x1, 0x1000
SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFMTU, SIOCSIFTXQLEN = 0x8914, 0x8916, 0x891C, 0x8922, 0x8943
SIOCADDRT = 0x890B
IFF_UP, IFF_RUNNING, RTF_UP = 0x1, 0x40, 0x1
"""From linux/sched.h, linux/if_tun.h, linux/sockios.h, linux/route.h and net/if.h."""

INSIDE = "192.168.1.2"
"""The private address of whoever is behind a router."""

IPTABLES_SECONDS = 10.0

TCP = "cubic"
"""Linux' default."""

CHOICE = Path("/proc/sys/net/ipv4/tcp_congestion_control")
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")

DEVICE = b"tun0"
NETMASK = "255.255.0.0"
QUEUE_PACKETS = 10_000
"""That may wait in the device for the router to read them: what was lost there would look like a narrow link."""


def enter_namespace(address: str, mtu: int, tcp: str = TCP, nat: Nat | None = None) -> int:
    """Leaves the network of the machine for one of its own, with this address (IPv4), or with `INSIDE` behind a router
    that has it; the descriptor of its TUN device. `tcp`: how its connections find out how much their way carries. To be
    called before the process has any other thread. Raises `EmulationError`."""
    try:
        _unshare()
        _choose(tcp)
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", DEVICE, IFF_TUN | IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFADDR, _with_address(INSIDE if nat else address))
            fcntl.ioctl(control, SIOCSIFNETMASK, _with_address(NETMASK))
            fcntl.ioctl(control, SIOCSIFMTU, struct.pack("16si20x", DEVICE, mtu))
            with suppress(PermissionError):  # root's alone: others have the kernel's 500
                fcntl.ioctl(control, SIOCSIFTXQLEN, struct.pack("16si20x", DEVICE, QUEUE_PACKETS))
            for device in (DEVICE, b"lo"):
                fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", device, IFF_UP | IFF_RUNNING))
            if nat:
                _route_all(control)
    except (OSError, AttributeError) as error:
        raise EmulationError(
            f"no network namespace with a TUN device can be made here: {error}. It takes Linux and root, or a user who "
            "may make user namespaces and open /dev/net/tun"
        ) from error
    if nat:
        _translate(address, nat)
    return tun


def _route_all(control: socket.socket) -> None:
    """By a struct rtentry whose destination and mask are nothing."""
    nothing = struct.pack("H14x", socket.AF_INET)
    device = ctypes.create_string_buffer(DEVICE)
    route = struct.pack("@L16s16s16sHhLLhP", 0, nothing, nothing, nothing, RTF_UP, 0, 0, 0, 0, ctypes.addressof(device))
    fcntl.ioctl(control, SIOCADDRT, route.ljust(120, b"\0"))


def _translate(outside: str, nat: Nat) -> None:
    """Packets leave from `outside`, and only answers to them come in: it is no address of this namespace, so that what
    comes there and belongs to no connection goes nowhere. Raises `EmulationError`."""
    rule = ["POSTROUTING", "-o", DEVICE.decode(), "-j", "SNAT", "--to-source", outside]
    command = ["iptables", "-t", "nat", "-A", *rule, *(["--random-fully"] if nat == "symmetric" else [])]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "XTABLES_LOCKFILE": "/dev/null"},
            capture_output=True,
            text=True,
            timeout=IPTABLES_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmulationError(f"routers that translate addresses need the program iptables: {error}") from error
    if done.returncode:
        raise EmulationError(f"iptables cannot translate addresses here: {done.stderr.strip()}")


def _unshare() -> None:
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET if user == 0 else CLONE_NEWNET | CLONE_NEWUSER
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if user:  # the same user as before, for its own files
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _choose(tcp: str) -> None:
    """A namespace begins with the machine's, which differs from machine to machine. Raises `EmulationError`."""
    try:
        CHOICE.write_text(tcp)
    except OSError as error:
        known = ALLOWED.read_text().split()
        raise EmulationError(f"TCP cannot be {tcp} here ({error}): this kernel allows {', '.join(known)}") from error


def _with_address(address: str) -> bytes:
    """A struct ifreq with a sockaddr_in."""
    return struct.pack("16sHH4s16x", DEVICE, socket.AF_INET, 0, socket.inet_aton(address))
