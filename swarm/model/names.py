"""Which tensors make up a stage: their names (Hugging Face's layout) and shapes, from the manifest alone.

Stage 0 holds the embedding, the last stage the norm and the head. With tied embeddings the head is
`model.embed_tokens.weight`, which the last stage then holds as well, under the same name. LoRA factors hang off the
linear layers of every block: `<linear>.lora_A` [rank, in] and `<linear>.lora_B` [out, rank].

A checkpoint is digested in pieces (`Weights.pieces`), and every stage holds whole pieces.
"""

from collections.abc import Collection
from dataclasses import dataclass

from ..manifest import LINEARS, LlamaShape, Manifest

Shapes = dict[str, tuple[int, ...]]

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a checkpoint with a digest of its own. `number`: its place in `Weights.pieces`; `label`: for people."""

    number: int
    label: str
    shapes: Shapes


def block_prefix(layer: int) -> str:
    """`model.layers.3.`: what the names of one block's tensors begin with."""
    return f"model.layers.{layer}."


def block_linears(shape: LlamaShape, layer: int) -> dict[str, tuple[int, int]]:
    """The seven linear layers of one block: name without `.weight` -> (out, in)."""
    prefix = block_prefix(layer)
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    return {
        prefix + "self_attn.q_proj": (queries, hidden),
        prefix + "self_attn.k_proj": (keys, hidden),
        prefix + "self_attn.v_proj": (keys, hidden),
        prefix + "self_attn.o_proj": (hidden, queries),
        prefix + "mlp.gate_proj": (inner, hidden),
        prefix + "mlp.up_proj": (inner, hidden),
        prefix + "mlp.down_proj": (hidden, inner),
    }


def base_shapes(shape: LlamaShape, layers: range, *, is_first: bool, is_last: bool) -> Shapes:
    """The checkpoint's tensors that a stage of these layers needs: name -> shape."""
    shapes: Shapes = {}
    if is_first or (is_last and shape.tie_word_embeddings):
        shapes[EMBEDDING] = (shape.vocab_size, shape.hidden_size)
    for layer in layers:
        shapes |= {f"{name}.weight": size for name, size in block_linears(shape, layer).items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block_prefix(layer)}{norm}.weight"] = (shape.hidden_size,)
    if is_last:
        shapes[NORM] = (shape.hidden_size,)
        if not shape.tie_word_embeddings:
            shapes[HEAD] = (shape.vocab_size, shape.hidden_size)
    return shapes


def pieces(shape: LlamaShape) -> tuple[Piece, ...]:
    """The whole checkpoint: the embedding, each layer in order, the final norm, and the head unless it is tied."""
    parts: list[tuple[str, Shapes]] = [("the embedding", {EMBEDDING: (shape.vocab_size, shape.hidden_size)})]
    for layer in range(shape.num_hidden_layers):
        only = range(layer, layer + 1)
        parts.append((f"layer {layer}", base_shapes(shape, only, is_first=False, is_last=False)))
    parts.append(("the final norm", {NORM: (shape.hidden_size,)}))
    if not shape.tie_word_embeddings:
        parts.append(("the head", {HEAD: (shape.vocab_size, shape.hidden_size)}))
    return tuple(Piece(number, label, shapes) for number, (label, shapes) in enumerate(parts))


def lora_shapes(shape: LlamaShape, layers: range, rank: int, targets: Collection[str] = LINEARS) -> Shapes:
    """The LoRA factors of a stage of these layers, on the linear layers called `targets`: name -> shape."""
    shapes: Shapes = {}
    for layer in layers:
        for name, (rows, columns) in block_linears(shape, layer).items():
            if name.rpartition(".")[2] not in targets:
                continue
            shapes[f"{name}.lora_A"] = (rank, columns)
            shapes[f"{name}.lora_B"] = (rows, rank)
    return shapes


def stage_base_shapes(manifest: Manifest, stage: int) -> Shapes:
    """`base_shapes` of a stage of a run."""
    is_first, is_last = stage == 0, stage == manifest.stages - 1
    return base_shapes(manifest.shape, manifest.layers(stage), is_first=is_first, is_last=is_last)


def stage_pieces(manifest: Manifest, stage: int) -> tuple[Piece, ...]:
    """The pieces that together are `stage_base_shapes`."""
    wanted = stage_base_shapes(manifest, stage)
    return tuple(piece for piece in pieces(manifest.shape) if piece.shapes.keys() <= wanted.keys())


def trainable_shapes(manifest: Manifest, stage: int) -> Shapes:
    """The tensors that a stage trains: its LoRA factors, or in full training everything it holds."""
    if manifest.settings.train.mode == "full":
        return stage_base_shapes(manifest, stage)
    train = manifest.settings.train
    return lora_shapes(manifest.shape, manifest.layers(stage), train.lora_rank, train.lora_targets)
