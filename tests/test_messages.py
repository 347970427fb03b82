"""Frames: what a message becomes, and what comes of bytes that are none."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from swarm_peer.errors import ProtocolError, WireError
from swarm_peer.protos import swarm_pb2 as pb
from swarm_peer.swarm.messages import check_bits, in_bits, pack, to_bits, unpack

KINDS = [field for field in pb.Envelope.DESCRIPTOR.fields if field.message_type is not None]


@pytest.mark.parametrize("field", KINDS, ids=lambda field: field.name)
def test_a_frame_is_the_envelope_as_protobuf_writes_it(field: FieldDescriptor) -> None:
    body = getattr(pb.Envelope(), field.name)
    envelope = pb.Envelope()
    getattr(envelope, field.name).SetInParent()
    assert pack(body) == envelope.SerializeToString(deterministic=True)
    assert unpack(pack(body), "a peer") == body


@pytest.mark.parametrize("size", [0, 1, 120, 127, 128, 16_380, 16_384, 1 << 20])
def test_whatever_its_length(size: int) -> None:
    chunk = pb.Chunk(data=bytes(size))
    assert pack(chunk) == pb.Envelope(chunk=chunk).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "frame", [b"", b"\xff", pack(pb.Chunk(data=b"1234"))[:-1]], ids=["empty", "noise", "cut short"]
)
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(WireError, match="a peer sent"):
        unpack(frame, "a peer")


@pytest.mark.parametrize("indices", [(), (0,), (7, 8), (3, 1, 30)])
def test_bits_say_which_indices(indices: tuple[int, ...]) -> None:
    bits = to_bits(indices)
    assert [index for index in range(300) if in_bits(bits, index)] == sorted(indices)
    check_bits(bits, max(indices, default=0) + 1, "a peer")


def test_more_bits_than_a_step_has_microbatches_are_refused() -> None:
    check_bits(bytes(2), 9, "a peer")
    with pytest.raises(ProtocolError, match="3 bytes of bits for 16 microbatches"):
        check_bits(bytes(3), 16, "a peer")
