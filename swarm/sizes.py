"""How many bytes the parts of a stage take, from its shapes alone.

Each function is the arithmetic of one thing that another module holds: base weights (`compression/linear.py`), states
(`optimizer.py`), graphs (`model/`), coded tensors (`compression/`). Nothing is allocated, nothing measured, so a 65B
model can be asked about on any machine. `tests/test_sizes.py` holds every number against the real tensors.
"""

import math
from dataclasses import dataclass

from ..compression import CodecSpec
from ..compression.codec import encoded_bytes
from ..compression.linear import GROUP, TILE_ELEMENTS
from ..kernels import engine
from . import moments
from .manifest import LlamaShape, Manifest
from .model.names import block_linears, lora_shapes, stage_base_shapes, trainable_shapes

NF4_BLOCK = 64
ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
TOKEN_BYTES = 4

_TILES = {"nf4": 1, "int8": 4}
"""Decoded tiles of a weight that are there at a time, at most."""


def linear_bytes(rows: int, columns: int, form: str) -> int:
    """The weight [rows, columns] of a linear layer in a base format: `fp32`, `bf16`, `int8` or `nf4`."""
    elements = rows * columns
    if form == "nf4":
        return engine.code_bytes("nf4", elements) + engine.scale_bytes("nf4", elements, NF4_BLOCK)
    if form == "int8":
        return elements + 4 * rows * -(-columns // GROUP)
    return elements * ELEMENT_BYTES[form]


def base_form(manifest: Manifest) -> str:
    """What the linear layers are held in: `auto` is the compute dtype, what is trained whole is fp32."""
    settings = manifest.settings
    if settings.train.mode == "full":
        return "fp32"
    return settings.model.compute_dtype if settings.model.base == "auto" else settings.model.base


def tensor_sizes(manifest: Manifest, stage: int) -> dict[str, int]:
    """The base tensors of a stage as they are held: name -> bytes. Embedding, norms and head have the compute dtype."""
    shape, form = manifest.shape, base_form(manifest)
    other = "fp32" if manifest.settings.train.mode == "full" else manifest.settings.model.compute_dtype
    linears = {f"{name}.weight" for layer in manifest.layers(stage) for name in block_linears(shape, layer)}
    return {
        name: linear_bytes(size[0], size[1], form) if name in linears else math.prod(size) * ELEMENT_BYTES[other]
        for name, size in stage_base_shapes(manifest, stage).items()
    }


def base_bytes(manifest: Manifest, stage: int) -> int:
    """All base tensors of a stage. In full training these are the values of version 0, which stay."""
    return sum(tensor_sizes(manifest, stage).values())


def loading_bytes(manifest: Manifest, stage: int) -> int:
    """What loading takes above the final size: one tensor as it comes (bf16; fp32 from a seed), and where it is
    quantized its fp32 copy and its codes on their way."""
    came = ELEMENT_BYTES["fp32" if manifest.weights is None else "bf16"]
    most = 0
    for name, size in stage_base_shapes(manifest, stage).items():
        elements = math.prod(size)
        extra = elements * came
        if base_form(manifest) in ("nf4", "int8") and name.endswith("proj.weight"):
            extra += (0 if came == 4 else 4 * elements) + linear_bytes(size[0], size[1], base_form(manifest))
        most = max(most, extra)
    return most


# ---- what is trained


def trained_elements(manifest: Manifest, stage: int) -> int:
    return sum(math.prod(size) for size in trainable_shapes(manifest, stage).values())


def gradient_bytes(manifest: Manifest, stage: int) -> int:
    """The gradient of one microbatch, fp32."""
    return 4 * trained_elements(manifest, stage)


def state_bytes(manifest: Manifest, stage: int) -> int:
    """One version: trained parameters in fp32, and both of Adam's moments."""
    form = manifest.settings.optimizer.state
    total = 0
    for size in trainable_shapes(manifest, stage).values():
        elements = math.prod(size)
        coded = elements + 4 * -(-elements // moments.BLOCK)
        total += 4 * elements + 2 * (coded if moments.is_coded(elements, form) else 4 * elements)
    return total


def reduced_bytes(manifest: Manifest, stage: int) -> int:
    """A stage's gradient as it travels between replicas."""
    codecs = manifest.settings.codecs
    return encoded_bytes((trained_elements(manifest, stage),), CodecSpec.parse(codecs.reduce, codecs.block))


# ---- what a visit holds


def visit_tokens(manifest: Manifest) -> int:
    """Tokens of a full microbatch."""
    return manifest.settings.train.microbatch * manifest.settings.data.sequence_length


def graph_bytes(manifest: Manifest, stage: int) -> int:
    """What autograd saves in the forward pass of one full microbatch, beyond the parameters themselves.

    A Llama block of T tokens, h = hidden, i = inner, q = all query heads, in elements of the compute dtype: the norms'
    outputs 2Th; query, key, value and mixed heads 4Tq (keys and values are repeated to the number of query heads, if
    they are fewer); gate, its SiLU, up and their product 4Ti; the narrow outputs of the LoRA paths 7Tr. In fp32: the
    norms' inputs 2Th and their roots 2T, attention's logarithms T for each head. Weights that are not held in the
    compute dtype are cast for each visit and saved as well. The attention matrix is never made (flash attention).
    """
    shape, settings = manifest.shape, manifest.settings
    tokens, width = visit_tokens(manifest), ELEMENT_BYTES[settings.model.compute_dtype]
    full, is_first, is_last = settings.train.mode == "full", stage == 0, stage == manifest.stages - 1
    total = len(manifest.layers(stage)) * _block_graph_bytes(manifest, tokens, width)
    total += 2 * settings.data.sequence_length * shape.head_dim * width
    if is_first and full:
        total += 8 * tokens
    elif is_first:
        # Nothing before the first LoRA paths is trained: the first norm and the projections of its output save nothing.
        total -= 4 * tokens * (shape.hidden_size + 1)
        if _is_cast(manifest):
            heads = shape.num_attention_heads + 2 * shape.num_key_value_heads
            total -= width * heads * shape.head_dim * shape.hidden_size
    if is_last:
        total += 4 * tokens * (shape.vocab_size + shape.hidden_size + 1) + 8 * tokens
        if full:
            total += 2 * tokens * shape.hidden_size * width
            total += 0 if width == 4 else width * shape.vocab_size * shape.hidden_size
    return total


def _is_cast(manifest: Manifest) -> bool:
    """Whether the linear layers' weights are cast to the compute dtype for each visit."""
    form = base_form(manifest)
    return form in ELEMENT_BYTES and form != manifest.settings.model.compute_dtype


def _block_graph_bytes(manifest: Manifest, tokens: int, width: int) -> int:
    shape, settings = manifest.shape, manifest.settings
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    full = settings.train.mode == "full"
    narrow = 0 if full else 7 * settings.train.lora_rank
    elements = tokens * (2 * hidden + 4 * queries + 4 * inner + narrow + (2 * hidden if full else 0))
    total = width * elements + 4 * tokens * (2 * hidden + 2 + shape.num_attention_heads)
    if _is_cast(manifest):
        total += width * sum(rows * columns for rows, columns in block_linears(shape, 0).values())
    if not full and width != 4:
        rank = settings.train.lora_rank
        total += width * sum(math.prod(size) for size in lora_shapes(shape, range(1), rank).values())
    return total


def context_bytes(manifest: Manifest, stage: int) -> int:
    """What a visit keeps beside its graph: the decoded input where the graph does not hold it, and its output."""
    tokens, width = visit_tokens(manifest), ELEMENT_BYTES[manifest.settings.model.compute_dtype]
    wide = 4 * tokens * manifest.shape.hidden_size
    has_own_input = stage > 0 and width != 4
    is_last = stage == manifest.stages - 1
    return (wide if has_own_input else 0) + (0 if is_last else wide * width // 4)


def input_bytes(manifest: Manifest, stage: int) -> int:
    """The decoded input of a visit, which is all that one keeps on the device that computes its forward pass again."""
    tokens = visit_tokens(manifest)
    return 8 * tokens if stage == 0 else 4 * tokens * manifest.shape.hidden_size


def peak_bytes(manifest: Manifest, stage: int) -> int:
    """The most that a visit takes while its passes run: its graph and what passes through; or, since the graph is freed
    as gradients come, all of its gradient and what passes through. Logits are there twice, as they are and as their
    gradient."""
    shape, settings = manifest.shape, manifest.settings
    tokens, width = visit_tokens(manifest), ELEMENT_BYTES[settings.model.compute_dtype]
    hidden, inner = shape.hidden_size, shape.intermediate_size
    largest = max(rows * columns for rows, columns in block_linears(shape, 0).values())
    form = base_form(manifest)
    passing = tokens * (2 * inner * width + 8 * hidden)
    if form in _TILES:
        passing += _TILES[form] * 4 * min(TILE_ELEMENTS, largest) + 4 * largest // NF4_BLOCK
        passing += 0 if width == 4 else 4 * tokens * (hidden + inner)
    if settings.train.mode == "full":
        passing += 4 * largest
    if stage == manifest.stages - 1:
        passing = max(passing, tokens * shape.vocab_size * (8 if width == 4 else 10))
    return passing + context_bytes(manifest, stage) + max(graph_bytes(manifest, stage), gradient_bytes(manifest, stage))


# ---- what crosses a boundary


@dataclass(frozen=True, slots=True)
class Traffic:
    """Coded bytes of one visit at one stage: its input and output, and the gradients of both."""

    input: int
    output: int
    output_gradient: int
    input_gradient: int

    @property
    def received(self) -> int:
        return self.input + self.output_gradient

    @property
    def sent(self) -> int:
        return self.output + self.input_gradient


def boundary_bytes(shape: LlamaShape, samples: int, length: int, codec: str, block: int) -> int:
    """Hidden states of one microbatch as they cross a stage boundary."""
    return encoded_bytes((samples, length, shape.hidden_size), CodecSpec.parse(codec, block))


def traffic(manifest: Manifest, stages: range) -> Traffic:
    """What one visit moves of a contiguous span of stages: nothing crosses the link inside it."""
    settings = manifest.settings
    samples, length = settings.train.microbatch, settings.data.sequence_length
    labels = TOKEN_BYTES * samples * length

    def coded(codec: str) -> int:
        return boundary_bytes(manifest.shape, samples, length, codec, settings.codecs.block)

    down, up = coded(settings.codecs.activations), coded(settings.codecs.gradients)
    is_first, is_last = stages.start == 0, stages.stop == manifest.stages
    return Traffic(
        input=labels + (labels if is_first else down),
        output=0 if is_last else labels + down,
        output_gradient=0 if is_last else up,
        input_gradient=0 if is_first else up,
    )
