"""Quantized linear layers: errors, gradients, sizes, and state dicts that come back as they were."""

import json
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load, save
from swarm_peer.compression import linear
from swarm_peer.compression.linear import THRESHOLD, Int8Linear, Nf4Linear
from swarm_peer.errors import ModelError
from swarm_peer.kernels import blockwise, cuda, engine
from torch import Tensor, nn

IN, OUT = 512, 384


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layers(weight: Tensor, bias: Tensor | None = None) -> list[nn.Module]:
    return [Nf4Linear.quantize(weight, bias=bias), Int8Linear.quantize(weight, bias=bias)]


def relative_error(came: Tensor, wanted: Tensor) -> float:
    return ((came - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize(("outputs", "inputs", "block"), [(7, 100, 64), (172, 172, 64), (3, 5, 64), (1001, 96, 256)])
def test_blocks_go_on_from_row_to_row(outputs: int, inputs: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, given = normal(outputs, inputs), normal(4, inputs, seed=1)
    layer = Nf4Linear.quantize(weight, block=block)
    scales, codes = engine.quantize("nf4", weight.reshape(-1), block)
    wanted = engine.dequantize("nf4", memoryview(scales), memoryview(codes), weight.numel(), block, torch.device("cpu"))
    assert torch.equal(layer.weight(), wanted.view_as(weight))
    monkeypatch.setattr(linear, "TILE_ELEMENTS", 1)
    assert len(layer._tiles()) > 1 or outputs < layer.row_step
    assert relative_error(layer(given), given @ layer.weight().T) < 1e-6


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 130])
@pytest.mark.parametrize("kind", [0, 1], ids=["nf4", "int8"])
def test_outputs_and_input_gradients_are_those_of_the_decoded_weight(kind: int, rows: int) -> None:
    bias = normal(OUT, seed=3)
    layer: Any = layers(normal(OUT, IN), bias)[kind]
    inputs = normal(2, rows, IN, seed=1).requires_grad_()
    outputs = layer(inputs)
    wanted = inputs.detach() @ layer.weight().T + bias
    assert outputs.shape == (2, rows, OUT)
    # int8 rounds its inputs too.
    assert relative_error(outputs.detach(), wanted) < (1e-6 if kind == 0 else 0.011)
    gradient = normal(2, rows, OUT, seed=2)
    outputs.backward(gradient)
    assert inputs.grad is not None
    assert relative_error(inputs.grad, gradient @ layer.weight()) < 1e-6


def test_the_weights_error_and_size() -> None:
    weight = normal(1024, 1024)
    nf4, int8 = layers(weight)
    for layer, error, bits in ((nf4, 0.093, 4.13), (int8, 0.012, 8.1)):
        assert 0.3 * error < relative_error(layer.weight(), weight) <= error  # type: ignore[operator]
        size = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
        assert 8 * size / weight.numel() <= bits


def test_outlier_features_go_in_full_precision() -> None:
    weight, inputs = normal(256, 2048), normal(64, 2048, seed=1)
    inputs[:, [5, 900]] *= 20
    wanted = inputs @ weight.T
    with_them = relative_error(Int8Linear.quantize(weight)(inputs), wanted)
    without = relative_error(Int8Linear.quantize(weight, threshold=1e9)(inputs), wanted)
    assert with_them <= 0.011
    assert without > 3 * with_them
    assert (inputs.abs() >= THRESHOLD).any(dim=0).sum() >= 2


@pytest.mark.parametrize("kind", [0, 1], ids=["nf4", "int8"])
@pytest.mark.parametrize("bias", [None, normal(OUT, seed=3)], ids=["no bias", "bias"])
def test_a_state_dict_comes_back_through_safetensors(kind: int, bias: Tensor | None) -> None:
    layer = layers(normal(OUT, IN), bias)[kind]
    state = load(save(layer.state_dict()))
    fresh: Any = [Nf4Linear, Int8Linear][kind](IN, OUT, bias=None if bias is None else torch.zeros(OUT))
    fresh.load_state_dict(state, strict=True)
    inputs = normal(5, IN, seed=4)
    assert torch.equal(fresh(inputs), layer(inputs))
    del state["codes"]
    with pytest.raises(RuntimeError, match="codes"):
        fresh.load_state_dict(state, strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outputs_have_the_type_of_the_inputs(dtype: torch.dtype) -> None:
    for layer in layers(normal(OUT, IN).to(dtype)):
        inputs = normal(3, IN).to(dtype).requires_grad_()
        outputs = layer(inputs)
        outputs.sum().backward()
        assert outputs.dtype == dtype
        assert inputs.grad is not None
        assert inputs.grad.dtype == dtype


def test_a_new_layer_is_zero() -> None:
    for layer in (Nf4Linear(IN, OUT), Nf4Linear(IN, OUT, double=False), Int8Linear(IN, OUT)):
        assert not layer.weight().any()
        assert not layer(normal(3, IN)).any()


@pytest.mark.skipif(engine.native() is None, reason="the native kernels were not built")
def test_the_native_product_is_the_decoded_one_and_the_same_on_every_instruction_set() -> None:
    native = engine.native()
    assert native is not None
    layer, used = Nf4Linear.quantize(normal(101, 640), block=128), native.used()
    scales = layer.decoded_scales()
    try:
        for rows in range(1, engine.FUSED_ROWS + 1):
            inputs = normal(rows, 640, seed=rows)
            products = []
            for name in native.sets():
                native.use(name)
                products += [engine.nf4_matmul(inputs, layer.codes, scales, 101, 128, threads) for threads in (1, 2, 5)]
            assert relative_error(products[0], inputs @ layer.weight().T) < 1e-6
            assert all(torch.equal(product, products[0]) for product in products)
            assert torch.equal(layer.multiply(inputs), products[0])
    finally:
        native.use(used)
    memory = [engine._memory(tensor) for tensor in (inputs.view(-1), layer.codes, scales)]
    out = engine._memory(torch.empty(8 * 101))
    native.nf4_matmul(*memory, out, 8, 640, 101, 128, 1)
    for wrong in (
        (9, 640, 101, 128, 1),
        (8, 640, 101, 96, 1),
        (8, 640, 101, 256, 1),
        (8, 0, 101, 64, 1),
        (7, 640, 101, 128, 1),
    ):
        with pytest.raises(ValueError, match="wanted"):
            native.nf4_matmul(*memory, out, *wrong)


@pytest.mark.parametrize("double", [False, True], ids=["plain scales", "double quantization"])
def test_what_bitsandbytes_wrote_is_read(double: bool) -> None:
    """The layout of `Linear4bit.state_dict()` of bitsandbytes 0.50, made here by its rules."""
    weight = normal(OUT, IN)
    _, codes = engine.quantize("nf4", weight.reshape(-1), 64)
    codes_only = torch.frombuffer(bytearray(codes), dtype=torch.uint8)
    absmax = weight.reshape(-1, 64).abs().amax(dim=1)
    told: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [OUT, IN]}
    state = {"fc.weight": codes_only.view(-1, 1), "fc.bias": normal(OUT, seed=1), "fc.weight.absmax": absmax}
    if double:
        offset = absmax.mean()
        levels = torch.tensor(blockwise.dynamic_levels(), dtype=torch.float32)
        nested, beside = blockwise.quantize_dynamic(absmax - offset, 256)
        told |= {"nested_blocksize": 256, "nested_offset": offset.item(), "nested_dtype": "float32"}
        state |= {"fc.weight.absmax": nested, "fc.weight.nested_absmax": beside, "fc.weight.nested_quant_map": levels}
    state["fc.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    layer = Nf4Linear.from_bitsandbytes(state, "fc.")
    assert torch.equal(layer.codes, codes_only)
    assert relative_error(layer.decoded_scales(), absmax) < (0.005 if double else 1e-7)
    assert relative_error(layer.weight(), weight) < 0.093
    assert torch.equal(layer(torch.zeros(1, IN))[0], state["fc.bias"])
    for broken in (
        {**state, "fc.weight.absmax": absmax[:-1]},
        {**state, "fc.weight": codes_only[:-2]},
        {**state, "fc.weight.quant_state.bitsandbytes__nf4": torch.zeros(3, dtype=torch.uint8)},
        {"fc.weight": weight},
    ):
        with pytest.raises(ModelError, match=r"fc\.weight"):
            Nf4Linear.from_bitsandbytes(broken, "fc.")


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_itself_writes_what_is_read_and_reads_what_is_written(double: bool) -> None:
    weight = normal(OUT, IN)
    codes, told = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    state = {"fc.weight": codes, **{f"fc.weight.{part}": at for part, at in told.as_dict(packed=True).items()}}
    layer = Nf4Linear.from_bitsandbytes(state, "fc.", (OUT, IN))
    assert torch.allclose(layer.weight(), functional.dequantize_4bit(codes, told), rtol=1e-6, atol=0)
    for ours in (layer, Nf4Linear.quantize(weight)):
        written = ours.to_bitsandbytes("fc.", "float32")
        parts = {name.removeprefix("fc.weight."): part for name, part in written.items() if name != "fc.weight"}
        theirs = functional.QuantState.from_dict(parts, torch.device("cpu"))
        decoded = functional.dequantize_4bit(written["fc.weight"], theirs)
        assert decoded.dtype == torch.float32
        assert torch.allclose(decoded, ours.weight(), rtol=1e-6, atol=0)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="even"):
        Nf4Linear.quantize(normal(8, 100), block=33)
    with pytest.raises(ModelError, match="bias"):
        Int8Linear.quantize(normal(8, 64), bias=normal(9))
    for layer in layers(normal(8, 64)):
        with pytest.raises(ModelError, match="takes 64"):
            layer(normal(2, 65))


# ---- what runs on a GPU, on the CPU


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(engine, "has_fused", lambda device: False)


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("outputs", "inputs"), [(384, 512), (172, 100), (7, 1030), (65, 2088)])
@pytest.mark.parametrize("kind", [0, 1], ids=["nf4", "int8"])
def test_a_gpu_computes_the_same_in_the_inputs_own_type(
    kind: int, outputs: int, inputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer: Any = layers(normal(outputs, inputs), normal(outputs, seed=3))[kind]
    weight = layer.weight()
    monkeypatch.setattr(cuda, "available", lambda device: False)
    monkeypatch.setattr(linear, "GPU_TILE_ELEMENTS", 1000)
    assert torch.equal(layer.weight(), weight)
    assert layer.weight(dtype).dtype == dtype
    rounding = {torch.float32: 1e-6, torch.bfloat16: 0.006, torch.float16: 0.001}[dtype]
    for rows in (1, 17, 130):
        given = normal(rows, inputs, seed=1)
        given[:, 5] *= 20
        given = given.to(dtype).requires_grad_()
        came = layer(given)
        wanted = given.detach().float() @ weight.T + layer.bias
        assert came.dtype == dtype
        assert relative_error(came.detach().float(), wanted) < rounding + (0.011 if kind else 0.0)
        gradient = normal(rows, outputs, seed=2).to(dtype)
        came.backward(gradient)
        assert given.grad is not None
        assert relative_error(given.grad.float(), gradient.float() @ weight) < rounding


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("outputs", "inputs", "block"), [(384, 512, 64), (33, 100, 128), (65, 2088, 64), (8, 96, 48)])
def test_bitsandbytes_decodes_to_the_same_bits(
    outputs: int, inputs: int, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel for CUDA is asked as its kernel for the CPU is here."""
    layer = Nf4Linear.quantize(normal(outputs, inputs), block=block)
    assert layer.scale_scales is not None
    layer.scale_scales.neg_()  # as `calibrated` may have them
    decode, came = cuda.decoded_nf4, list[Tensor | None]()
    monkeypatch.setattr(cuda, "decoded_nf4", lambda *of: came.append(decode(*of)) or came[-1])
    ours = layer.weight(dtype)
    assert ours is came[-1] or (block == 48 and came[-1] is None)
    monkeypatch.setattr(cuda, "decoded_nf4", lambda *of: None)
    assert torch.equal(ours, layer.weight(dtype))
    assert ours.dtype == dtype


def _raises(*_: Any) -> Tensor:
    raise RuntimeError("no library was loaded")


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize("decode", [_raises, lambda *of: torch.zeros(of[2], dtype=of[4])], ids=["raises", "wrong"])
def test_where_bitsandbytes_fails_torch_decodes(decode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Nf4Linear.quantize(normal(64, 128))
    wanted = layer.weight()
    monkeypatch.setattr(cuda, "_decoded", decode)
    cuda.available.cache_clear()
    try:
        assert torch.equal(layer.weight(), wanted)
        assert not cuda.available(layer.codes.device)
    finally:
        cuda.available.cache_clear()


@pytest.mark.usefixtures("_as_on_a_gpu")
@pytest.mark.parametrize(("rows", "outputs", "width"), [(1, 8, 16), (16, 7, 100), (17, 33, 6), (31, 64, 1024)])
def test_filling_up_with_zeros_changes_no_product(
    rows: int, outputs: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cuBLAS wants of `_int_mm` is held here by a stand-in."""
    plain = torch._int_mm

    def strict(left: Tensor, right: Tensor) -> Tensor:
        assert left.is_contiguous()
        assert len(left) > 16
        assert right.stride(0) == 1
        assert right.stride(1) % 16 == 0
        assert not any(size % 8 for size in (*left.shape, *right.shape))
        return plain(left, right)

    monkeypatch.setattr(torch, "_int_mm", strict)
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-127, 128, (rows, width), generator=generator).to(torch.int8)
    whole = torch.randint(-127, 128, (outputs, width + 40), generator=generator).to(torch.int8)
    right = whole[:, 16 : 16 + width]
    came = linear._int8_product(left, right)
    assert torch.equal(came.long(), left.long() @ right.long().T)
