"""Frames: packing and checking the messages of `protos/swarm.proto`.

A frame is one serialized `Envelope`. Nothing that came from the wire is used before `unpack` has parsed it and the
checks here have bounded its fields. Errors: `WireError` for what does not parse, `ProtocolError` for a field out of
its bounds.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

from google.protobuf.message import DecodeError, Message

from ..errors import ProtocolError, WireError
from ..protos import swarm_pb2 as pb
from .backend import Scalar

Body: TypeAlias = (
    pb.Run
    | pb.Fetch
    | pb.Part
    | pb.Hello
    | pb.Watch
    | pb.Follow
    | pb.Evaluate
    | pb.Evaluated
    | pb.Accepted
    | pb.Busy
    | pb.Refused
    | pb.Progress
    | pb.Done
    | pb.Failed
    | pb.Fetched
    | pb.PartResult
    | pb.Chunk
    | pb.Past
    | pb.Welcome
    | pb.Reduce
    | pb.Commit
    | pb.Closed
    | pb.Finish
    | pb.Ready
    | pb.Reduced
    | pb.ReduceFailed
    | pb.Applied
    | pb.Held
    | pb.Heartbeat
    | pb.Leave
    | pb.Drain
    | pb.Move
    | pb.Loaded
)


def _varint(number: int) -> bytes:
    """As protobuf writes what is not negative."""
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes((*digits, number))


TAGS = {
    field.message_type.name: _varint(field.number << 3 | 2)
    for field in pb.Envelope.DESCRIPTOR.fields
    if field.message_type is not None
}
"""How an envelope with a message of a kind begins: the field's number, and that a length follows."""

MAX_STAGES = 1024
MAX_INDEX = 1 << 24
MAX_CREW = 1 << 14
"""Members of one run; their names, eight bytes each, are in every Commit."""


def pack(body: Body) -> bytes:
    """One frame: an `Envelope` as protobuf would write it, but a tensor is not copied into one first."""
    content: bytes = body.SerializeToString(deterministic=True)
    return b"".join((TAGS[body.DESCRIPTOR.name], _varint(len(content)), content))


def unpack(frame: bytes, sender: str) -> Body:
    """The message of a frame. Raises `WireError`."""
    envelope = pb.Envelope()
    try:
        envelope.ParseFromString(frame)
    except DecodeError as error:
        raise WireError(f"{sender} sent {len(frame)} bytes that are no message of this protocol") from error
    name = envelope.WhichOneof("body")
    if name is None:
        raise WireError(f"{sender} sent a message of a kind unknown to protocol version 1")
    body: Body = getattr(envelope, name)
    return body


def payload_length(body: Message) -> int:
    """How many payload bytes follow this message as chunks."""
    return body.payload if isinstance(body, pb.Run | pb.Done | pb.Fetch | pb.Fetched | pb.Part | pb.PartResult) else 0


def to_scalar(value: Scalar) -> pb.Scalar:
    return pb.Scalar(real=value) if isinstance(value, float) else pb.Scalar(residue=value)


def from_scalar(message: pb.Scalar, what: str, sender: str) -> Scalar:
    """Raises `ProtocolError` if there is no value or it is not finite."""
    kind = message.WhichOneof("value")
    if kind is None:
        raise ProtocolError(f"{sender} sent no {what}")
    value: Scalar = message.real if kind == "real" else message.residue
    if isinstance(value, float) and not math.isfinite(value):
        raise ProtocolError(f"{sender} sent {what} = {value}; it must be finite")
    return value


def check_run(run: pb.Run, stages: int, microbatches: int, sender: str) -> None:
    """Bounds of a Run that do not depend on the receiver's state. Raises `ProtocolError`."""
    if not run.first <= run.last < stages:
        raise ProtocolError(f"{sender} asks for stages {run.first}..{run.last} of {stages}")
    if run.mode == pb.TRAIN and run.index >= microbatches:
        raise ProtocolError(f"{sender} asks for microbatch {run.index} of {microbatches}")
    if run.index >= MAX_INDEX or not 1 <= run.samples < MAX_INDEX:
        raise ProtocolError(f"{sender} asks for microbatch {run.index} of {run.samples} samples")
    if not 1 <= len(run.order) <= MAX_STAGES:
        raise ProtocolError(f"{sender} sent an order of {len(run.order)} entries; 1 to {MAX_STAGES} are allowed")
    if len(run.hint) > stages:
        raise ProtocolError(f"{sender} sent {len(run.hint)} hints for {stages} stages")
    if len(run.lacking) > stages:
        raise ProtocolError(f"{sender} lacks {len(run.lacking)} of {stages} stages")


def check_indices(indices: tuple[int, ...], microbatches: int, sender: str) -> None:
    """Indices of a step: ascending, distinct, in range. Raises `ProtocolError`."""
    if any(left >= right for left, right in pairwise(indices)):
        raise ProtocolError(f"{sender} sent indices that are not ascending")
    if indices and indices[-1] >= microbatches:
        raise ProtocolError(f"{sender} sent index {indices[-1]} of {microbatches}")


def to_bits(indices: Iterable[int]) -> bytes:
    """A bit for each index of a step, the lowest of a byte first; what is beyond the last one is left out."""
    bits = bytearray()
    for index in indices:
        if index >> 3 >= len(bits):
            bits.extend(bytes((index >> 3) + 1 - len(bits)))
        bits[index >> 3] |= 1 << (index & 7)
    return bytes(bits)


def in_bits(bits: bytes, index: int) -> bool:
    return index >> 3 < len(bits) and bool(bits[index >> 3] >> (index & 7) & 1)


def check_bits(bits: bytes, microbatches: int, sender: str) -> None:
    """Raises `ProtocolError` for more of them than a step has microbatches, in whole bytes."""
    if len(bits) > (microbatches + 7) >> 3:
        raise ProtocolError(f"{sender} sent {len(bits)} bytes of bits for {microbatches} microbatches")


def check_crew(names: Sequence[int], sender: str) -> None:
    """Members as a Commit names them: ascending, distinct, not too many. Raises `ProtocolError`."""
    if len(names) > MAX_CREW:
        raise ProtocolError(f"{sender} names a crew of {len(names)}; at most {MAX_CREW} are accepted")
    if any(left >= right for left, right in pairwise(names)):
        raise ProtocolError(f"{sender} names a crew that is not ascending")


def check_past(past: pb.Past, steps: int, sender: str) -> None:
    """A committed step, as a peer remembers it. Raises `ProtocolError`."""
    if past.step >= steps:
        raise ProtocolError(f"{sender} remembers step {past.step} of {steps}")
    from_scalar(past.loss, "loss", sender)
    from_scalar(past.grad_norm, "gradient norm", sender)
    if past.HasField("heldout"):
        from_scalar(past.heldout, "held-out loss", sender)
    if past.HasField("heldout_after"):
        raise ProtocolError(f"{sender} tells of the end of the run, which is for trainers to tell")
