"""Lossless coding of the codes, whose frequencies differ: the Huffman coder of Zstandard.

The bytes may differ between versions of that library; what they decode to does not. (`README.md` says why this one.)
"""

import struct

import zstandard

from ..errors import CodecError

LEVEL = 1
"""The lowest that codes literals: there are no repetitions to look for."""

_LENGTH = struct.Struct("<I")


def squeeze(codes: bytes | bytearray) -> bytes:
    """Length and coded bytes, or a length of 0 and the codes as they are if that is shorter."""
    coded = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False).compress(codes)
    if len(coded) >= len(codes):
        return _LENGTH.pack(0) + bytes(codes)
    return _LENGTH.pack(len(coded)) + coded


def most_bytes(codes: int) -> int:
    return _LENGTH.size + codes


def expand(section: memoryview, codes: int) -> tuple[memoryview, int]:
    """(`codes` bytes, how long the section was). Never allocates more than that. Raises `CodecError`."""
    if len(section) < _LENGTH.size:
        raise CodecError(f"{len(section)} bytes of coded elements; at least {_LENGTH.size} are due")
    (length,) = _LENGTH.unpack_from(section)
    end = _LENGTH.size + (length or codes)
    if len(section) < end:
        raise CodecError(f"{len(section) - _LENGTH.size} bytes of coded elements; {end - _LENGTH.size} are due")
    coded = section[_LENGTH.size : end]
    if not length:
        return coded, end
    try:
        # What a frame says of its size is what the library allocates.
        if zstandard.frame_content_size(coded) != codes:
            raise CodecError(f"coded elements are not the {codes} bytes that are due")
        plain = zstandard.ZstdDecompressor().decompress(coded, max_output_size=codes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CodecError(f"coded elements cannot be read: {error}") from error
    if len(plain) != codes:
        raise CodecError(f"coded elements are not the {codes} bytes that are due")
    return memoryview(plain), end
