"""Norms, rotary embedding and routing of the native kernels against plain torch."""

from __future__ import annotations

import pytest
import torch

from canvaslm.ops import cpu
from canvaslm.ops.norm import rms_norm as plain_norm
from canvaslm.ops.rotary import rotary_frequencies, rotary_table, rotate

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no native kernels: {cpu.problem()}")
EPS = 1e-6


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("width", [16, 40, 2816])
def test_rms_norm(isa: str, width: int) -> None:
    from canvaslm.ops.cpu.elementwise import rms_norm

    x, weight, residual = torch.randn(3, 7, width) * 5, torch.randn(width), torch.randn(3, 7, width)
    normed = plain_norm(x, weight, EPS)
    assert close(rms_norm(x, weight, EPS), normed)
    assert close(rms_norm(x, None, EPS), plain_norm(x, None, EPS))
    assert close(rms_norm(x, weight, EPS, residual=residual, scale=0.5), (residual + normed) * 0.5)


def test_join_feed_forward(isa: str) -> None:
    from canvaslm.ops.cpu.elementwise import join_feed_forward

    dense, routed, residual = torch.randn(3, 20, 72)
    w1, w2, w3 = torch.randn(3, 72)
    both = plain_norm(dense, w1, EPS) + plain_norm(routed, w2, EPS)
    want = (residual + plain_norm(both, w3, EPS)) * 0.7
    assert close(join_feed_forward(dense, w1, routed, w2, w3, residual, 0.7, EPS), want)


@pytest.mark.parametrize(("width", "fraction"), [(32, 1.0), (64, 0.25), (20, 1.0)])
def test_norm_rope(isa: str, width: int, fraction: float) -> None:
    from canvaslm.ops.cpu.elementwise import norm_rope

    weight, x = torch.randn(width), torch.randn(9, 3, width)
    cos, sin = rotary_table(
        torch.arange(5, 14)[None], rotary_frequencies(width, 1e4, fraction), torch.float32
    )
    want = rotate(plain_norm(x, weight, EPS).transpose(0, 1)[None], (cos, sin))[0].transpose(0, 1)
    half = (cos[0, 0, :, : width // 2], sin[0, 0, :, : width // 2])
    assert close(norm_rope(x.clone(), weight, EPS, half), want)
    assert close(norm_rope(x.clone(), None, EPS), plain_norm(x, None, EPS))


def test_norm_rope_works_in_place_inside_wider_rows() -> None:
    from canvaslm.ops.cpu.elementwise import norm_rope

    row = torch.randn(4, 3 * 16 + 5)
    before = row.clone()
    norm_rope(row[:, : 3 * 16].unflatten(1, (3, 16)), None, EPS)
    assert torch.equal(row[:, 48:], before[:, 48:])
    assert close(row[:, :48], plain_norm(before[:, :48].unflatten(1, (3, 16)), None, EPS).flatten(1))


@pytest.mark.parametrize(("experts", "top"), [(8, 2), (128, 8), (5, 5)])
def test_route(isa: str, experts: int, top: int) -> None:
    from canvaslm.ops.cpu.elementwise import route
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    x, scale, proj, per_expert = (
        torch.randn(30, 96),
        torch.rand(96),
        torch.randn(experts, 96),
        torch.rand(experts),
    )
    probs = ((plain_norm(x, None, EPS) * scale) @ proj.T).softmax(-1)
    weights, index = probs.topk(top)
    weights = weights / weights.sum(-1, keepdim=True) * per_expert[index]
    got_index, got_weights = route(x, scale, RepackedMatrix.from_float(proj), per_expert, top, EPS)
    assert torch.equal(got_index, index)
    assert torch.allclose(got_weights, weights, rtol=1e-4, atol=1e-6)


def test_router_refuses_quantised_projections() -> None:
    from canvaslm.ops.cpu.elementwise import route
    from canvaslm.ops.cpu.repacked import RepackedMatrix

    with pytest.raises(ValueError, match="stays in float"):
        route(
            torch.zeros(1, 32),
            torch.ones(32),
            RepackedMatrix.from_float(torch.zeros(4, 32), "INT8"),
            None,
            2,
            EPS,
        )
