"""Wire codecs: a tensor as bytes that say what they are, and back, whoever sent them."""

from .codec import decode, encode, encoded_bytes
from .feedback import ErrorFeedback
from .spec import CodecSpec

__all__ = ["CodecSpec", "ErrorFeedback", "decode", "encode", "encoded_bytes"]
