"""The manifest: one training job, frozen, in canonical bytes whose digest is the run id.

An organizer writes `Settings` in TOML. `Manifest` adds what the organizer's machine resolves once: the model's shape,
the digests of weights and texts, the organizer's public key and a nonce. Every peer gets the canonical bytes and a
signature (`keys.py`), checks both, and derives everything else from them. Nothing here reads the network.

Errors: `ManifestError`, which names the field, what it got and what it wants.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..compression import CodecSpec
from ..errors import CodecError, ManifestError

PROTOCOL_VERSION = 1

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LlamaShape(_Frozen):
    """The shape of a Llama-family decoder, as in Hugging Face's config.json."""

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    vocab_size: Annotated[int, Field(gt=1)]
    max_position_embeddings: Positive
    rms_norm_eps: Rate
    rope_theta: Rate
    tie_word_embeddings: bool
    initializer_range: Rate = 0.02

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim % 2:
            raise ValueError("head_dim must be even (rotary embedding)")
        return self


class ModelSettings(_Frozen):
    """Which model, and where it is cut. `name`: `tiny`, a fetched name, an alias such as `llama-65b`, a folder, a Hub
    id such as `org/name`, or an http(s) URL. `base`: what the linear layers of a frozen base are held in; `auto` is
    the compute dtype."""

    name: Annotated[str, Field(min_length=1, max_length=4096)]
    stages: Positive = 3
    compute_dtype: Literal["fp32", "bf16", "auto"] = "fp32"
    base: Literal["auto", "fp32", "bf16", "int8", "nf4"] = "auto"


Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINEARS: tuple[Linear, ...] = get_args(Linear)


class TrainSettings(_Frozen):
    """What is trained: LoRA adapters on the linear layers of a frozen base named by `lora_targets`, or everything."""

    mode: Literal["lora", "full"] = "lora"
    lora_rank: Positive = 8
    lora_alpha: Rate = 16.0
    lora_targets: Annotated[tuple[Linear, ...], Field(min_length=1)] = LINEARS
    steps: Positive = 20
    batch: Positive = 8
    microbatch: Positive = 1

    @field_validator("lora_targets")
    @classmethod
    def _each_target_once(cls, targets: tuple[Linear, ...]) -> tuple[Linear, ...]:
        if len(set(targets)) != len(targets):
            raise ValueError(f"{', '.join(targets)}: names each linear layer once")
        return targets

    @model_validator(mode="after")
    def _microbatch_fits(self) -> Self:
        if self.microbatch > self.batch:
            raise ValueError(f"microbatch ({self.microbatch}) must not exceed batch ({self.batch})")
        return self


class DataSettings(_Frozen):
    """Which texts: names known to `swarm-peer fetch` (such as `shakespeare`) or paths of UTF-8 files.

    With `jsonl` each line of a file is a conversation, a completion or a text (`jsonl.py`). `loss_on`: the assistant's
    turns and completions are learned, or everything is. `chat_template`: Jinja; "" is the one in the model's folder.
    """

    format: Literal["text", "jsonl"] = "text"
    loss_on: Literal["assistant", "all"] = "assistant"
    chat_template: Annotated[str, Field(max_length=1 << 16)] = ""
    texts: Annotated[tuple[str, ...], Field(min_length=1)] = ("shakespeare",)
    heldout: Annotated[tuple[str, ...], Field(min_length=1)] = ("hamlet",)
    heldout_tokens: Positive = 2048
    sequence_length: Annotated[int, Field(ge=2)] = 128

    @model_validator(mode="after")
    def _text_has_no_template(self) -> Self:
        if self.format == "text" and self.chat_template:
            raise ValueError('chat_template is given, but format is "text": wanted format = "jsonl"')
        return self


class OptimizerSettings(_Frozen):
    """AdamW. The rate warms up linearly over `warmup_steps`, then follows `schedule` down to 0 at the last step.
    `state`: what the moments are kept in. `clip_updates`: StableAdamW's rule, a smaller rate where the second moment
    lags behind.
    """

    learning_rate: Rate = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    clip_norm: Rate = 1.0
    state: Literal["fp32", "8bit"] = "fp32"
    clip_updates: bool = False


class PipelineSettings(_Frozen):
    """How the swarm works: staleness of the update, replicas before step 0, open visits a stage of a peer.

    `heartbeat` and `silence` are seconds: a peer or trainer not heard for `silence` is taken for gone. With `standby`
    another trainer may take over: then peers stay with a trainer that they hear, and a step is committed only with more
    than half of the members of the last Commit. For `patience` seconds a stage whose state nobody has any more waits
    for a replica that returns; then the run goes back to a checkpoint. At most every `rebalance`
    seconds a peer moves to a stage that needs it more (0: never). `routing` is how a caller chooses among the replicas
    of a stage.
    """

    staleness: Literal[0, 1] = 1
    min_replicas: Positive = 1
    slots: Positive = 8
    heartbeat: Rate = 1.0
    silence: Rate = 3.0
    standby: bool = False
    patience: Rate = 30.0
    rebalance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0
    routing: Literal["least-work", "round-robin"] = "least-work"

    @model_validator(mode="after")
    def _silence_is_longer(self) -> Self:
        if self.silence < 2 * self.heartbeat:
            raise ValueError(f"silence ({self.silence} s) must be at least two heartbeats of {self.heartbeat} s")
        return self


def _parse_codec(text: str, block: int = 256) -> None:
    try:
        CodecSpec.parse(text, block)
    except CodecError as error:
        raise ValueError(str(error)) from error


class CodecSettings(_Frozen):
    """Wire codecs per direction, as `compression.CodecSpec.parse` reads them (`int8`, `int4+rotation`); `block`
    elements share one scale. `reduce` carries gradients between replicas."""

    activations: str = "int8"
    gradients: str = "dynamic8"
    reduce: str = "fp32"
    block: Annotated[int, Field(ge=64, le=4096)] = 256

    @field_validator("activations", "gradients", "reduce")
    @classmethod
    def _is_codec(cls, text: str) -> str:
        _parse_codec(text)
        return text

    @model_validator(mode="after")
    def _take_the_block(self) -> Self:
        for text in (self.activations, self.gradients, self.reduce):
            _parse_codec(text, self.block)
        return self


class LimitSettings(_Frozen):
    """Bounds of one peer, in bytes: gradients kept apart per microbatch, one message's payload, and what visits have
    sent, in memory (`visit_bytes`) and then on disk (`spill_bytes`)."""

    gradient_bytes: Positive = 1 << 30
    payload_bytes: Positive = 256 << 20
    visit_bytes: NotNegative = 1 << 30
    spill_bytes: NotNegative = 16 << 30


class Settings(_Frozen):
    """What an organizer writes."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: ModelSettings
    train: TrainSettings = TrainSettings()
    data: DataSettings = DataSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    pipeline: PipelineSettings = PipelineSettings()
    codecs: CodecSettings = CodecSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _quantized_is_frozen(self) -> Self:
        if self.train.mode == "full" and self.model.base not in ("auto", "fp32"):
            raise ValueError(f"model.base is {self.model.base!r}: what is trained whole is held in fp32; wanted lora")
        return self


class Weights(_Frozen):
    """Which checkpoint, wherever a copy of it lies.

    `headers`: over the shape and every tensor's name, dtype and shape, not over how they are spread over files.
    `pieces`: over the values as well, one each for the embedding, every layer, the final norm and a head that is not
    tied; empty where the organizer has not read them. `revision`: of a remote source `source@version`, else empty.
    """

    headers: Sha256
    revision: Annotated[str, Field(max_length=8192)] = ""
    pieces: tuple[Sha256, ...] = ()


class Manifest(_Frozen):
    """One run, resolved and frozen. `weights` and `tokenizer_sha256` are None where none exist (tiny);
    `chat_sha256`, of chat template and special tokens, is None for plain text."""

    protocol: Literal[1] = 1
    settings: Settings
    shape: LlamaShape
    weights: Weights | None = None
    tokenizer_sha256: Sha256 | None = None
    chat_sha256: Sha256 | None = None
    texts_sha256: tuple[Sha256, ...]
    heldout_sha256: tuple[Sha256, ...]
    organizer: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="Ed25519 public key, hex")]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        settings = self.settings
        if settings.model.compute_dtype == "auto":
            raise ValueError("model.compute_dtype must be resolved (fp32 or bf16) before a manifest is frozen")
        if settings.model.stages > self.shape.num_hidden_layers:
            raise ValueError(
                f"model.stages is {settings.model.stages}, but the model has {self.shape.num_hidden_layers} layers; "
                "each stage needs at least one"
            )
        pieces = self.shape.num_hidden_layers + (2 if self.shape.tie_word_embeddings else 3)
        if self.weights is not None and len(self.weights.pieces) not in (0, pieces):
            raise ValueError(f"weights.pieces has {len(self.weights.pieces)} digests; wanted {pieces}, or none")
        if settings.data.sequence_length > self.shape.max_position_embeddings:
            raise ValueError(
                f"data.sequence_length is {settings.data.sequence_length}, but the model reaches "
                f"{self.shape.max_position_embeddings} positions"
            )
        return self

    @property
    def stages(self) -> int:
        return self.settings.model.stages

    @property
    def microbatches(self) -> int:
        """Microbatches of one step; the last one may be smaller."""
        return -(-self.settings.train.batch // self.settings.train.microbatch)

    def layers(self, stage: int) -> range:
        """The layers of a stage: contiguous, and as equal as can be, earlier stages taking what is left over."""
        per_stage, left_over = divmod(self.shape.num_hidden_layers, self.stages)
        first = stage * per_stage + min(stage, left_over)
        return range(first, first + per_stage + (stage < left_over))

    @property
    def tied(self) -> bool:
        """Whether stages 0 and S-1 train one shared tensor (DECISIONS: no such group when S = 1)."""
        return self.shape.tie_word_embeddings and self.settings.train.mode == "full" and self.stages > 1

    def canonical(self) -> bytes:
        """The one byte form: JSON with sorted keys, no spaces, ASCII, shortest round-trip floats."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        ).encode("ascii")

    @cached_property
    def run_id(self) -> str:
        """sha256 of the canonical bytes, hex."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("run_id", None)  # of what was copied
        return copied


def _explain(error: ValidationError, where: str) -> ManifestError:
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "the whole"
        got = "" if problem["type"] in ("missing", "value_error") else f" (got {problem['input']!r})"
        lines.append(f"{where}: {field}: {problem['msg']}{got}")
    return ManifestError("\n".join(lines))


def _tuples(value: Any) -> Any:
    """TOML and JSON have lists where the frozen models hold tuples."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(entry) for entry in value)
    return value


def parse_settings(text: str, where: str = "manifest") -> Settings:
    """Reads an organizer's TOML. Raises `ManifestError`."""
    try:
        return Settings.model_validate(_tuples(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{where}: not TOML: {error}") from error
    except ValidationError as error:
        raise _explain(error, where) from error


def load_settings(path: Path) -> Settings:
    """Reads an organizer's TOML file. Raises `ManifestError`."""
    try:
        return parse_settings(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from error


def freeze(**fields: Any) -> Manifest:
    """`Manifest(**fields)` with `ManifestError` in place of pydantic's."""
    try:
        return Manifest(**fields)
    except ValidationError as error:
        raise _explain(error, "manifest") from error


def parse_manifest(canonical: bytes) -> Manifest:
    """Reads canonical bytes from the wire. Raises `ManifestError`, also when they are not in canonical form."""
    try:
        manifest = Manifest.model_validate(_tuples(json.loads(canonical)))
    except ValidationError as error:
        raise _explain(error, "manifest") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"manifest: not JSON: {error}") from error
    if manifest.canonical() != canonical:
        raise ManifestError("manifest: the bytes are not in canonical form")
    return manifest
