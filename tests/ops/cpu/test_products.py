"""Matrix products and experts of the native kernels against fp64 on the unpacked weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from canvaslm.ops import cpu
from canvaslm.ops.experts import experts_grouped
from canvaslm.ops.formats import quant_tensor as formats

if TYPE_CHECKING:
    from canvaslm.ops.cpu.repacked import RepackedExperts

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")

# Rounding activations to int8 with a scale per 256 costs 0.7 % of a gaussian product's norm.
GAUSSIAN = 0.012


def quantised(format: str, n: int, k: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(raw GGUF rows, the values they stand for)."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.02
    raw = formats.quantise(format, weight)
    return raw.flatten(), formats.dequantise(format, raw, (n, k))


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def rounded(x: torch.Tensor, k: int) -> torch.Tensor:
    """What the kernels make of activations: int8 with one scale per (row, 256)."""
    padded = torch.nn.functional.pad(x, (0, -k % 256)).view(len(x), -1, 256)
    scale = padded.abs().amax(-1, keepdim=True) / 127
    whole = torch.where(scale > 0, padded / scale, 0.0).round() * scale
    return whole.view(len(x), -1)[:, :k]


@pytest.mark.parametrize(
    ("format", "k"),
    [("Q4_K", 512), ("Q5_K", 512), ("Q6_K", 768), ("Q4_0", 704), ("Q5_0", 704), ("Q5_0", 96), ("Q8_0", 2112)],
)
def test_quantised_product_is_that_of_rounded_activations(isa: str, format: str, k: int) -> None:
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    n = 72  # not whole tiles of 32
    raw, values = quantised(format, n, k)
    x = torch.randn(37, k, generator=torch.Generator().manual_seed(1))
    got = matmul(RepackedMatrix.repack(format, raw, n, k), x)
    assert error(got, rounded(x, k).double() @ values.double().T) < 1e-6
    assert error(got, x.double() @ values.double().T) < GAUSSIAN


def test_large_bytes_do_not_saturate(isa: str) -> None:
    """Q8_0 weights of +-127 against activations of +-127: AVX2's pair sums would overflow int16."""
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    weight = torch.ones(32, 256)
    weight[1::2] = -1
    raw = formats.quantise("Q8_0", weight).flatten()
    got = matmul(RepackedMatrix.repack("Q8_0", raw, 32, 256), torch.ones(1, 256))
    want = formats.dequantise("Q8_0", raw, (32, 256)).sum(-1)
    assert torch.allclose(got[0], want, rtol=1e-5)


@pytest.mark.parametrize(
    ("format", "quants"),
    [("Q4_0", (2, 18)), ("Q5_0", (2, 22)), ("Q4_K", (16, 144)), ("Q5_K", (16, 176)), ("Q6_K", (0, 192))],
)
@pytest.mark.parametrize("x", [1.0, -1.0])
def test_the_largest_sums_do_not_overflow(isa: str, format: str, quants: tuple[int, int], x: float) -> None:
    """All weights the largest of their format against activations of +-127: AVX2 adds up in int16."""
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    raw = formats.quantise(format, torch.rand(32, 256) + 0.5).view(-1, formats.FORMATS[format].size)
    raw[:, slice(*quants)] = 255
    raw = raw.flatten()
    got = matmul(RepackedMatrix.repack(format, raw, 32, 256), torch.full((3, 256), x))
    want = formats.dequantise(format, raw, (32, 256)).double().sum(-1) * x
    assert torch.allclose(got.double(), want.expand(3, -1), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "k", "bound"), [("BF16", 300, 1e-6), ("F32", 100, 1e-6), ("INT8", 300, 0.02)]
)
def test_float_weights(isa: str, kind: str, k: int, bound: float) -> None:
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    weight = torch.randn(40, k).bfloat16()
    source = weight if kind == "BF16" else weight.float()
    x = torch.randn(9, k)
    got = matmul(RepackedMatrix.from_float(source, kind), x)
    assert error(got, x.double() @ weight.double().T) < bound


@pytest.mark.parametrize("format", ["Q4_1", "Q5_1", "IQ4_NL"])
def test_other_formats_become_q8_0(format: str) -> None:
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    layout = formats.FORMATS[format]
    blocks = torch.randint(0, 256, (48, 3, layout.size), dtype=torch.uint8)
    blocks[..., :2] = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
    if format in ("Q4_1", "Q5_1"):
        blocks[..., 2:4] = torch.tensor([-0.1], dtype=torch.float16).view(torch.uint8)
    packed = RepackedMatrix.repack(format, blocks.flatten(), 48, 96)
    values = formats.dequantise(format, blocks.flatten(), (48, 96))
    x = torch.randn(5, 96)
    assert packed.kind == "Q8_0"
    assert error(matmul(packed, x), x @ values.T) < 0.02


@pytest.mark.parametrize("format", ["Q4_K", "Q8_0"])
def test_a_row_depends_on_nothing_else(isa: str, format: str) -> None:
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    raw, _ = quantised(format, 64, 512)
    packed = RepackedMatrix.repack(format, raw, 64, 512)
    x = torch.randn(300, 512)
    whole = matmul(packed, x)
    before = cpu.threads()
    try:
        for threads in (1, 3):
            cpu.set_threads(threads)
            assert torch.equal(matmul(packed, x), whole)
            assert torch.equal(matmul(packed, x[7:8]), whole[7:8])
            assert torch.equal(matmul(packed, x[100:117]), whole[100:117])
    finally:
        cpu.set_threads(before)


def test_filling_in_slices_gives_the_same_weights() -> None:
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    raw, _ = quantised("Q5_0", 100, 64)
    whole = RepackedMatrix.repack("Q5_0", raw, 100, 64)
    parts = RepackedMatrix("Q5_0", 100, 64)
    row = formats.FORMATS["Q5_0"].row_bytes(64)
    for start, stop in ((0, 32), (32, 96), (96, 100)):
        parts.fill(start, "Q5_0", raw[start * row : stop * row], stop - start)
    x = torch.randn(3, 64)
    assert torch.equal(matmul(parts, x), matmul(whole, x))
    with pytest.raises(ValueError, match="whole tiles"):
        parts.fill(16, "Q5_0", raw[: 32 * row], 32)


def test_empty_and_zero_input() -> None:
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    raw, _ = quantised("Q8_0", 32, 64)
    packed = RepackedMatrix.repack("Q8_0", raw, 32, 64)
    assert matmul(packed, torch.empty(0, 64)).shape == (0, 32)
    assert torch.equal(matmul(packed, torch.zeros(2, 64)), torch.zeros(2, 32))


def test_wrong_arguments_are_named() -> None:
    from canvaslm.ops.cpu.products import matmul
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    raw, _ = quantised("Q8_0", 32, 64)
    packed = RepackedMatrix.repack("Q8_0", raw, 32, 64)
    with pytest.raises(ValueError, match=r"x: expected torch.float32 \[any, 64\]"):
        matmul(packed, torch.zeros(2, 65))
    with pytest.raises(ValueError, match="x: expected"):
        matmul(packed, torch.zeros(2, 64, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="2176 uint8 bytes"):
        RepackedMatrix.repack("Q8_0", raw[:-1], 32, 64)
    with pytest.raises(ValueError, match="unknown format 'Q9_0'"):
        RepackedMatrix.repack("Q9_0", raw, 32, 64)


def routed(tokens: int, experts: int, top: int, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))
    weights, index = scores.softmax(-1).topk(top)
    return index, weights / weights.sum(-1, keepdim=True)


def expert_weights(
    gate_up: str, down: str, count: int, inner: int, hidden: int
) -> tuple[tuple[RepackedExperts, RepackedExperts], tuple[torch.Tensor, torch.Tensor]]:
    from canvaslm.ops.cpu.repacked import RepackedExperts

    raw1, values1 = quantised(gate_up, count * 2 * inner, hidden, 4)
    raw2, values2 = quantised(down, count * hidden, inner, 5)
    packed = (
        RepackedExperts.repack(gate_up, raw1, count, 2 * inner, hidden),
        RepackedExperts.repack(down, raw2, count, hidden, inner),
    )
    return packed, (values1.view(count, 2 * inner, hidden) * 5, values2.view(count, hidden, inner) * 5)


@pytest.mark.parametrize(("gate_up", "down", "inner"), [("Q4_K", "Q5_0", 320), ("Q8_0", "Q8_0", 64)])
def test_experts_match_plain_torch(isa: str, gate_up: str, down: str, inner: int) -> None:
    from canvaslm.ops.cpu.products import experts

    packed, values = expert_weights(gate_up, down, 5, inner, 256)
    x = torch.randn(70, 256) * 2
    index, weights = routed(70, 5, 2)
    want = experts_grouped(
        x.double(), index, weights.double(), values[0].double() / 5, values[1].double() / 5
    )
    assert error(experts(x, index, weights, *packed), want) < 0.025


def test_a_token_s_experts_depend_on_nothing_else(isa: str) -> None:
    from canvaslm.ops.cpu.products import experts

    packed, _ = expert_weights("Q4_K", "Q5_0", 6, 288, 256)
    x = torch.randn(300, 256)
    index, weights = routed(300, 6, 3)
    whole = experts(x, index, weights, *packed)
    before = cpu.threads()
    try:
        for threads in (1, 4):
            cpu.set_threads(threads)
            assert torch.equal(experts(x, index, weights, *packed), whole)
            assert torch.equal(experts(x[9:10], index[9:10], weights[9:10], *packed), whole[9:10])
            assert torch.equal(experts(x[50:99], index[50:99], weights[50:99], *packed), whole[50:99])
    finally:
        cpu.set_threads(before)


def test_gated_mlp_is_one_expert() -> None:
    from canvaslm.ops.cpu.products import gated_mlp

    packed, values = expert_weights("Q4_K", "Q8_0", 1, 192, 256)
    x = torch.randn(150, 256) * 2
    gate, up = (x.double() @ (values[0][0].double() / 5).T).chunk(2, -1)
    want = (torch.nn.functional.gelu(gate, approximate="tanh") * up) @ (values[1][0].double() / 5).T
    assert error(gated_mlp(x, *packed), want) < 0.025


def test_experts_refuse_ids_out_of_range() -> None:
    from canvaslm.ops.cpu.products import experts

    packed, _ = expert_weights("Q8_0", "Q8_0", 3, 32, 64)
    with pytest.raises(ValueError, match=r"0\.\.2, found 0\.\.3"):
        experts(torch.zeros(2, 64), torch.tensor([[0], [3]]), torch.ones(2, 1), *packed)


@pytest.mark.parametrize(
    "format", ["F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q5_1"]
)
def test_gathered_rows_are_exact(isa: str, format: str) -> None:
    from canvaslm.ops.cpu.products import gather
    from canvaslm.ops.cpu.repacked import RowTable

    raw, values = quantised(format, 20, 512)
    if format == "Q5_1":
        values = values.bfloat16().float()
    ids = torch.tensor([[3, 19], [0, 3]])
    assert torch.allclose(gather(RowTable(format, raw, 20, 512), ids), values[ids], rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="found 20"):
        gather(RowTable(format, raw, 20, 512), torch.tensor([20]))
