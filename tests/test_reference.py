"""The stages of the torch backend, driven one after the other, against the reference loop: every step's numbers.

The loop below is the swarm without a swarm: one member a stage, nothing on the wire, delayed update. It shares with
`peer/reference.py` the manifest, the data, the codecs and the initial values only.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from swarm_peer.errors import ModelError
from swarm_peer.peer.reference import run_reference
from swarm_peer.swarm.arithmetic import RealArithmetic
from swarm_peer.swarm.backend import StageInput
from swarm_peer.swarm.data import Corpus, TrainingOrder, heldout_batches, tokens_to_bytes
from swarm_peer.swarm.manifest import (
    CodecSettings,
    DataSettings,
    LlamaShape,
    Manifest,
    ModelSettings,
    OptimizerSettings,
    PipelineSettings,
    Settings,
    TrainSettings,
    Weights,
    freeze,
)
from swarm_peer.swarm.model.checkpoint import Checkpoint
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.model.files import FolderFiles
from swarm_peer.swarm.model.folder import model_config
from swarm_peer.swarm.model.weights import stage_base
from swarm_peer.swarm.tokenizer import ByteTokenizer
from swarm_peer.swarm.torch_backend import TorchBackend

LENGTH = 32
TEXT = " ".join(f"The {n}th line says {n * n % 97} and no more than that." for n in range(400)).encode()
HELDOUT = " ".join(f"An unseen line, {n * 31 % 89} long, of another kind!" for n in range(100)).encode()
FP32 = CodecSettings(activations="fp32", gradients="fp32")
EIGHT_BIT = CodecSettings(activations="int8", gradients="dynamic8")


def manifest(mode: Any, staleness: Any, codecs: CodecSettings, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "settings": Settings(
            seed=3,
            model=ModelSettings(name="tiny", stages=changes.pop("stages", 3)),
            train=TrainSettings(
                mode=mode, steps=changes.pop("steps", 12), batch=4, microbatch=changes.pop("microbatch", 2)
            ),
            data=DataSettings(sequence_length=LENGTH, heldout_tokens=128),
            pipeline=PipelineSettings(staleness=staleness),
            optimizer=changes.pop("optimizer", OptimizerSettings(learning_rate=1e-3)),
            codecs=codecs,
        ),
        "shape": TINY,
        "texts_sha256": ("0" * 64,),
        "heldout_sha256": ("0" * 64,),
        "organizer": "0" * 64,
        "nonce": "0" * 32,
    }
    return freeze(**{**fields, **changes})


class Pipeline:
    """All stages of a run in one process, with one member each."""

    def __init__(self, run: Manifest, folder: Path | None = None) -> None:
        self.run = run
        base = None if folder is None else Checkpoint(FolderFiles(folder))
        self.stages = [TorchBackend(run, stage, stage_base(run, stage, base)) for stage in range(run.stages)]
        self.versions = [[stage.initial_state() for stage in self.stages]]

    def loss(self, states: list[Any], batch: Any, step: int, index: int, train: bool) -> tuple[float, list[Any]]:
        tokens, labels = batch
        data, contexts, loss = tokens_to_bytes(tokens), [], 0.0
        for stage, state in zip(self.stages, states, strict=True):
            visit = StageInput(step, index, len(tokens), data, tokens_to_bytes(labels))
            result = stage.forward(state, visit, train=train)
            contexts.append(result.context)
            data, loss = result.output or b"", result.loss or 0.0
        return loss, contexts

    def gradients(self, states: list[Any], contexts: list[Any]) -> list[Any]:
        coded, gradients = None, []
        for stage, state, context in zip(self.stages[::-1], states[::-1], contexts[::-1], strict=True):
            result = stage.backward(state, context, coded)
            coded = result.input_gradient
            gradients.append(result.gradient)
        return gradients[::-1]

    def heldout(self, batches: Any) -> float:
        losses = [(self.loss(self.versions[-1], batch, 0, 0, train=False)[0], batch[1].size) for batch in batches]
        return sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)

    def step(self, step: int, batches: Any) -> dict[str, float]:
        version = max(0, step - self.run.settings.pipeline.staleness)
        states, arithmetic = self.versions[version], RealArithmetic(self.run)
        held: list[list[Any]] = [[] for _ in self.stages]
        total, tokens = 0.0, 0
        for index, batch in enumerate(batches):
            loss, contexts = self.loss(states, batch, step, index, train=True)
            for gradients, gradient in zip(held, self.gradients(states, contexts), strict=True):
                gradients.append(gradient)
            total, tokens = total + loss, tokens + batch[1].size
        sums = [stage.add(gradients) for stage, gradients in zip(self.stages, held, strict=True)]
        contributions: dict[tuple[int, str], list[bytes]] = {}
        for place, (stage, gradient) in enumerate(zip(self.stages, sums, strict=True)):
            for group, length in stage.lengths.items():
                # The tied group is one, over the members of both ends.
                key = (0 if group == "tied" else place, group)
                contributions.setdefault(key, []).append(stage.slice(gradient, group, 0, length))
        squared = 0.0
        reduced: dict[tuple[int, str], list[bytes]] = {}
        for (place, group), slices in contributions.items():
            coded, norm = self.stages[place].reduce(group, slices, self.stages[place].lengths[group])
            reduced[place, group] = [coded]
            squared += float(norm)
        update = arithmetic.update(step, squared, tokens)
        self.versions.append(
            [
                stage.apply(
                    state, {group: reduced[0 if group == "tied" else place, group] for group in stage.lengths}, update
                )
                for place, (stage, state) in enumerate(zip(self.stages, self.versions[step], strict=True))
            ]
        )
        return {"loss": total / tokens, "grad_norm": squared**0.5 / tokens, "tokens": tokens, "version": version}


def corpora() -> tuple[Corpus, Corpus]:
    tokenizer = ByteTokenizer()
    return Corpus(tokenizer.encode(TEXT.decode())), Corpus(tokenizer.encode(HELDOUT.decode()))


def step_batches(run: Manifest, corpus: Corpus, step: int) -> list[Any]:
    return [TrainingOrder(run, corpus).sample(step, index) for index in range(run.microbatches)]


def compare(run: Manifest, tolerance: float, folder: Path | None = None) -> dict[str, Any]:
    """Runs both; asserts that they agree in every step and on held-out text; returns the reference's report."""
    torch.set_num_threads(1)
    corpus, heldout = corpora()
    seen: list[Any] = []
    report = run_reference(run, corpus, heldout, folder, progress=seen.append)
    assert seen == report["steps"]
    assert report["run_id"] == run.run_id
    pipeline = Pipeline(run, folder)
    before = pipeline.heldout(heldout_batches(run, heldout))
    worst = abs(before - report["heldout"]["before"])
    for step, entry in enumerate(report["steps"]):
        ours = pipeline.step(step, step_batches(run, corpus, step))
        assert (entry["step"], entry["version"], entry["tokens"]) == (step, ours["version"], ours["tokens"])
        worst = max(worst, abs(ours["loss"] - entry["loss"]), abs(ours["grad_norm"] / entry["grad_norm"] - 1))
        assert ours["loss"] == pytest.approx(entry["loss"], rel=tolerance), f"step {step}"
        assert ours["grad_norm"] == pytest.approx(entry["grad_norm"], rel=tolerance), f"step {step}"
    after = pipeline.heldout(heldout_batches(run, heldout))
    assert before == pytest.approx(report["heldout"]["before"], rel=tolerance)
    assert after == pytest.approx(report["heldout"]["after"], rel=tolerance)
    print(f"worst difference {max(worst, abs(after - report['heldout']['after'])):.2e}")
    return report


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize(("codecs", "tolerance"), [(FP32, 1e-4), (EIGHT_BIT, 1e-3)], ids=["fp32", "8bit"])
def test_stages_follow_the_reference(mode: str, staleness: int, codecs: CodecSettings, tolerance: float) -> None:
    report = compare(manifest(mode, staleness, codecs), tolerance)
    assert [entry["version"] for entry in report["steps"]] == [max(0, step - staleness) for step in range(12)]
    if mode == "full":
        assert report["heldout"]["after"] < report["heldout"]["before"] - 0.1


@pytest.mark.parametrize("stages", [1, 2, 6])
def test_wherever_the_model_is_cut(stages: int) -> None:
    compare(manifest("full", 1, FP32, stages=stages, steps=4), 1e-4)


def test_clipping_decay_schedule_and_a_short_last_microbatch() -> None:
    optimizer = OptimizerSettings(
        learning_rate=3e-3, schedule="cosine", warmup_steps=2, weight_decay=0.1, clip_norm=0.05, beta2=0.95
    )
    run = manifest("full", 1, FP32, steps=6, microbatch=3, optimizer=optimizer)
    report = compare(run, 1e-4)
    assert all(entry["grad_norm"] > optimizer.clip_norm for entry in report["steps"])


def test_lossy_codecs_change_the_numbers() -> None:
    """So that agreement under 8-bit codecs means that both sides applied them."""
    reports = []
    for codecs in (FP32, EIGHT_BIT):
        run = manifest("full", 0, codecs, steps=2)
        reports.append(run_reference(run, *corpora(), None)["steps"])
    assert reports[0][0]["loss"] != reports[1][0]["loss"]
    assert reports[0][0]["loss"] == pytest.approx(reports[1][0]["loss"], rel=0.01)
    assert reports[0][0]["grad_norm"] != reports[1][0]["grad_norm"]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_checkpoint_as_transformers_saves_it(tmp_path: Path, mode: str) -> None:
    transformers = pytest.importorskip("transformers")
    shape = LlamaShape(
        **{**TINY.model_dump(), "tie_word_embeddings": False, "num_hidden_layers": 3, "rope_theta": 777.0}
    )
    values = shape.model_dump()
    rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values, rope_parameters=rope, pad_token_id=5))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    run = manifest(mode, 1, FP32, steps=4, shape=shape, weights=Checkpoint(FolderFiles(tmp_path)).weights())
    compare(run, 1e-4, tmp_path)


def test_a_folder_without_a_checkpoint_is_a_model_error(tmp_path: Path) -> None:
    run = manifest("lora", 1, FP32, weights=Weights(headers="0" * 64))
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        run_reference(run, *corpora(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model_config(run.shape, "fp32")))
    with pytest.raises(ModelError, match=r"has neither model\.safetensors"):
        run_reference(run, *corpora(), tmp_path)
    with pytest.raises(ModelError, match="not on this machine"):
        run_reference(run, *corpora(), None)
