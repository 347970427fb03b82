"""Lossless coding of the codes, whose frequencies differ: the Huffman coder of zlib.

The bytes may differ between versions of zlib; what they decode to does not. (`README.md` says why this coder.)
"""

import struct
import zlib

from ..errors import CodecError

_LENGTH = struct.Struct("<I")


def squeeze(codes: bytes | bytearray) -> bytes:
    """Length and coded bytes, or a length of 0 and the codes as they are if that is shorter."""
    coder = zlib.compressobj(level=1, method=zlib.DEFLATED, wbits=-15, memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)
    coded = coder.compress(codes) + coder.flush()
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
    coder = zlib.decompressobj(wbits=-15)
    try:
        plain = coder.decompress(coded, codes) if codes else b""
    except zlib.error as error:
        raise CodecError(f"coded elements cannot be read: {error}") from error
    if len(plain) != codes or coder.unconsumed_tail or coder.unused_data or not coder.eof:
        raise CodecError(f"coded elements are not the {codes} bytes that are due")
    return memoryview(plain), end
