"""What flows back through the native products, against fp64 on the unpacked weights and the plain twin."""

from __future__ import annotations

import pytest
import torch

from canvaslm.ops import cpu
from canvaslm.ops.formats import quant_tensor as formats

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")


def values_of(format: str, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(raw GGUF rows, the values they stand for)."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(3)) * 0.02
    raw = formats.quantise(format, weight)
    return raw.flatten(), formats.dequantise(format, raw, (n, k))


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.mark.parametrize(
    ("format", "k"),
    [("Q4_K", 512), ("Q5_K", 256), ("Q6_K", 768), ("Q4_0", 704), ("Q5_0", 96), ("Q5_0", 704), ("Q8_0", 2112)],
)
@pytest.mark.parametrize("rows", [1, 37, 300])
def test_it_is_the_product_with_the_weights_themselves(isa: str, format: str, k: int, rows: int) -> None:
    from canvaslm.ops.cpu.products import matmul_back
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    n = 72  # not whole tiles of 32
    raw, values = values_of(format, n, k)
    grad = torch.randn(rows, n, generator=torch.Generator().manual_seed(1))
    got = matmul_back(RepackedMatrix.repack(format, raw, n, k), grad)
    assert error(got, grad.double() @ values.double()) < 1e-6


@pytest.mark.parametrize("kind", ["F32", "BF16", "INT8"])
def test_other_kinds(isa: str, kind: str) -> None:
    from canvaslm.ops.cpu.products import matmul_back
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    weight = torch.randn(40, 100, generator=torch.Generator().manual_seed(2))
    grad = torch.randn(21, 40, generator=torch.Generator().manual_seed(4))
    got = matmul_back(RepackedMatrix.from_float(weight, kind), grad)
    limit = {"F32": 1e-6, "BF16": 0.004, "INT8": 0.01}[kind]  # the kinds' own rounding
    assert error(got, grad.double() @ weight.double()) < limit


def test_a_row_has_the_bits_that_it_has_alone(isa: str) -> None:
    from canvaslm.ops.cpu.products import matmul_back
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    raw, _ = values_of("Q4_K", 96, 512)
    packed = RepackedMatrix.repack("Q4_K", raw, 96, 512)
    grad = torch.randn(70, 96, generator=torch.Generator().manual_seed(1))
    whole = matmul_back(packed, grad)
    for rows in (slice(0, 1), slice(7, 8), slice(15, 50)):
        assert torch.equal(matmul_back(packed, grad[rows]), whole[rows])
