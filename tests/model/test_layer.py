"""The parts of a layer against their formulas, written out in Python's doubles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from canvaslm.model import PlainContext
from canvaslm.model.diffusion_gemma.text import (
    Attention,
    Experts,
    GatedMLP,
    Router,
    SelfConditioning,
    TextLayer,
)
from canvaslm.ops.norm import RMSNorm
from canvaslm.ops.rotary import rotary_frequencies, rotary_table, rotate
from tests.tiny import tiny_config

EPS = 1e-6
CONFIG = tiny_config(hidden_size=8, intermediate_size=6, moe_intermediate_size=4)
SLIDING, FULL = 0, 1
Row = Sequence[float]


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> None:
    torch.manual_seed(11)


def near(expected: object) -> Any:
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


def unlike_default(module: torch.nn.Module) -> torch.nn.Module:
    """Norms and scales away from 1, where mistakes would not show."""
    with torch.no_grad():
        for parameter in (*module.parameters(), *module.buffers()):
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return module.eval()


def normed(x: Row, weight: Row | None = None) -> list[float]:
    root = math.sqrt(sum(a * a for a in x) / len(x) + EPS)
    return [a / root * w for a, w in zip(x, weight or [1.0] * len(x), strict=True)]


def times(weight: Tensor, x: Row) -> list[float]:
    return [sum(w * a for w, a in zip(row, x, strict=True)) for row in weight.tolist()]


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gated(x: Row, gate: Tensor, up: Tensor, down: Tensor) -> list[float]:
    inner = [gelu(g) * u for g, u in zip(times(gate, x), times(up, x), strict=True)]
    return times(down, inner)


def turned(x: Row, position: int, theta: float, turning: int) -> list[float]:
    """One head rotated: pair i is (x[i], x[i + half]), its angle position * theta^(-2i / width)."""
    half, out = len(x) // 2, list(x)
    for i in range(turning):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[half + i] * math.sin(angle)
        out[half + i] = x[half + i] * math.cos(angle) + x[i] * math.sin(angle)
    return out


@torch.no_grad()
def test_root_mean_square_norm() -> None:
    norm = RMSNorm(5, 0.5)
    norm.weight.copy_(torch.tensor([1.0, 2.0, 0.0, -1.0, 0.5]))
    x = torch.tensor([3.0, 4.0, 0.0, 0.0, 5.0])  # mean square 10, with eps 10.5
    root = math.sqrt(10.5)
    assert norm(x).tolist() == near([3 / root, 8 / root, 0.0, 0.0, 2.5 / root])
    assert norm(torch.zeros(5)).tolist() == [0.0] * 5
    narrow = RMSNorm(4, EPS)(torch.full((4,), 3e4, dtype=torch.float16))  # whose squares fp16 cannot hold
    assert narrow.dtype == torch.float16 and narrow.tolist() == [1.0] * 4


@pytest.mark.parametrize(("fraction", "turning"), [(1.0, 4), (0.5, 2), (0.25, 1), (0.3, 1)])
def test_rotary_embedding_is_the_formula(fraction: float, turning: int) -> None:
    x = torch.randn(1, 2, 3, 8)
    positions = torch.tensor([[0, 5, 1000]])
    found = rotate(x, rotary_table(positions, rotary_frequencies(8, 100.0, fraction), torch.float32))
    for head in range(2):
        for i, position in enumerate((0, 5, 1000)):
            expected = turned(x[0, head, i].tolist(), position, 100.0, turning)
            assert found[0, head, i].tolist() == pytest.approx(expected, abs=2e-4)


def test_a_rotated_product_depends_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    frequencies = rotary_frequencies(16, 10_000.0)

    def product(at: int, other: int) -> float:
        tables = (rotary_table(torch.tensor([[p]]), frequencies, torch.float64) for p in (at, other))
        first, second = (rotate(x, table) for x, table in zip((q, k), tables, strict=True))
        return float((first * second).sum())

    assert product(17, 3) == pytest.approx(product(114, 100), rel=1e-4)
    assert product(17, 3) != pytest.approx(product(17, 4), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_queries_keys_and_values(layer: int) -> None:
    """Queries and keys are normed with a weight and turned; values are normed alone, and in full layers are
    the keys before both."""
    attention = unlike_default(Attention(CONFIG, layer))
    assert isinstance(attention, Attention)
    width, theta, share = (16, 1e4, 1.0) if layer == SLIDING else (32, 1e6, 0.25)
    x, position = torch.randn(1, 1, 8), 7
    rope = rotary_table(torch.tensor([[position]]), rotary_frequencies(width, theta, share), torch.float32)
    q, k, v = attention.project(x, rope)
    assert (q.shape, k.shape) == ((1, 4, 1, width), (1, CONFIG.kv_heads_of(layer), 1, width))
    turning, token = int(share * width // 2), x[0, 0].tolist()
    for made, projection, norm in (
        (q, attention.q_proj, attention.q_norm),
        (k, attention.k_proj, attention.k_norm),
    ):
        flat = times(projection.weight, token)
        for head in range(made.shape[1]):
            mine = normed(flat[head * width : (head + 1) * width], norm.weight.tolist())
            assert made[0, head, 0].tolist() == near(turned(mine, position, theta, turning))
    assert (attention.v_proj is None) == (layer == FULL)
    source = attention.k_proj if attention.v_proj is None else attention.v_proj
    flat = times(source.weight, token)
    for head in range(v.shape[1]):
        assert v[0, head, 0].tolist() == near(normed(flat[head * width : (head + 1) * width]))


@torch.no_grad()
def test_gated_mlp() -> None:
    mlp = GatedMLP(8, 6)
    x = torch.randn(3, 8)
    for row, found in zip(x, mlp(x), strict=True):
        weights = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
        assert found.tolist() == near(gated(row.tolist(), *weights))


class Doubling(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_fused_kernel_takes_the_projections_place() -> None:
    mlp = GatedMLP(8, 6)
    mlp.fused = Doubling()
    del mlp.gate_proj, mlp.up_proj, mlp.down_proj
    assert mlp(torch.ones(2, 8)).tolist() == [[2.0] * 8] * 2


@torch.no_grad()
@pytest.mark.parametrize("top", [1, 2, 4])
def test_the_router_chooses_and_weighs(top: int) -> None:
    router = unlike_default(Router(tiny_config(hidden_size=8, top_k_experts=top)))
    assert isinstance(router, Router)
    x = torch.randn(6, 8)
    probabilities, weights, index = router(x)
    assert (probabilities.dtype, weights.dtype, index.shape) == (torch.float32, torch.float32, (6, top))
    for t in range(6):
        scaled = [
            a * s / math.sqrt(8) for a, s in zip(normed(x[t].tolist()), router.scale.tolist(), strict=True)
        ]
        exps = [math.exp(score) for score in times(router.proj.weight, scaled)]
        expected = [e / sum(exps) for e in exps]
        assert probabilities[t].tolist() == near(expected)
        best = sorted(range(4), key=lambda e: -expected[e])[:top]
        assert index[t].tolist() == best
        total = sum(expected[e] for e in best)
        assert weights[t].tolist() == near(
            [expected[e] / total * float(router.per_expert_scale[e]) for e in best]
        )


@torch.no_grad()
def test_the_router_judges_direction_and_not_length() -> None:
    router = Router(tiny_config(hidden_size=8))
    x = torch.randn(5, 8)
    assert torch.equal(router(x)[2], router(1000 * x)[2])
    assert torch.allclose(router(x)[1], router(1000 * x)[1], atol=1e-5)
    assert torch.allclose(router(x)[1].sum(-1), torch.ones(5))  # while every expert's scale is 1


@torch.no_grad()
def test_experts_add_up_with_their_weights() -> None:
    experts = Experts(CONFIG)
    x, index = torch.randn(3, 8), torch.tensor([[0, 3], [2, 1], [3, 2]])
    weights = torch.tensor([[0.7, 0.3], [1.5, 0.0], [-0.5, 0.25]])
    found = experts(x, index, weights)
    for t in range(3):
        expected = [0.0] * 8
        for expert, weight in zip(index[t].tolist(), weights[t].tolist(), strict=True):
            gate, up = experts.gate_up_proj[expert].chunk(2)
            out = gated(x[t].tolist(), gate, up, experts.down_proj[expert])
            expected = [e + weight * o for e, o in zip(expected, out, strict=True)]
        assert found[t].tolist() == near(expected)


def test_experts_may_be_computed_another_way() -> None:
    """What training does: the way is replaced, the weights are handed over."""
    experts, seen = Experts(CONFIG), []

    def other(x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        seen.append((gate_up.shape, down.shape))
        return x + 1

    experts.compute = other
    x = torch.zeros(1, 8)
    assert experts(x, torch.zeros(1, 2, dtype=torch.int64), torch.ones(1, 2)).tolist() == [[1.0] * 8]
    assert seen == [((4, 8, 8), (4, 8, 4))]


@torch.no_grad()
def test_self_conditioning_adds_and_norms() -> None:
    mixing = unlike_default(SelfConditioning(CONFIG))
    assert isinstance(mixing, SelfConditioning)
    embedded, soft = torch.randn(2, 1, 3, 8)
    found = mixing(embedded, soft)
    weights = (mixing.gate_proj.weight, mixing.up_proj.weight, mixing.down_proj.weight)
    for i in range(3):
        added = gated(normed(soft[0, i].tolist(), mixing.pre_norm.weight.tolist()), *weights)
        both = [a + b for a, b in zip(embedded[0, i].tolist(), added, strict=True)]
        assert found[0, i].tolist() == near(normed(both))


@torch.no_grad()
def test_no_soft_embedding_is_one_of_zeros() -> None:
    mixing = unlike_default(SelfConditioning(CONFIG))
    embedded = torch.randn(2, 3, 8)
    assert torch.equal(mixing(embedded), mixing(embedded, torch.zeros(2, 3, 8)))


def layer_of(kind: int) -> TextLayer:
    layer = unlike_default(TextLayer(CONFIG, kind))
    assert isinstance(layer, TextLayer)
    return layer


@torch.no_grad()
def test_a_layer_step_by_step() -> None:
    """A canvas of one place without a context: attention gives its own value, all else is written out."""
    layer = layer_of(SLIDING)
    layer.layer_scalar.fill_(0.9)
    x = torch.randn(1, 1, 8)
    positions = torch.tensor([[4]])
    rope = rotary_table(positions, rotary_frequencies(16, 1e4), torch.float32)
    found = layer(x, positions, rope, PlainContext(CONFIG), encoded=0)
    token, weight = x[0, 0].tolist(), lambda name: getattr(layer, name).weight.tolist()
    inside = normed(token, weight("input_layernorm"))
    assert layer.self_attn.v_proj is not None
    flat = times(layer.self_attn.v_proj.weight, inside)
    values = [normed(flat[head * 16 : (head + 1) * 16]) for head in range(2)]
    seen = [*values[0], *values[0], *values[1], *values[1]]  # two queries share a value
    attended = normed(times(layer.self_attn.o_proj.weight, seen), weight("post_attention_layernorm"))
    residual = [a + b for a, b in zip(token, attended, strict=True)]
    mlp = layer.mlp
    dense = gated(
        normed(residual, weight("pre_feedforward_layernorm")),
        mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight,
    )  # fmt: skip
    _, shares, chosen = layer.router(torch.tensor([residual]))
    inner = normed(residual, weight("pre_feedforward_layernorm_2"))
    sparse = layer.experts(torch.tensor([inner]), chosen, shares)[0].tolist()
    both = [
        a + b
        for a, b in zip(
            normed(dense, weight("post_feedforward_layernorm_1")),
            normed(sparse, weight("post_feedforward_layernorm_2")),
            strict=True,
        )
    ]
    added = normed(both, weight("post_feedforward_layernorm"))
    assert found[0, 0].tolist() == near([0.9 * (a + b) for a, b in zip(residual, added, strict=True)])


@torch.no_grad()
@pytest.mark.parametrize("encoded", [0, 2, 5])
def test_each_token_takes_the_scalar_of_what_it_is_in(encoded: int) -> None:
    """Two layers that differ in their scalars alone: encoded tokens scale by one, canvases by the other."""
    layer = layer_of(FULL)
    x, positions = torch.randn(1, 5, 8), torch.arange(5)[None]
    rope = rotary_table(positions, rotary_frequencies(32, 1e6, 0.25), torch.float32)

    def run(encoder: float, decoder: float) -> Tensor:
        layer.encoder_layer_scalar.fill_(encoder)
        layer.layer_scalar.fill_(decoder)
        out: Tensor = layer(x, positions, rope, PlainContext(CONFIG), encoded=encoded)
        return out

    one, scaled = run(1.0, 1.0), run(0.25, 3.0)
    factors = torch.tensor([0.25] * encoded + [3.0] * (5 - encoded))[:, None]
    assert torch.allclose(scaled, one * factors, atol=1e-6)


@torch.no_grad()
def test_the_last_layer_owes_the_context_its_keys_and_values_alone() -> None:
    layer, positions = layer_of(SLIDING), torch.arange(6)[None]
    x = torch.randn(1, 6, 8)
    rope = rotary_table(positions, rotary_frequencies(16, 1e4), torch.float32)
    whole, owed = PlainContext(CONFIG), PlainContext(CONFIG)
    layer(x, positions, rope, whole, encoded=6)
    layer.append_keys_values(x, positions, rope, owed)
    assert torch.equal(whole.keys[SLIDING], owed.keys[SLIDING])
    assert torch.equal(whole.values[SLIDING], owed.values[SLIDING])


@torch.no_grad()
def test_the_log_has_every_tokens_choices() -> None:
    layer, positions, log = layer_of(FULL), torch.arange(3).expand(2, -1), list[tuple[Tensor, Tensor]]()
    x = torch.randn(2, 3, 8)
    rope = rotary_table(positions, rotary_frequencies(32, 1e6, 0.25), torch.float32)
    layer(x, positions, rope, PlainContext(CONFIG), encoded=1, router_log=log)
    ((probabilities, index),) = log
    assert (probabilities.shape, index.shape) == ((6, 4), (6, 2))
    assert torch.allclose(probabilities.sum(-1), torch.ones(6))
    assert torch.equal(probabilities.topk(2).indices, index)
