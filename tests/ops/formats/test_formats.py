"""Every layout against the `gguf` package's numpy reference, bit for bit where one exists."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from canvaslm.ops.formats.quant_tensor import FORMATS, QuantTensor, dequantise, format_by_id, quantise

ALL = list(FORMATS)
WRITABLE = [name for name, layout in FORMATS.items() if layout.writable]
BYTE_EQUAL = ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_0"]


def random_blocks(name: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    layout = FORMATS[name]
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, blocks * layout.size), dtype=np.uint8)


def reference(raw: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(all="ignore"):  # random bytes hold NaN and infinite scales
        return gguf.quants.dequantize(raw, Type[name])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit; NaNs (random bytes hold some) need only be NaN on both sides."""
    both_nan = np.isnan(a) & np.isnan(b)
    return bool(np.all((a.view(np.uint32) == b.view(np.uint32)) | both_nan))


def relative_rmse(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().mean().sqrt() / x.square().mean().sqrt())


@pytest.mark.parametrize("name", ALL)
def test_sizes_and_ids_are_ggmls(name: str) -> None:
    layout = FORMATS[name]
    assert gguf.GGML_QUANT_SIZES[Type[name]] == (layout.block, layout.size)
    assert Type[name].value == layout.type_id
    assert format_by_id(layout.type_id) is layout


@pytest.mark.parametrize("name", ALL)
def test_unpack_equals_the_reference_on_random_bytes(name: str) -> None:
    raw = random_blocks(name, 37, 5, seed=1)
    columns = 5 * FORMATS[name].block
    ours = dequantise(name, torch.from_numpy(raw), (37, columns)).numpy()
    theirs = reference(raw, name)
    assert same_bits(ours, theirs.reshape(37, columns))


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "F16"])
def test_unpack_of_many_slices_at_an_odd_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.ops.formats.quant_tensor.SLICE_VALUES", 256)
    raw = random_blocks(name, 6, 10, seed=2)
    odd = torch.cat([torch.zeros(1, dtype=torch.uint8), torch.from_numpy(raw).flatten()])[1:]
    shape = (2, 3, 10 * FORMATS[name].block)
    theirs = reference(raw, name).reshape(shape)
    assert same_bits(dequantise(name, odd, shape).numpy(), theirs)


@pytest.mark.parametrize("name", BYTE_EQUAL)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-6, 0.02, 1.0, 300.0]))
def test_pack_gives_the_reference_bytes(name: str, seed: int, scale: float) -> None:
    x = (np.random.default_rng(seed).standard_normal((4, 96)) * scale).astype(np.float32)
    x[0, :32] = 0
    x[1, :32] = scale
    ours = quantise(name, torch.from_numpy(x)).numpy()
    theirs = gguf.quants.quantize(x, Type[name]).view(np.uint8)
    assert np.array_equal(ours, theirs.reshape(ours.shape))


# Relative RMSE on gaussian rows, with 3 % of room above what was measured (docs/formats.md).
GAUSSIAN_ERROR = {
    "F32": 0.0, "BF16": 1.7e-3, "F16": 2.2e-4, "Q8_0": 5.7e-3, "Q6_K": 1.85e-2, "Q5_K": 3.6e-2,
    "Q5_1": 4.4e-2,
    "Q5_0": 4.6e-2, "Q4_K": 7.4e-2, "Q4_0": 9.2e-2,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITABLE)
def test_round_trip_error_on_gaussian_rows(name: str) -> None:
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    y = dequantise(name, quantise(name, x), x.shape)
    assert relative_rmse(x, y) <= GAUSSIAN_ERROR[name]


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_the_search_beats_plain_rounding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    searched = relative_rmse(x, dequantise(name, quantise(name, x), x.shape))
    monkeypatch.setattr("canvaslm.ops.formats.quantize._AFFINE_GRID", ())
    monkeypatch.setattr("canvaslm.ops.formats.quantize._SIGNED_GRID", ())
    rounded = relative_rmse(x, dequantise(name, quantise(name, x), x.shape))
    assert searched < 0.97 * rounded


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("value", [0.0, 0.5, -0.5, 3e-8])
def test_constant_rows_survive(name: str, value: float) -> None:
    x = torch.full((2, 256), value)
    y = dequantise(name, quantise(name, x), x.shape)
    # 3e-8 is less than half of fp16's smallest step times a level: it may become zero,
    # never more than a step.
    assert torch.allclose(x, y, rtol=0.02, atol=2.0**-24)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_repacking_unpacked_values_changes_little(name: str) -> None:
    x = torch.randn(16, 512, generator=torch.Generator().manual_seed(3))
    once = dequantise(name, quantise(name, x), x.shape)
    twice = dequantise(name, quantise(name, once), x.shape)
    assert relative_rmse(once, twice) < 0.5 * relative_rmse(x, once)


def test_quant_tensor_slices_share_memory() -> None:
    x = torch.randn(3, 4, 256, generator=torch.Generator().manual_seed(4))
    whole = QuantTensor("Q6_K", (3, 4, 256), quantise("Q6_K", x).flatten())
    values = whole.dequantise()
    assert torch.equal(whole[1].dequantise(), values[1])
    assert torch.equal(whole.rows(5, 9).dequantise(), values.view(12, 256)[5:9])
    assert whole[1].raw.untyped_storage().data_ptr() == whole.raw.untyped_storage().data_ptr()
    with pytest.raises(IndexError, match="index 3"):
        whole[3]


def test_unpack_into_a_given_tensor_of_another_dtype() -> None:
    x = torch.randn(2, 32)
    out = torch.empty(2, 32, dtype=torch.bfloat16)
    assert dequantise("Q8_0", quantise("Q8_0", x), (2, 32), out=out) is out
    assert torch.equal(out, dequantise("Q8_0", quantise("Q8_0", x), (2, 32)).bfloat16())


def test_wrong_sizes_and_formats_are_named() -> None:
    with pytest.raises(ValueError, match="takes 34 bytes, not 33"):
        dequantise("Q8_0", torch.zeros(33, dtype=torch.uint8), (1, 32))
    with pytest.raises(ValueError, match="multiple of 256 values, not 704"):
        quantise("Q4_K", torch.zeros(1, 704))
    with pytest.raises(ValueError, match="read, not written"):
        quantise("Q2_K", torch.zeros(1, 256))
    with pytest.raises(ValueError, match="unknown format 'Q9'"):
        dequantise("Q9", torch.zeros(1, dtype=torch.uint8), (1,))
