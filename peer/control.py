"""The local control of a running peer: what it does now, leave, limits, its log; at a socket that its user alone opens.

`Control` knows the members of one process and answers from them, and while there are none from what its owner's rules
have it wait for (`pausing.py`); `serve_control` opens the socket, and
`swarm-peer status`, `leave`, `limit` and `logs` ask at it (`control_commands.py`). Leaving is polite the first time, at
once the second.

Errors: `UsageError` for a limit that cannot be, or a socket that cannot be made.
"""

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import grpc

from ..errors import UnreachableError, UsageError
from ..protos import api_pb2 as pb
from ..swarm.api.server import serving
from ..swarm.milestones import Milestones
from ..swarm.work import stage_worth
from .control_commands import sockets
from .owner import Pause
from .probe import usable_cores

if TYPE_CHECKING:
    from ..swarm.host import Moment
    from ..swarm.peer import Peer

logger = logging.getLogger(__name__)

KEPT_LINES = 1000
WATCH_SECONDS = 1.0
MAX_SOCKET_PATH = 100
"""Unix sockets allow no long path."""


class Control:
    """The members of one process, and the lines that it has told. `threads`: with how many they compute;
    `set_threads` has them compute with so many."""

    def __init__(self) -> None:
        self.threads = 0
        self.set_threads: Callable[[int], None] = lambda count: None
        self.peers: list[Peer] = []
        self.why = ""
        self.sent_home = ""
        """Why its members leave, though the process stays."""
        self.waits: Pause | None = None
        self.began: float | None = None
        """When the command was given, by the loop's clock, until a member has set out."""
        self.asked = asyncio.Event()
        """Set when its owner has asked it to leave."""
        self.fetched: Callable[[], int] = lambda: 0
        """Bytes that came from elsewhere than from peers, since the last rest."""
        self._earlier = pb.PeerStatus()
        self._moved_earlier = 0
        self._visits = 0
        self._last: pb.PeerStatus | None = None
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._told = 0
        self._news = asyncio.Event()

    def set_out(self, now: float) -> Milestones:
        """One member more is on its way: the first one since the command was given."""
        milestones = Milestones(now if self.began is None else self.began)
        self.began = None
        milestones.reach("start", now)
        return milestones

    def add(self, peer: "Peer") -> None:
        """One member more; it leaves at once if the others are leaving."""
        self.peers.append(peer)
        peer.observe, peer.ended = self._saw, partial(self._drop, peer)
        if self.why or self.sent_home:
            peer.leave(self.sent_home or self.why)

    def _drop(self, peer: "Peer") -> None:
        """Forgets a member that has ended, but for what it has done."""
        if peer in self.peers:
            self.status()
            self._moved_earlier += peer.moved
            _add(self._earlier, peer)
            self.peers.remove(peer)

    def _saw(self, moment: "Moment") -> None:
        self._visits += moment.name == "held"
        logger.debug("%s: stage %d, step %d, microbatch %d", moment.name, moment.stage, moment.step, moment.index)

    def tell(self, line: str) -> None:
        """Keeps a line for `logs`."""
        self._lines.append(line)
        self._told += 1
        self._news.set()

    def leave(self, why: str) -> bool:
        """Has every member leave politely; False if they are leaving already."""
        if self.why:
            return False
        self.why = why or "its owner wants it back"
        self.asked.set()
        for peer in self.peers:
            peer.leave(self.why)
        return bool(self.peers or self.sent_home) or self.waits is not None

    def send_home(self, why: str) -> bool:
        """Has every member leave politely, though the process stays; False if they are leaving already."""
        if self.sent_home or self.why:
            return False
        self.sent_home = why
        for peer in self.peers:
            peer.leave(why)
        return True

    def end(self) -> None:
        """Those who were sent home do not come again."""
        self.why = self.why or self.sent_home

    def rest(self) -> None:
        """Forgets the members, who have ended, but for what they have done; others may be added."""
        self._moved_earlier = self.moved()
        for peer in self.peers:
            _add(self._earlier, peer)
        self.peers, self.sent_home, self.fetched, self._last = [], "", lambda: 0, None

    def moved(self) -> int:
        """Bytes that this process has sent and received, all together."""
        return self._moved_earlier + self.fetched() + sum(peer.moved for peer in self.peers)

    # ---- what is asked

    def status(self) -> pb.PeerStatus:
        """Of the first member with a stage what there is one of; sums over all. When all have ended: how it was."""
        found = self._status_now()
        if found.hosted:
            self._last = found
        elif self._last is not None:
            state = found.state
            found = pb.PeerStatus()
            found.CopyFrom(self._last)
            found.state, found.leaving, found.open, found.below, found.waits = state, self._leaving, 0, 0, ""
        return found

    def _status_now(self) -> pb.PeerStatus:
        found = pb.PeerStatus(state="finding the run", leaving=self._leaving, visits=self._visits, threads=self.threads)
        found.MergeFrom(self._earlier)
        links = [link for peer in self.peers for link in peer.links()]
        if links:
            found.link_rate = median(link.rate for link in links)
            found.round_trip = median(link.round_trip_us for link in links) / 1e6
        for peer in self.peers:
            _add(found, peer)
            host = peer.host
            if host is None:
                continue
            below, waits_for = host.visits.waiting_below()
            found.open += host.visits.open
            found.below += below
            found.visits_per_second += host.workload.pace.throughput
            found.slots += host.visits.slots
            if not found.hosted:
                found.peer, found.run = host.peer_id, host.authority.run_id
                found.stage, found.stages = host.stage, host.manifest.stages
                found.version = host.versions.latest
                if host.loss is not None:
                    found.loss = host.loss
                found.counted_after.update(peer.milestones.took)
                found.state = "working" if host.versions.latest >= 0 else "loading"
                if below and below == host.visits.open:
                    found.waits = f"for {waits_for[-8:] or 'a peer'} of stage {host.stage + 1}"
            found.hosted.append(host.stage)
        if not found.hosted and self._last is not None:
            found.state = "leaving" if self.sent_home and not self.why else "ended"
        elif self.waits is not None:
            found.state, found.waits = ("ended", "") if self.why else ("pausing", self.waits.until)
        elif self._leaving:
            found.state = "leaving"
        elif self.peers and not found.hosted:
            found.state = "joining"
        return found

    @property
    def _leaving(self) -> str:
        return self.why or self.sent_home or ("" if self.waits is None else self.waits.why)

    def limit(self, *, slots: int | None = None, threads: int | None = None) -> None:
        """Bounds, from now on, the open visits of every stage and the threads that compute them. Raises `UsageError`
        before anything is changed."""
        hosts = [peer.host for peer in self.peers if peer.host is not None]
        if not hosts:
            raise UsageError("this peer hosts no stage yet")
        most = hosts[0].manifest.settings.pipeline.slots
        if slots is not None and not 1 <= slots <= most:
            raise UsageError(f"{slots} visits at once: this run allows 1 to {most}")
        cores = usable_cores()
        if threads is not None and not 1 <= threads <= cores:
            raise UsageError(f"{threads} threads: this machine has 1 to {cores}")
        if slots is not None:
            for host in hosts:
                host.visits.slots = slots
        if threads is not None:
            self.threads = threads
            self.set_threads(threads)

    # ---- the calls

    def handlers(self) -> dict[str, Any]:
        return {
            "Status": self._status,
            "Watch": self._watch,
            "Leave": self._leave,
            "Limit": self._limit,
            "Logs": self._logs,
        }

    async def _status(self, request: pb.StatusRequest, context: grpc.aio.ServicerContext) -> pb.PeerStatus:
        return self.status()

    async def _watch(self, request: pb.WatchRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.PeerStatus]:
        while True:
            yield self.status()
            await asyncio.sleep(WATCH_SECONDS)

    async def _leave(self, request: pb.LeaveRequest, context: grpc.aio.ServicerContext) -> pb.PeerStatus:
        if request.now or not self.leave(request.why):
            self.why = self.why or request.why or "its owner wants it back"
            # As a second Ctrl-C: who leaves already goes at once.
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        return self.status()

    async def _limit(self, request: pb.LimitRequest, context: grpc.aio.ServicerContext) -> pb.PeerStatus:
        self.limit(
            slots=request.slots if request.HasField("slots") else None,
            threads=request.threads if request.HasField("threads") else None,
        )
        return self.status()

    async def _logs(self, request: pb.LogsRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.LogLine]:
        wanted = min(request.lines or KEPT_LINES, len(self._lines))
        told = self._told - wanted
        while True:
            self._news.clear()
            fresh = list(self._lines)[-(self._told - told) :] if self._told > told else []
            told = self._told
            for line in fresh:
                yield pb.LogLine(text=line)
            if not request.follow:
                return
            await self._news.wait()


def _add(found: pb.PeerStatus, peer: "Peer") -> None:
    """Adds what a member has done so far."""
    found.sent += peer.meter.sent
    found.received += peer.meter.received
    if (host := peer.host) is not None:
        found.busy += host.busy
        found.counted += host.counted
        found.credit += host.counted * stage_worth(host.manifest, host.stage)
        for reason, times in host.refused.items():
            found.refused[reason] += times


@asynccontextmanager
async def serve_control(control: Control) -> AsyncIterator[None]:
    """Answers at this process's socket for as long as the block lasts. Raises `UsageError`."""
    folder = sockets()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    path = folder / f"{os.getpid()}.sock"
    if len(str(path)) > MAX_SOCKET_PATH:
        # Where the state folder lies too deep nobody can ask; the peer works all the same.
        yield
        return
    path.unlink(missing_ok=True)
    try:
        async with AsyncExitStack() as stack:
            service, handlers = pb.DESCRIPTOR.services_by_name["Peer"], control.handlers()
            try:
                await stack.enter_async_context(serving(service, handlers, f"unix:{path}"))
            except UnreachableError as error:
                raise UsageError(f"this peer cannot be asked at {path}: {error}") from error
            path.chmod(0o600)
            yield
    finally:
        path.unlink(missing_ok=True)
