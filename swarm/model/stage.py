"""One stage as a pure function: the parameters of a version are passed in, so two versions can serve at a time.

Stage 0 turns token ids into the residual stream, the last stage turns it into the token-summed loss, and those between
pass it on. With one stage the same function goes from token ids to the loss.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..manifest import LlamaShape
from .block import Parameters, block, rms_norm, rotary_tables
from .names import EMBEDDING, HEAD, NORM


def stage_forward(
    parameters: Parameters,
    shape: LlamaShape,
    layers: range,
    *,
    is_first: bool,
    is_last: bool,
    inputs: Tensor,
    labels: Tensor | None = None,
    lora_scale: float = 1.0,
    compute_dtype: torch.dtype = torch.float32,
    recompute: bool = False,
) -> Tensor:
    """Runs the layers of one stage. With `recompute` the graph keeps only what enters each layer, and a backward pass
    runs each forward once more (Chen et al., "Training deep nets with sublinear memory cost", 2016): the same bits.

    `parameters`: base and trainable tensors by name. `inputs`: token ids, int64 [batch, time], for the first stage;
    else hidden states [batch, time, hidden]. `labels`: int64 [batch, time], for the last stage, already shifted:
    position i predicts labels[i]; a label of -100 does not count. `lora_scale` is alpha / rank.

    Returns hidden states [batch, time, hidden] in the compute dtype, or for the last stage the cross entropy in nats
    summed over all tokens that count, an fp32 scalar. Raises `ValueError` for a last stage without labels.
    """
    if is_first:
        hidden = functional.embedding(inputs, parameters[EMBEDDING]).to(compute_dtype)
    else:
        hidden = inputs.to(compute_dtype)
    tables = rotary_tables(shape, hidden.shape[1], hidden)
    for layer in layers:
        if recompute:
            run = partial(block, parameters, layer, shape, tables=tables, lora_scale=lora_scale)
            hidden = checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden = block(parameters, layer, shape, hidden, tables, lora_scale)
    if not is_last:
        return hidden
    if labels is None:
        raise ValueError("the last stage needs labels")
    normed = rms_norm(hidden, parameters[NORM], shape.rms_norm_eps)
    head = parameters[EMBEDDING if shape.tie_word_embeddings else HEAD]
    logits = functional.linear(normed, head.to(compute_dtype)).float()
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
