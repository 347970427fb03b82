"""The torch backend through its seam: payloads in and out, slices, sums, updates, digests."""

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from swarm_peer.compression import CodecSpec, decode, encode
from swarm_peer.compression.format import CHECKSUM_AT
from swarm_peer.errors import CodecError, FittingError, ModelError, NonFiniteError, ProtocolError, WireError
from swarm_peer.swarm.arithmetic import RealArithmetic
from swarm_peer.swarm.backend import StageInput, Update
from swarm_peer.swarm.data import tokens_to_bytes
from swarm_peer.swarm.manifest import (
    CodecSettings,
    DataSettings,
    Manifest,
    ModelSettings,
    Settings,
    TrainSettings,
    freeze,
)
from swarm_peer.swarm.model.config import TINY
from swarm_peer.swarm.model.precision import resolve_compute_dtype
from swarm_peer.swarm.model.weights import stage_base
from swarm_peer.swarm.torch_backend import TorchBackend

LENGTH, SAMPLES = 12, 2
FP32 = CodecSettings(activations="fp32", gradients="fp32")
UPDATE = Update(factor=0.01, learning_rate=1e-3, bias_correction1=0.1, bias_correction2=0.001)


def manifest(mode: Any = "full", stages: int = 3, codecs: CodecSettings = FP32, dtype: Any = "fp32") -> Manifest:
    return freeze(
        settings=Settings(
            model=ModelSettings(name="tiny", stages=stages, compute_dtype=dtype),
            train=TrainSettings(mode=mode, batch=4, microbatch=SAMPLES),
            data=DataSettings(sequence_length=LENGTH),
            codecs=codecs,
        ),
        shape=TINY,
        texts_sha256=("0" * 64,),
        heldout_sha256=("0" * 64,),
        organizer="0" * 64,
        nonce="0" * 32,
    )


def backend(run: Manifest, stage: int) -> TorchBackend:
    return TorchBackend(run, stage, stage_base(run, stage, None))


def ids(seed: int) -> bytes:
    return tokens_to_bytes(np.random.default_rng(seed).integers(0, 256, (SAMPLES, LENGTH)).astype(np.int32))


def visit(index: int, data: bytes | None = None, labels: bytes | None = None) -> StageInput:
    return StageInput(0, index, SAMPLES, ids(index) if data is None else data, labels)


def microbatch(stages: list[TorchBackend], states: list[Any], index: int) -> list[Any]:
    """One microbatch down and up through all stages: its gradient at each."""
    data, contexts = ids(index), []
    for stage, state in zip(stages, states, strict=True):
        result = stage.forward(state, visit(index, data, ids(index + 100)), train=True)
        contexts.append(result.context)
        data = result.output or b""
    gradients, coded = [], None
    for stage, state, context in zip(stages[::-1], states[::-1], contexts[::-1], strict=True):
        back = stage.backward(state, context, coded)
        coded = back.input_gradient
        gradients.append(back.gradient)
    return gradients[::-1]


def reduce_parts(one: TorchBackend, contributions: list[Any], group: str, parts: int) -> tuple[list[bytes], float]:
    """What the members of a butterfly all-reduce end up with."""
    length = one.lengths[group]
    coded, squared = [], 0.0
    for part in range(parts):
        first, last = length * part // parts, length * (part + 1) // parts
        slices = [one.slice(gradient, group, first, last) for gradient in contributions]
        summed, norm = one.reduce(group, slices, last - first)
        coded.append(summed)
        squared += norm
    return coded, squared


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_applying_through_slices_of_two_members_is_the_plain_sum(mode: str) -> None:
    run = manifest(mode)
    stages = [backend(run, stage) for stage in range(3)]
    states = [stage.initial_state() for stage in stages]
    one, two = microbatch(stages, states, 0), microbatch(stages, states, 1)
    for stage, state, first, second in zip(stages, states, one, two, strict=True):
        total = stage.add([first, second])
        whole = {group: [stage.slice(total, group, 0, length)] for group, length in stage.lengths.items()}
        split = {group: reduce_parts(stage, [first, second, None], group, 3) for group in stage.lengths}
        expected = stage.apply(state, whole, UPDATE)
        came = stage.apply(state, {group: parts for group, (parts, _) in split.items()}, UPDATE)
        assert stage.digest(came) == stage.digest(expected) != stage.digest(state)
        squared = sum(norm for _, norm in split.values())
        assert squared == pytest.approx(sum(t.double().square().sum().item() for t in total.values()), rel=1e-12)


def test_the_tied_tensor_is_a_group_of_its_own_at_both_ends() -> None:
    run = manifest("full")
    lengths = [dict(backend(run, stage).lengths) for stage in range(3)]
    assert [set(groups) for groups in lengths] == [{"stage", "tied"}, {"stage"}, {"stage", "tied"}]
    assert lengths[0]["tied"] == lengths[2]["tied"] == 256 * 64
    per_layer = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 172 * 3 + 2 * 64
    assert [groups["stage"] for groups in lengths] == [2 * per_layer, 2 * per_layer, 2 * per_layer + 64]
    assert backend(run, 0).gradient_bytes == 4 * sum(lengths[0].values())
    assert set(backend(manifest("full", stages=1), 0).lengths) == {"stage"}
    assert set(backend(manifest("lora"), 0).lengths) == {"stage"}


def test_tied_ends_that_apply_the_same_reduction_keep_the_same_embedding() -> None:
    run = manifest("full")
    stages = [backend(run, stage) for stage in range(3)]
    states = [stage.initial_state() for stage in stages]
    gradients = microbatch(stages, states, 0)
    tied, _ = reduce_parts(stages[0], [gradients[0], gradients[2]], "tied", 2)
    name = "model.embed_tokens.weight"
    after = []
    for end in (0, 2):
        own, _ = reduce_parts(stages[end], [gradients[end]], "stage", 1)
        after.append(stages[end].apply(states[end], {"stage": own, "tied": tied}, UPDATE).parameters[name])
    assert torch.equal(after[0], after[1])
    assert not torch.equal(after[0], states[0].parameters[name])


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_two_backends_agree_on_digests_and_payloads(mode: str) -> None:
    run = manifest(mode, codecs=CodecSettings())
    one, other = backend(run, 0), backend(run, 0)
    assert one.digest(one.initial_state()) == other.digest(other.initial_state())
    outputs = [each.forward(each.initial_state(), visit(0), train=True).output for each in (one, other)]
    assert outputs[0] == outputs[1]


def test_slices_lie_in_sorted_name_order_and_none_is_zero() -> None:
    stage = backend(manifest("lora"), 1)
    gradient = {name: torch.randn(t.shape) for name, t in stage.initial_state().parameters.items()}
    flat = torch.cat([gradient[name].flatten() for name in sorted(gradient)])
    spec = CodecSpec("fp32")
    length = stage.lengths["stage"]
    for first, last in [(0, length), (0, 1), (500, 5000), (length - 3, length), (7, 7)]:
        coded = stage.slice(gradient, "stage", first, last)
        assert torch.equal(decode(coded, spec=spec, shape=(last - first,)), flat[first:last])
        assert torch.equal(decode(stage.slice(None, "stage", first, last), spec=spec).abs().sum(), torch.tensor(0.0))


def test_more_parts_than_elements_leave_empty_ones() -> None:
    stage = backend(manifest("lora"), 1)
    assert stage.reduce("stage", [stage.slice(None, "stage", 3, 3)] * 2, 0)[1] == 0.0


@pytest.mark.parametrize("reduce", ["int8", "dynamic8"])
def test_a_lossy_reduce_applies_what_was_coded(reduce: Any) -> None:
    run = manifest("lora", codecs=CodecSettings(reduce=reduce))
    stage = backend(run, 1)
    state = stage.initial_state()
    gradient = {name: torch.randn(t.shape) for name, t in state.parameters.items()}
    parts, squared = reduce_parts(stage, [gradient, gradient], "stage", 3)
    bounds = [stage.lengths["stage"] * part // 3 for part in range(4)]
    flat = torch.cat(
        [decode(part, spec=CodecSpec(reduce, 256), shape=(bounds[i + 1] - bounds[i],)) for i, part in enumerate(parts)]
    )
    assert squared == pytest.approx(flat.double().square().sum().item(), rel=1e-12)
    plain = sum(4 * t.double().square().sum().item() for t in gradient.values())
    assert squared == pytest.approx(plain, rel=0.02)
    assert stage.digest(stage.apply(state, {"stage": parts}, UPDATE)) != stage.digest(state)


def test_evaluation_keeps_no_context_and_gives_the_same_numbers() -> None:
    run = manifest("full", stages=1)
    stage = backend(run, 0)
    state = stage.initial_state()
    trained, evaluated = (stage.forward(state, visit(0, labels=ids(100)), train=train) for train in (True, False))
    assert evaluated.context is None
    assert trained.loss == evaluated.loss == pytest.approx(SAMPLES * LENGTH * np.log(256), rel=0.01)
    assert stage.backward(state, trained.context, None).input_gradient is None


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_evaluation_is_that_of_the_whole_model_whatever_activations_travel_in(dtype: str) -> None:
    def loss_of(stages: int) -> float | None:
        run, data, loss = manifest(stages=stages, codecs=CodecSettings(activations="int4"), dtype=dtype), ids(0), None
        for stage in [backend(run, stage) for stage in range(stages)]:
            result = stage.forward(stage.initial_state(), visit(0, data, ids(100)), train=False)
            data, loss = result.output or b"", result.loss
        return loss

    assert loss_of(3) == loss_of(1)


def test_a_lora_update_lowers_the_loss() -> None:
    run = manifest("lora", stages=1)
    stage, scalars = backend(run, 0), RealArithmetic(run)
    state, losses = stage.initial_state(), []
    for step in range(6):
        result = stage.forward(state, visit(0, labels=ids(100)), train=True)
        gradient = stage.backward(state, result.context, None).gradient
        parts, squared = reduce_parts(stage, [gradient], "stage", 2)
        state = stage.apply(state, {"stage": parts}, scalars.update(step, squared, SAMPLES * LENGTH))
        losses.append(result.loss)
    assert losses == sorted(losses, reverse=True)


def test_bf16_masters_and_gradients_stay_fp32() -> None:
    run = manifest("full", stages=2, dtype="bf16")
    stages = [backend(run, stage) for stage in range(2)]
    states = [stage.initial_state() for stage in stages]
    for gradients in microbatch(stages, states, 0):
        assert {tensor.dtype for tensor in gradients.values()} == {torch.float32}


@pytest.mark.parametrize("data", [b"", b"\0" * (4 * SAMPLES * LENGTH - 1), b"\xff" * 4 * SAMPLES * LENGTH])
def test_malformed_token_ids_are_refused(data: bytes) -> None:
    first, whole = backend(manifest(), 0), backend(manifest(stages=1), 0)
    with pytest.raises(WireError):
        first.forward(first.initial_state(), visit(0, data), train=True)
    with pytest.raises(WireError):
        whole.forward(whole.initial_state(), visit(0, labels=data), train=True)


@pytest.mark.parametrize("codec", ["fp32", "int8", "dynamic8"])
def test_malformed_activations_and_gradients_are_refused(codec: Any) -> None:
    run = manifest(codecs=CodecSettings(activations=codec, gradients=codec))
    stage, spec = backend(run, 1), CodecSpec(codec, 256)
    state = stage.initial_state()
    good = encode(torch.randn(SAMPLES, LENGTH, 64), spec)
    context = stage.forward(state, visit(0, good), train=True).context
    for bad in (b"", good[:-1], good + b"\0"):
        with pytest.raises(WireError):
            stage.forward(state, visit(0, bad), train=True)
        with pytest.raises(WireError):
            stage.backward(state, context, bad)
    with pytest.raises(WireError, match="output gradient"):
        stage.backward(state, context, None)
    assert stage.backward(state, context, good).input_gradient is not None


def test_nan_on_the_wire_is_refused() -> None:
    stage = backend(manifest(), 1)
    good = encode(torch.randn(SAMPLES, LENGTH, 64), CodecSpec("fp32"))
    state = stage.initial_state()
    poisoned = bytearray(good)
    poisoned[-4:] = np.float32(np.nan).tobytes()
    poisoned[CHECKSUM_AT : CHECKSUM_AT + 4] = bytes(4)
    poisoned[CHECKSUM_AT : CHECKSUM_AT + 4] = zlib.crc32(poisoned).to_bytes(4, "little")
    with pytest.raises(WireError, match="NaN or infinite"):
        stage.forward(state, visit(0, bytes(poisoned)), train=True)
    context = stage.forward(state, visit(0, good), train=True).context
    with pytest.raises(WireError, match="NaN or infinite"):
        stage.backward(state, context, bytes(poisoned))


def broken(stage: TorchBackend, value: float) -> Any:
    """A state whose computation is not finite."""
    state = stage.initial_state()
    return type(state)({n: torch.full_like(t, value) for n, t in state.parameters.items()}, {}, {})


def test_what_is_not_finite_is_not_passed_on() -> None:
    first, whole = backend(manifest(), 0), backend(manifest(stages=1), 0)
    with pytest.raises(NonFiniteError):
        first.forward(broken(first, float("inf")), visit(0), train=True)
    with pytest.raises(NonFiniteError, match=r"loss of microbatch \(0, 3\)"):
        whole.forward(broken(whole, float("nan")), visit(3, labels=ids(1)), train=True)
    state = first.initial_state()
    context = first.forward(state, visit(0), train=True).context
    huge = encode(torch.full((SAMPLES, LENGTH, 64), 3e38), CodecSpec("fp32"))
    with pytest.raises(NonFiniteError, match="gradient of"):
        first.backward(state, context, huge)
    poisoned = {name: torch.full_like(t, float("inf")) for name, t in state.parameters.items()}
    with pytest.raises(NonFiniteError):
        first.slice(poisoned, "stage", 0, 10)


def test_a_sum_that_overflows_is_refused() -> None:
    stage = backend(manifest("lora"), 1)
    huge = encode(torch.full((4,), 3e38), CodecSpec("fp32"))
    with pytest.raises(NonFiniteError):
        stage.reduce("stage", [huge, huge], 4)


def test_what_does_not_fit_a_group_is_refused() -> None:
    stage = backend(manifest("lora"), 1)
    state, length = stage.initial_state(), stage.lengths["stage"]
    for first, last in [(-1, 3), (3, 2), (0, length + 1)]:
        with pytest.raises(ProtocolError, match="not within"):
            stage.slice(None, "stage", first, last)
    with pytest.raises(ProtocolError, match="no group 'tied'"):
        stage.slice(None, "tied", 0, 1)
    with pytest.raises(ProtocolError, match="0 slices"):
        stage.reduce("stage", [], 4)
    with pytest.raises(ProtocolError, match="slices of"):
        stage.reduce("stage", [b""], length + 1)
    with pytest.raises(CodecError):
        stage.reduce("stage", [stage.slice(None, "stage", 0, 4)], 5)
    for reductions in ({}, {"stage": []}):
        with pytest.raises(ProtocolError):
            stage.apply(state, reductions, UPDATE)
    with pytest.raises(CodecError):
        stage.apply(state, {"stage": [stage.slice(None, "stage", 0, length - 1)]}, UPDATE)


def test_missing_labels_and_no_samples_are_refused() -> None:
    whole = backend(manifest(stages=1), 0)
    with pytest.raises(WireError, match="labels"):
        whole.forward(whole.initial_state(), visit(0), train=True)
    with pytest.raises(WireError, match="samples"):
        whole.forward(whole.initial_state(), StageInput(0, 0, 0, b"", b""), train=True)


def test_a_base_that_does_not_fit_is_refused() -> None:
    run = manifest()
    base = dict(stage_base(run, 0, None))
    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ModelError, match=name):
        TorchBackend(run, 0, ((key, tensor) for key, tensor in base.items() if key != name))
    with pytest.raises(ModelError, match=name):
        TorchBackend(run, 0, {**base, name: torch.zeros(3, 3)}.items())


def test_auto_picks_what_this_machine_computes_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_compute_dtype() in ("fp32", "bf16")
    seconds = {torch.float32: 1.0, torch.bfloat16: 1.0}
    monkeypatch.setattr("swarm_peer.swarm.model.precision._matmul_seconds", lambda dtype, _device: seconds[dtype])
    assert resolve_compute_dtype() == "fp32"
    seconds[torch.bfloat16] = 0.3
    assert resolve_compute_dtype() == "bf16"


@pytest.mark.parametrize(("mode", "base"), [("full", "auto"), ("lora", "auto"), ("lora", "nf4"), ("lora", "int8")])
def test_recomputing_gives_the_same_bits_and_keeps_less(mode: str, base: str) -> None:
    run = manifest(mode)
    settings = run.settings.model.model_copy(update={"base": base})
    run = run.model_copy(update={"settings": run.settings.model_copy(update={"model": settings})})
    results, kept = [], []
    for recompute in (False, True):
        stages = [TorchBackend(run, at, stage_base(run, at, None), recompute=recompute) for at in range(3)]
        saved: dict[int, int] = {}

        def note(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            stages[1].forward(stages[1].initial_state(), hidden_visit(run), train=True)
        kept.append(sum(saved.values()))
        results.append(microbatch(stages, [stage.initial_state() for stage in stages], 0))
    for plain, again in zip(*results, strict=True):
        assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert kept[1] < kept[0] / 2


def hidden_visit(run: Manifest) -> StageInput:
    hidden = torch.linspace(-1, 1, SAMPLES * LENGTH * TINY.hidden_size).view(SAMPLES, LENGTH, TINY.hidden_size)
    return visit(0, encode(hidden, CodecSpec.parse(run.settings.codecs.activations, run.settings.codecs.block)))


def test_where_memory_runs_out_graphs_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And once they are, it is the end."""

    def runs_out(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: not enough memory")

    made = backend(manifest(), 0)
    with monkeypatch.context() as patched:
        patched.setattr("swarm_peer.swarm.torch_backend.stage_forward", runs_out)
        with pytest.raises(FittingError, match="from now on") as first:
            made.forward(made.initial_state(), visit(0), train=True)
        with pytest.raises(FittingError, match="with graphs computed again") as second:
            made.forward(made.initial_state(), visit(0), train=True)
    assert (first.value.final, second.value.final) == (False, True)
    assert made.recompute
    assert made.forward(made.initial_state(), visit(0), train=True).output


def test_another_error_is_not_taken_for_one_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("swarm_peer.swarm.torch_backend.stage_forward", fails)
    made = backend(manifest(), 0)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        made.forward(made.initial_state(), visit(0), train=True)
    assert not made.recompute
