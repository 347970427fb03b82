"""What a run has trained, as files that `peft` and `transformers` load.

`export_adapter` writes a PEFT LoRA adapter; `export_model` a whole checkpoint in Hugging Face's layout, tensor by
tensor, with adapters merged into the base that they were trained on (decoded from nf4 or int8). Both are written beside
their place and renamed: a folder that is there is whole.

Errors: `UsageError` if the folder holds something already or is asked for what the run does not have, `StorageError`
if it cannot be written.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..compression.linear import QuantizedLinear, quantized
from ..errors import UsageError
from .collecting import Collected
from .manifest import Manifest
from .model.checkpoint import Weight
from .model.folder import MergedType, Shards, copy_tokenizer, model_config, new_folder, write_json
from .model.names import block_linears

_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def export_adapter(
    folder: Path, manifest: Manifest, collected: Collected, notes: Mapping[str, Any] | None = None
) -> None:
    """Writes `adapter_model.safetensors` (fp32), `adapter_config.json` and a README. `notes`: more for the README."""
    train = manifest.settings.train
    if train.mode != "lora":
        raise UsageError("this run trains the whole model: export it with --merge, as a checkpoint")
    tensors = {}
    for stage in range(manifest.stages):
        for name, tensor in collected.states[stage].parameters.items():
            layer, factor = name.rsplit(".", 1)
            tensors[f"base_model.model.{layer}.{factor}.weight"] = tensor.detach().cpu().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": manifest.settings.model.name,
        "r": train.lora_rank,
        "lora_alpha": train.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": list(train.lora_targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with new_folder(folder) as made:
        save_file(tensors, made / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(made / "adapter_config.json", config)
        _write_card(made, "peft", manifest, collected, notes or {})


def export_model(
    folder: Path,
    manifest: Manifest,
    collected: Collected,
    base: Iterable[tuple[str, Weight]],
    *,
    dtype: MergedType = "bf16",
    tokenizer: Path | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes the whole model: `base` gives its tensors one by one, in any order (none where everything was trained).
    `tokenizer`: the folder of its tokenizer, which is copied."""
    with new_folder(folder) as made:
        writer = Shards(made)
        for name, tensor in _merged(manifest, collected, base):
            writer.add(name, tensor.to(_TYPES[dtype]).contiguous())
        writer.finish()
        write_json(made / "config.json", model_config(manifest.shape, dtype))
        if tokenizer is not None:
            copy_tokenizer(tokenizer, made)
        _write_card(made, "transformers", manifest, collected, notes or {})


def _merged(
    manifest: Manifest, collected: Collected, base: Iterable[tuple[str, Weight]]
) -> Iterator[tuple[str, Tensor]]:
    settings = manifest.settings
    trained = {name: tensor for state in collected.states.values() for name, tensor in state.parameters.items()}
    if settings.train.mode == "full":
        yield from trained.items()
        return
    shape = manifest.shape
    linears = {name for layer in range(shape.num_hidden_layers) for name in block_linears(shape, layer)}
    scale = settings.train.lora_alpha / settings.train.lora_rank
    for name, tensor in base:
        layer = name.removesuffix(".weight")
        wide = as_held(tensor, settings.model.base if layer in linears else "fp32")
        if layer in linears:
            down, up = trained.get(f"{layer}.lora_A"), trained.get(f"{layer}.lora_B")
            if down is not None and up is not None:
                wide = wide + scale * (up @ down)
        yield name, wide


def as_held(weight: Weight, base: str) -> Tensor:
    """What a stage computes with that holds this weight in a base format, fp32."""
    if isinstance(weight, QuantizedLinear):
        return weight.weight()
    if base in ("nf4", "int8"):
        return quantized(base, weight).weight()
    return weight.to(torch.bfloat16).float() if base == "bf16" else weight.float()


def _write_card(folder: Path, library: str, manifest: Manifest, collected: Collected, notes: Mapping[str, Any]) -> None:
    settings = manifest.settings
    rows = {
        "base model": settings.model.name,
        "run": manifest.run_id,
        "version": f"{collected.version} of {settings.train.steps}",
        "base held in": settings.model.base if settings.model.base != "auto" else settings.model.compute_dtype,
        "wire codecs": f"{settings.codecs.activations} down, {settings.codecs.gradients} back",
        "texts": ", ".join(Path(name).name for name in settings.data.texts),
        **notes,
    }
    lines = [
        "---",
        f"library_name: {library}",
        "---",
        "",
        f"# Trained with swarm-peer on {Path(settings.model.name).name}",
        "",
        *(f"- {name}: {value}" for name, value in rows.items()),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
