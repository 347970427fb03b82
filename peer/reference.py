"""The single-process reference: what one machine computes for a manifest, by other means than the swarm.

Written apart from host, trainer, transport, stages, backend and optimizer, so that agreement proves something. It
shares the manifest, the data, the codecs, the initial values and how nf4 and int8 are decoded, and nothing else: the
model is `transformers`' whole `LlamaForCausalLM`, the codecs act in hooks at the stage cuts, LoRA is a wrapper module,
the update is `torch.optim.AdamW`. Staleness is kept by holding two versions of the parameters.

Errors: `ModelError` for a checkpoint that cannot be loaded; `NonFiniteError` when loss or gradient is not finite.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ..compression import CodecSpec, decode, encode
from ..compression.linear import QuantizedLinear, quantized
from ..errors import ModelError, NonFiniteError
from ..swarm.data import IGNORED, TokenArray, TokenSource, TrainingOrder, heldout_batches
from ..swarm.initial import base_tensor, lora_tensor
from ..swarm.manifest import Manifest
from ..swarm.model.checkpoint import Checkpoint
from ..swarm.model.files import FolderFiles
from ..swarm.model.names import pieces

Step = dict[str, float | int]
Microbatch = tuple[Tensor, Tensor]


class _Cut(torch.autograd.Function):
    """decode(encode(.)) of what crosses a stage boundary: hidden states going down, their gradient coming back."""

    @staticmethod
    def forward(context: Any, hidden: Tensor, activations: CodecSpec, gradients: CodecSpec) -> Tensor:
        context.gradients = gradients
        return _coded(hidden, activations)

    @staticmethod
    def backward(context: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        return _coded(outputs[0], context.gradients), None, None


def _coded(tensor: Tensor, spec: CodecSpec) -> Tensor:
    return decode(encode(tensor.detach().float(), spec)).to(tensor.dtype)


class _LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank path beside it."""

    def __init__(self, base: nn.Linear | QuantizedLinear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.base(hidden) + self.scale * ((hidden @ self.lora_A.T) @ self.lora_B.T)
        return output


def _based(linear: nn.Linear, base: str) -> nn.Linear | QuantizedLinear:
    """A linear layer with its weight in a base format; the products with an nf4 weight are torch's."""
    weight = linear.weight.data
    if base == "int8":
        return quantized(base, weight)
    if base == "nf4":
        linear.weight.data = quantized(base, weight).weight()
    elif base == "bf16":
        linear.weight.data = weight.to(torch.bfloat16).to(weight.dtype)
    return linear


def _decoded(folder: Path) -> tuple[dict[str, Tensor], set[str]] | None:
    """What a checkpoint with weights in nf4 stands for, float32, and the names of these; None for any other."""
    with Checkpoint(FolderFiles(folder)) as checkpoint:
        if not checkpoint.is_nf4:
            return None
        tensors, packed = dict[str, Tensor](), set[str]()
        for name, weight in checkpoint.read(pieces(checkpoint.shape)):
            if isinstance(weight, QuantizedLinear):
                packed.add(name)
            tensors[name] = weight.weight() if isinstance(weight, QuantizedLinear) else weight.float()
    return tensors, packed


def _build_model(manifest: Manifest, folder: Path | None) -> Any:
    """The whole model at its base weights, with codec hooks at the cuts and LoRA where the manifest asks for it."""
    # Here, not at the top: peers import this package, and transformers' models cost 88 MB and seconds.
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    transformers_logging: Any = logging
    shape, settings = manifest.shape, manifest.settings
    values = shape.model_dump()
    theta = values.pop("rope_theta")
    # No padding token: torch's embedding would drop that row's gradient.
    config = LlamaConfig(
        **values, pad_token_id=None, use_cache=False, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    config._attn_implementation = "sdpa"
    packed = set[str]()
    if folder is None:
        model: Any = LlamaForCausalLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(base_tensor(settings.seed, name, parameter.shape, shape.initializer_range))
    else:
        transformers_logging.disable_progress_bar()
        decoded = _decoded(folder)
        tensors, packed = decoded or (None, packed)
        try:
            model = LlamaForCausalLM.from_pretrained(
                None if decoded else folder,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"{folder}: transformers cannot load it: {error}") from error
    model.eval()
    activations = CodecSpec.parse(settings.codecs.activations, settings.codecs.block)
    evaluation = CodecSpec.parse(settings.model.compute_dtype)
    gradients = CodecSpec.parse(settings.codecs.gradients, settings.codecs.block)
    cut: Any = _Cut.apply

    def crossed(_module: Any, _inputs: Any, output: Any) -> Any:
        return cut(output, activations if torch.is_grad_enabled() else evaluation, gradients)

    for stage in range(manifest.stages - 1):
        last_layer = model.model.layers[manifest.layers(stage)[-1]]
        last_layer.register_forward_hook(crossed)
    if settings.train.mode == "lora":
        model.requires_grad_(False)
        for number, layer in enumerate(model.model.layers):
            for where, part in (("self_attn", layer.self_attn), ("mlp", layer.mlp)):
                for name, linear in list(part.named_children()):
                    if isinstance(linear, nn.Linear):
                        is_based = f"model.layers.{number}.{where}.{name}.weight" in packed
                        based = linear if is_based else _based(linear, settings.model.base)
                        adapted = name in settings.train.lora_targets
                        rank, alpha = settings.train.lora_rank, settings.train.lora_alpha
                        setattr(part, name, _LoraLinear(based, rank, alpha) if adapted else based)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(lora_tensor(settings.seed, name, parameter.shape))
    return model


class _Reference:
    """The model and its two live versions; `current` is what the optimizer changes in place."""

    def __init__(self, manifest: Manifest, folder: Path | None) -> None:
        self.manifest = manifest
        self.dtype = torch.bfloat16 if manifest.settings.model.compute_dtype == "bf16" else torch.float32
        self.model = _build_model(manifest, folder)
        named = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        self.current = {name: value.detach().clone().requires_grad_() for name, value in named}
        self.previous = self.current
        for value in self.model.parameters():  # not model.to(): that rounds the rotary frequencies too
            value.data = value.data.to(self.dtype)
        settings = manifest.settings.optimizer
        matrices = [value for value in self.current.values() if value.ndim >= 2]
        vectors = [value for value in self.current.values() if value.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], betas=(settings.beta1, settings.beta2), eps=settings.eps
        )

    def loss(self, version: dict[str, Tensor], batch: Microbatch) -> Tensor:
        """Cross entropy in nats, summed over the tokens of one microbatch that are learned."""
        tokens, labels = batch
        computed = {name: value.to(self.dtype) for name, value in version.items()}
        logits = functional_call(self.model, computed, (tokens,)).logits.float()
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def step(self, step: int, batches: Iterable[Microbatch], *, late: bool) -> Step:
        """Computes g_step, at version step - 1 if it is `late`, and makes version step + 1 from version `step`."""
        started = time.perf_counter()
        settings = self.manifest.settings
        version = self.previous if late else self.current
        names = list(version)
        total, loss, tokens = {name: torch.zeros_like(version[name]) for name in names}, 0.0, 0
        for batch in batches:
            summed = self.loss(version, batch)
            for name, gradient in zip(names, torch.autograd.grad(summed, [version[n] for n in names]), strict=True):
                total[name] += gradient
            loss += summed.item()
            tokens += _learned(batch)
        norm = math.sqrt(sum(value.double().square().sum().item() for value in total.values())) / tokens
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFiniteError(f"step {step}: loss is {loss}, gradient norm is {norm}; lower the learning rate")
        shrink = 1.0 if norm <= settings.optimizer.clip_norm else settings.optimizer.clip_norm / norm
        self.previous = {name: value.detach().clone().requires_grad_() for name, value in self.current.items()}
        for name, value in self.current.items():
            value.grad = total[name] * (shrink / tokens)
        for group in self.optimizer.param_groups:
            group["lr"] = _rate(self.manifest, step)
        self.optimizer.step()
        return {
            "step": step,
            "loss": loss / tokens,
            "grad_norm": norm,
            "tokens": tokens,
            "seconds": time.perf_counter() - started,
            "version": max(0, step - 1) if late else step,
        }

    @torch.no_grad()
    def heldout(self, batches: Iterable[Microbatch]) -> float:
        """Nats per learned token at the current version, with nothing lost between the stages."""
        loss, tokens = 0.0, 0
        for batch in batches:
            loss += self.loss(self.current, batch).item()
            tokens += _learned(batch)
        return loss / tokens


def _learned(batch: Microbatch) -> int:
    return int((batch[1] != IGNORED).sum())


def _tensors(batch: tuple[TokenArray, TokenArray]) -> Microbatch:
    tokens, labels = batch
    return torch.from_numpy(tokens).long(), torch.from_numpy(labels).long()


def _microbatches(manifest: Manifest, order: TrainingOrder, step: int) -> list[Microbatch]:
    return [_tensors(order.sample(step, index)) for index in range(manifest.microbatches)]


def _rate(manifest: Manifest, step: int) -> float:
    settings, steps = manifest.settings.optimizer, manifest.settings.train.steps
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}
    return settings.learning_rate * shape[settings.schedule]


def run_reference(
    manifest: Manifest,
    corpus: TokenSource,
    heldout_corpus: TokenSource,
    base_folder: Path | None,
    progress: Callable[[Step], None] | None = None,
    late: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Trains the manifest's steps in this process; `base_folder` is None for a run with a random base. `late`: of each
    step, whether its gradient is computed one version before what it updates; None: as the manifest has it.

    `progress` is called with each finished step's entry. The report has the shape of `demo`'s, without what a single
    process does not have (faults, replicas, ledger, wire): losses in nats per label token, `grad_norm` of the summed
    gradient per token before clipping, `seconds` of each step, `version` the one that its gradient was computed at.
    """
    if base_folder is None and manifest.weights is not None:
        raise ModelError(
            f"the model {manifest.settings.model.name!r} is not on this machine, and the reference trains the whole of "
            "it: download it, and pass its folder as --model"
        )
    reference = _Reference(manifest, base_folder)
    held = [_tensors(batch) for batch in heldout_batches(manifest, heldout_corpus)]
    order = TrainingOrder(manifest, corpus)
    before = reference.heldout(held)
    steps: list[Step] = []
    for step in range(manifest.settings.train.steps):
        is_late = manifest.settings.pipeline.staleness == 1 if late is None else late[step]
        entry = reference.step(step, _microbatches(manifest, order, step), late=is_late)
        steps.append(entry)
        if progress is not None:
            progress(entry)
    after = reference.heldout(held)
    return {"run_id": manifest.run_id, "steps": steps, "heldout": {"before": before, "after": after}}
