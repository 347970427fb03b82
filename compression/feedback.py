"""Error feedback: what a codec has left out of a tensor is added to the next one of the same name.

For what is sent again and again and summed (gradients of a parameter): nothing is lost for good, so that far fewer bits
do (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847). One sender's own state; the receiver needs none.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from .codec import decode, encode
from .spec import CodecSpec


class ErrorFeedback:
    """Keeps one float32 tensor a name: what the last message of that name has left out."""

    def __init__(self, spec: CodecSpec) -> None:
        self.spec = spec
        self._left: dict[Hashable, Tensor] = {}

    def encode(self, name: Hashable, tensor: Tensor, *, seed: int = 0, threads: int = 1) -> bytes:
        """As `codec.encode`, of the tensor and what is left of the last one. Nothing is kept if that fails."""
        wanted = tensor.detach().to(torch.float32)
        left = self._left.get(name)
        if left is not None:
            wanted = wanted + left
        coded = encode(wanted, self.spec, seed=seed, threads=threads)
        came = torch.empty_like(wanted, memory_format=torch.contiguous_format)
        decode(coded, came, spec=self.spec, threads=threads)
        self._left[name] = wanted - came
        return coded

    def forget(self, name: Hashable) -> None:
        self._left.pop(name, None)
