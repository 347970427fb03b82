"""Gives a checkpoint's files to other peers of the run: parts of what lies on this machine's disk, and no other file.

Errors: none; what cannot be read is refused.
"""

import asyncio

from ...errors import ModelError
from ...protos import swarm_pb2 as pb
from ..serving import Incoming
from .config import CONFIG
from .files import INDEX, Files

PART_BYTES = 4 << 20


def is_served(name: str) -> bool:
    """Whether a file of this name is part of a checkpoint: nothing else of a disk is anybody's business."""
    plain = "/" not in name and "\\" not in name and not name.startswith(".")
    return plain and (name in (CONFIG, INDEX) or name.endswith(".safetensors"))


async def serve_file(incoming: Incoming, question: pb.Fetch, files: Files | None, run_id: str) -> None:
    """Answers a Fetch of a part of a file; `files`: what this peer has of its own, None for nothing."""
    name, start = question.group, question.part * PART_BYTES

    def read() -> tuple[int, bytes] | None:
        if files is None or not files.is_local or question.run != run_id or not is_served(name) or not files.has(name):
            return None
        size = files.size(name)
        data = bytearray(max(0, min(PART_BYTES, size - start)))
        if data:
            files.read(name, start, memoryview(data), lambda count: None)
        return size, bytes(data)

    try:
        found = await asyncio.to_thread(read)
    except ModelError:
        found = None
    if found is None:
        await incoming.channel.send(pb.Refused(reason=pb.NOT_KEPT, detail=f"no file {name[:80]!r} to be had here"))
        return
    await incoming.channel.send(pb.Fetched(size=found[0]), found[1])
