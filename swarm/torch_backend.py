"""`StageBackend` on torch: one stage of a Llama-family model on one device.

Owns the stage's frozen base (LoRA) and nothing else that lasts: states, contexts and gradients belong to the caller.
Talks to the pure stage (`model/`), the codecs (`compression`) and the optimizer (`optimizer.py`). What two machines
must agree on bit for bit (initial values, updates, digests) uses correctly rounded operations only; the forward and
backward pass need not, since every replica applies the same reduced bytes.

Errors: `WireError` for input that does not fit or is not finite, `NonFiniteError` for NaN or infinity in output, loss
or gradient, `CodecError` for slices and parts that do not decode, `ProtocolError` for slices and parts that do not
fit a group, `ModelError` for a base that does not fit, `FittingError` where memory runs out.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..compression import CodecSpec, decode, encode
from ..errors import CodecError, FittingError, NonFiniteError, ProtocolError, WireError
from ..kernels import engine
from .backend import BackwardResult, ForwardResult, Scalar, StageInput, Update
from .data import TokenArray, labels_from_bytes, tokens_from_bytes
from .initial import lora_tensor
from .manifest import Manifest
from .model.held import DTYPES, Held, hold
from .model.names import EMBEDDING, trainable_shapes
from .model.stage import stage_forward
from .optimizer import StageState, adamw, fresh_state, state_digest, state_from_bytes, state_to_bytes
from .stopwatch import Stopwatch

StageGradient = Mapping[str, Tensor]
"""Gradient of the token-summed loss by tensor name, fp32."""


_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is how Python or torch say that memory has run out; on a CPU torch has no type for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


@dataclass(frozen=True, slots=True)
class StageContext:
    """What a forward pass keeps: leaves and root of its graph. Serves one backward pass, which frees the graph."""

    trainables: Mapping[str, Tensor]
    inputs: Tensor | None
    root: Tensor


class TorchBackend:
    """One stage of a run. `base`: the stage's base tensors with their names (`model.weights.stage_base`), each put into
    the manifest's base format as it comes; or the whole base as it is held (`model.held`). `recompute`: a visit that
    waits keeps only what entered each layer. `slots`: see `StageBackend`."""

    def __init__(
        self,
        manifest: Manifest,
        stage: int,
        base: Iterable[tuple[str, Tensor]] | Held,
        device: str = "cpu",
        *,
        recompute: bool = False,
        slots: int | None = None,
    ) -> None:
        settings = manifest.settings
        self._manifest = manifest
        self._stage = stage
        self._device = torch.device(device)
        self.recompute = recompute
        self.slots = slots
        self._is_first, self._is_last = stage == 0, stage == manifest.stages - 1
        self._dtype = DTYPES[settings.model.compute_dtype]
        self._lora_scale = settings.train.lora_alpha / settings.train.lora_rank
        self._activations = {
            train: CodecSpec.parse(text, settings.codecs.block)
            for train, text in ((True, settings.codecs.activations), (False, settings.model.compute_dtype))
        }
        self._gradients = CodecSpec.parse(settings.codecs.gradients, settings.codecs.block)
        self._reduce = CodecSpec.parse(settings.codecs.reduce, settings.codecs.block)
        self._watch = Stopwatch()
        self._full = settings.train.mode == "full"
        self._form = settings.optimizer.state
        self._base: Held = base if isinstance(base, Mapping) else hold(manifest, stage, base, self._device)
        self._shapes = trainable_shapes(manifest, stage)
        self._sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}
        tied = [EMBEDDING] if manifest.tied and EMBEDDING in self._shapes else []
        self._groups = {"stage": sorted(set(self._shapes) - set(tied))} | ({"tied": tied} if tied else {})
        self._lengths = {group: sum(self._sizes[name] for name in names) for group, names in self._groups.items()}

    @property
    def lengths(self) -> Mapping[str, int]:
        return self._lengths

    @property
    def kernels(self) -> str:
        return engine.name() if self._device.type == "cpu" else f"torch ({self._device.type})"

    @property
    def codec_seconds(self) -> float:
        return self._watch.seconds

    @property
    def gradient_bytes(self) -> int:
        return 4 * sum(self._lengths.values())

    def initial_state(self) -> StageState:
        if self._full:
            whole = {name: tensor for name, tensor in self._base.items() if isinstance(tensor, Tensor)}
            return fresh_state(whole, self._form)
        seed = self._manifest.settings.seed
        return fresh_state(
            {name: lora_tensor(seed, name, size).to(self._device) for name, size in self._shapes.items()}, self._form
        )

    def forward(self, state: StageState, visit: StageInput, *, train: bool) -> ForwardResult:
        """See `StageBackend.forward`. Hidden states travel as the flattened [samples, sequence_length, hidden_size]."""
        if visit.samples < 1:
            raise WireError(f"stage {self._stage}: {visit.samples} samples; wanted at least one")
        with self._in_memory():
            return self._forward(state, visit, train)

    @contextmanager
    def _in_memory(self) -> Iterator[None]:
        """Steps down where memory runs out: this visit fails, and from the next on graphs are computed again. Raises
        `FittingError`, final if they were already."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            final, self.recompute = self.recompute, True
            then = "with graphs computed again" if final else "graphs are computed again from now on"
            raise FittingError(f"memory ran out at stage {self._stage}: {then}", final=final) from error

    def _forward(self, state: StageState, visit: StageInput, train: bool) -> ForwardResult:
        trainables = {name: tensor.detach().requires_grad_(train) for name, tensor in state.parameters.items()}
        inputs = self._inputs(visit, self._activations[train])
        if not self._is_first:
            inputs.requires_grad_(train)
        with torch.set_grad_enabled(train):
            root = stage_forward(
                trainables if self._full else {**self._base, **trainables},
                self._manifest.shape,
                self._manifest.layers(self._stage),
                is_first=self._is_first,
                is_last=self._is_last,
                inputs=inputs,
                labels=self._labels(visit) if self._is_last else None,
                lora_scale=self._lora_scale,
                compute_dtype=self._dtype,
                recompute=train and self.recompute,
            )
        context = StageContext(trainables, None if self._is_first else inputs, root) if train else None
        if not self._is_last:
            return ForwardResult(self._encode(root.detach().float(), self._activations[train]), None, context)
        loss = float(root.detach())
        if not math.isfinite(loss):
            raise NonFiniteError(f"stage {self._stage}: the loss of microbatch ({visit.step}, {visit.index}) is {loss}")
        return ForwardResult(None, loss, context)

    def backward(self, state: StageState, context: StageContext, output_gradient: bytes | None) -> BackwardResult:
        """See `StageBackend.backward`. A context serves once: its graph is freed as the pass goes."""
        with self._in_memory():
            return self._backward(context, output_gradient)

    def _backward(self, context: StageContext, output_gradient: bytes | None) -> BackwardResult:
        seeds = None
        if not self._is_last:
            if output_gradient is None:
                raise WireError(f"stage {self._stage}: no output gradient came; only the last stage does without")
            shape = tuple(context.root.shape)
            seeds = [self._received(output_gradient, self._gradients, shape).to(context.root.dtype)]
        names = list(context.trainables)
        leaves = [context.trainables[name] for name in names]
        if context.inputs is not None:
            leaves.append(context.inputs)
        found = torch.autograd.grad([context.root], leaves, seeds)
        gradient = dict(zip(names, found, strict=False))
        self._check_finite(gradient)
        coded = None if context.inputs is None else self._encode(found[-1].float(), self._gradients)
        return BackwardResult(coded, gradient)

    def _check_finite(self, gradient: StageGradient) -> None:
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in gradient.values()])
        if not bool(finite.all()):  # one wait for the device, not one a tensor
            bad = [name for name, good in zip(gradient, finite.tolist(), strict=True) if not good]
            raise NonFiniteError(f"stage {self._stage}: the gradient of {', '.join(bad[:4])} holds NaN or infinity")

    def add(self, gradients: Sequence[StageGradient]) -> StageGradient:
        total = dict(gradients[0])
        for gradient in gradients[1:]:
            total = {name: torch.add(tensor, gradient[name]) for name, tensor in total.items()}
        return total

    def slice(self, gradient: StageGradient | None, group: str, first: int, last: int) -> bytes:
        """See `StageBackend.slice`. Only the tensors that the range touches are read."""
        length = self._length(group)
        if not 0 <= first <= last <= length:
            raise ProtocolError(f"group {group!r}: [{first}, {last}) is not within its {length} elements")
        if gradient is None:
            return self._encode(torch.zeros(last - first, device=self._device), self._reduce)
        pieces: list[Tensor] = []
        start = 0
        for name in self._groups[group]:
            low, high = max(first - start, 0), min(last - start, self._sizes[name])
            if low < high:
                pieces.append(gradient[name].reshape(-1)[low:high])
            start += self._sizes[name]
        flat = torch.cat(pieces) if pieces else torch.zeros(0, device=self._device)
        return self._encode(flat, self._reduce)

    def reduce(self, group: str, slices: Sequence[bytes], length: int) -> tuple[bytes, Scalar]:
        if not slices or not 0 <= length <= self._length(group):
            raise ProtocolError(f"group {group!r}: {len(slices)} slices of {length} of {self._length(group)} elements")
        total = self._decode_part(slices[0], length)
        for part in slices[1:]:
            total = torch.add(total, self._decode_part(part, length))
        coded = self._encode(total, self._reduce)
        return coded, float(self._decode_part(coded, length).double().square().sum())

    def apply(self, state: StageState, reductions: Mapping[str, Sequence[bytes]], update: Update) -> StageState:
        gradients: dict[str, Tensor] = {}
        for group, names in self._groups.items():
            if group not in reductions:
                raise ProtocolError(f"stage {self._stage}: no reduction of group {group!r}; came {sorted(reductions)}")
            flat = self._join(group, reductions[group])
            pieces = torch.split(flat, [self._sizes[name] for name in names])
            gradients |= {name: piece.view(self._shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        return adamw(state, gradients, update, self._manifest.settings.optimizer)

    def digest(self, state: StageState) -> bytes:
        return state_digest(state)

    def export(self, state: StageState) -> bytes:
        return state_to_bytes(state)

    def load(self, data: bytes | bytearray) -> StageState:
        return state_from_bytes(data, self._shapes, self._device, self._form)

    def _inputs(self, visit: StageInput, spec: CodecSpec) -> Tensor:
        samples, length = visit.samples, self._manifest.settings.data.sequence_length
        if self._is_first:
            return self._ids(tokens_from_bytes, visit.data, samples)
        shape = (samples, length, self._manifest.shape.hidden_size)
        return self._received(visit.data, spec, shape)

    def _received(self, data: bytes, spec: CodecSpec, shape: tuple[int, ...]) -> Tensor:
        """What a neighbour sent; whatever is wrong with it is the neighbour's, not this stage's."""
        try:
            return self._decode(data, spec, shape)
        except CodecError as error:
            raise WireError(f"stage {self._stage}: what came does not decode: {error}") from error

    def _labels(self, visit: StageInput) -> Tensor:
        if visit.labels is None:
            raise WireError(f"stage {self._stage}: no labels came; the last stage needs them")
        return self._ids(labels_from_bytes, visit.labels, visit.samples)

    def _ids(self, read: Callable[[bytes, int, int, int], TokenArray], data: bytes, samples: int) -> Tensor:
        length, vocabulary = self._manifest.settings.data.sequence_length, self._manifest.shape.vocab_size
        return torch.from_numpy(read(data, samples, length, vocabulary).astype(np.int64)).to(self._device)

    def _length(self, group: str) -> int:
        if group not in self._lengths:
            raise ProtocolError(f"stage {self._stage} has no group {group!r}; it has {sorted(self._lengths)}")
        return self._lengths[group]

    def _decode_part(self, part: bytes, length: int) -> Tensor:
        return self._decode(part, self._reduce, (length,))

    def _encode(self, tensor: Tensor, spec: CodecSpec) -> bytes:
        return self._watch.run(lambda: encode(tensor, spec))

    def _decode(self, data: bytes, spec: CodecSpec, shape: tuple[int, ...]) -> Tensor:
        limit, device = math.prod(shape), self._device
        return self._watch.run(
            lambda: decode(data, spec=spec, shape=shape, dtype=torch.float32, max_elements=limit, device=device)
        )

    def _join(self, group: str, parts: Sequence[bytes]) -> Tensor:
        """The group's flat reduced gradient; part i of n holds elements [length * i // n, length * (i + 1) // n)."""
        length, count = self._length(group), len(parts)
        if not count:
            raise ProtocolError(f"group {group!r}: no parts came")
        sizes = [length * (i + 1) // count - length * i // count for i in range(count)]
        return torch.cat([self._decode_part(part, size) for part, size in zip(parts, sizes, strict=True)])
