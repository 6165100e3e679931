"""The table of kernels: what is chosen for which weights, and that a backend and a format are additions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from canvaslm.cache.stores import STORES
from canvaslm.engine import Driver, Engine
from canvaslm.ops import backend, cpu
from canvaslm.ops.cpu import backend as cpu_backend
from canvaslm.ops.formats import quant_tensor
from canvaslm.ops.formats.dequantize import DEQUANTISE
from canvaslm.ops.formats.quant_tensor import FORMATS, Format, QuantTensor
from canvaslm.ops.formats.quantize import QUANTISE
from canvaslm.ops.kernel import OPERATIONS, Backend, Kernel
from canvaslm.ops.plain import PLAIN
from canvaslm.ops.quantised import QuantLinear
from canvaslm.types import Committed, Params, Request
from canvaslm.weights.loading.load import load_model
from tests.tiny import tiny_model, write_tiny_gguf

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 160,
    "moe_intermediate_size": 96,
    "sliding_window": 24,
    "canvas_length": 16,
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tiny_model(seed=2, **SIZES), tmp_path_factory.mktemp("backend") / "m.gguf", "Q8_0")


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)


def weight(format: str, *shape: int) -> QuantTensor:
    return QuantTensor(format, shape, torch.zeros(FORMATS[format].tensor_bytes(shape), dtype=torch.uint8))


def generated(file: Path) -> list[int]:
    """Tokens of a short answer of the model in a file, loaded and run as any other."""
    driver = Driver(Engine(load_model(file).model))
    params = Params(max_denoising_steps=4, max_new_tokens=16, seed=3)
    events = driver.events(Request(tuple(range(20, 40)), params))
    return [token for event in events if isinstance(event, Committed) for token in event.tokens]


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_native_kernels_take_every_format_that_is_written_today() -> None:
    table = backend.kernel_table("cpu")
    assert set(table) == cpu_backend.FORMATS
    assert all(set(row) == set(OPERATIONS) for row in table.values())
    assert all(kernel and kernel.backend == "cpu" for row in table.values() for kernel in row.values())


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@pytest.mark.usefixtures("no_kernels")
def test_plain_torch_is_what_is_left_everywhere(device: str) -> None:
    for row in backend.kernel_table(device).values():
        fused = row.pop("gated_mlp")
        assert fused is None  # three linears
        assert all(kernel and kernel.backend == PLAIN for kernel in row.values())


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_weights_that_a_kernel_cannot_take_together_fall_to_plain_torch() -> None:
    def experts(first: str, second: str, inner: int) -> str:
        parts = weight(first, 2, inner, 256), weight(second, 2, inner, 256)
        return backend.choose("experts", "cpu", parts, weight("Q8_0", 2, 256, inner)).backend

    assert experts("Q8_0", "Q8_0", 96) == "cpu"
    assert experts("Q8_0", "Q4_0", 96) == PLAIN
    gate, odd, down = weight("Q8_0", 96, 256), weight("Q4_0", 96, 256), weight("Q8_0", 256, 96)
    assert backend.find("gated_mlp", "cpu", gate, gate, down) is not None
    assert backend.find("gated_mlp", "cpu", gate, odd, down) is None


def test_a_device_without_kernels_asks_none_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: pytest.fail("asked"))
    assert backend.choose("linear", "cuda", weight("Q8_0", 32, 32)).backend == PLAIN


def test_every_attention_names_a_store() -> None:
    for each in backend.BACKENDS:
        for kernel in each.kernels:
            if kernel.operation == "attention":
                assert kernel.make() in STORES


class Counting(QuantLinear):
    """Plain torch, counted."""

    made: list[str]
    calls: int

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)


@pytest.fixture
def counting() -> Callable[[str], Backend]:
    """A backend with one kernel, for the linear layers of one format."""
    Counting.made, Counting.calls = [], 0

    def make(name: str, weight: QuantTensor, repacker: Any) -> Counting:
        Counting.made.append(name)
        return Counting(weight)

    def build(format: str) -> Backend:
        kernel = Kernel("counting", "linear", make, frozenset({format}))
        return Backend("counting", "cpu", (kernel,), lambda: True, lambda: "counted PyTorch")

    return build


@pytest.mark.usefixtures("no_kernels")
def test_a_new_backend_is_used_by_loading_and_the_engine(
    file: Path, counting: Callable[[str], Backend]
) -> None:
    expected = generated(file)
    with backend.registered(counting("Q8_0")):
        assert generated(file) == expected
        notes = load_model(file).notes
    assert "layers.1.self_attn.q_proj" in Counting.made
    assert Counting.calls > len(Counting.made) // 2
    assert "quantised weights run on counted PyTorch" in notes
    calls = Counting.calls
    generated(file)
    assert calls == Counting.calls  # it has gone again


@pytest.mark.skipif(not cpu.available(), reason="no native kernels here")
def test_a_new_backend_goes_before_the_native_kernels_and_leaves_the_rest_to_them(
    file: Path, counting: Callable[[str], Backend]
) -> None:
    with backend.registered(counting("Q8_0")):
        model = load_model(file).model
        assert isinstance(model.layers[0].self_attn.q_proj, Counting)
        assert getattr(model.layers[0].experts, "backend", None) == "cpu"
        assert model.store == "tensors"  # layers that are not repacked throughout
        assert len(generated(file)) > 0
    assert load_model(file).model.store == "blocks"


def _dequantise_toy(blocks: Tensor) -> Tensor:
    """32 values as int8 and one fp16 scale behind them."""
    scale = blocks[:, 32:].contiguous().view(torch.float16).float()
    return blocks[:, :32].contiguous().view(torch.int8).float() * scale


def _quantise_toy(values: Tensor) -> Tensor:
    scale = (values.abs().amax(1, keepdim=True) / 127).half()
    whole = torch.where(scale == 0, 0.0, values / scale.float()).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([whole.view(torch.uint8), scale.view(torch.uint8)], 1)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Format:
    """A format that is a row in the table with a dequantise function; its quantiser makes a test's bytes."""
    made = Format("TOY", 99, 32, 34, writable=True)
    monkeypatch.setitem(FORMATS, "TOY", made)
    monkeypatch.setitem(DEQUANTISE, "TOY", _dequantise_toy)
    monkeypatch.setitem(QUANTISE, "TOY", _quantise_toy)
    return made


def test_a_new_format_loads_and_runs_on_plain_torch(toy: Format, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    changed = tmp_path / "toy.gguf"
    changed.write_bytes(_as_toy(file, whole))
    loaded = load_model(changed)
    assert isinstance(loaded.model.layers[0].self_attn.q_proj, QuantLinear)
    assert loaded.model.layers[0].self_attn.q_proj.weight.format == "TOY"
    assert loaded.model.store == "tensors"
    assert "plain PyTorch" in loaded.notes[-1]
    assert len(generated(changed)) > 0
    # The bytes are Q8_0's in another order, so the values are the same.
    mine, known = (load_model(path, dtype="float32").model.state_dict() for path in (changed, file))
    assert all(torch.equal(mine[name], known[name]) for name in known)
    assert backend.kernel_table("cpu")["TOY"]["linear"].backend == PLAIN


def _as_toy(path: Path, whole: bytes) -> bytes:
    """A Q8_0 GGUF file with the blocks of its tensors turned into toy blocks, and their type numbers too."""
    from canvaslm.weights.gguf.file import GGUFFile

    data = bytearray(whole)
    with GGUFFile(path) as opened:
        for info in opened.tensors.values():
            if info.format != "Q8_0":
                continue
            blocks = torch.frombuffer(data[info.start : info.end], dtype=torch.uint8).view(-1, 34)
            data[info.start : info.end] = torch.cat([blocks[:, 2:], blocks[:, :2]], 1).numpy().tobytes()
            name = info.name.encode()
            entry = whole.index(len(name).to_bytes(8, "little") + name) + 8 + len(name)
            kind = entry + 4 + 8 * int.from_bytes(whole[entry : entry + 4], "little")
            data[kind : kind + 4] = (99).to_bytes(4, "little")
    return bytes(data)


def test_a_new_format_needs_a_quantiser_only_to_be_written(toy: Format) -> None:
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    raw = quant_tensor.quantise("TOY", values)
    back = quant_tensor.dequantise("TOY", raw, (4, 64))
    assert float((back - values).norm() / values.norm()) < 0.01
