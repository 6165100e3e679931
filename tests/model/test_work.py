"""The work of layers: counted from sizes, against what torch counts while the modules run, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from canvaslm.model import PlainContext, registry
from canvaslm.model.diffusion_gemma.model import DiffusionGemma
from canvaslm.model.diffusion_gemma.shapes import SHAPES
from canvaslm.model.diffusion_gemma.text import Experts, SelfConditioning, TextLayer
from canvaslm.model.diffusion_gemma.work import WORK, key_width, layer_macs, modules, self_macs
from canvaslm.model.work import ATTENTION, DENSE, EXPERTS, GLUE, PARTS, PROJECTIONS
from canvaslm.ops.experts import experts_grouped
from canvaslm.ops.rotary import rotary_frequencies, rotary_table
from tests.tiny import tiny_config, tiny_model

SLIDING, FULL = 0, 1
TOKENS = 11


def macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of the products in a module's pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() // 2


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model()


@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_products_of_a_layer_are_what_torch_counts(model: DiffusionGemma, layer: int) -> None:
    config, plain = tiny_config(), model.layers[layer]
    assert isinstance(plain, TextLayer)
    counted = layer_macs(config, layer, TOKENS, 0)
    x, attention = torch.randn(TOKENS, 64), plain.self_attn
    queries = attention.o_proj.in_features
    parts = [attention.q_proj, attention.k_proj, attention.v_proj]
    projections = sum(macs(part, x) for part in parts if part is not None)
    assert counted[PROJECTIONS] == projections + macs(attention.o_proj, torch.randn(TOKENS, queries))
    assert counted[DENSE] == macs(plain.mlp, x)
    assert counted[GLUE] == macs(plain.router.proj, x)
    experts = Experts(config)
    experts.compute = experts_grouped  # the way that multiplies what is routed, and no more
    index, weights = torch.randint(0, 4, (TOKENS, 2)), torch.rand(TOKENS, 2)
    assert counted[EXPERTS] == macs(experts, x, index, weights)
    assert counted[ATTENTION] == 0
    assert set(counted) <= set(PARTS)


class Pairs(nn.Module):
    """Every query's product with every key, and every weight's with every value, of all heads."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shared = q.shape[1] // k.shape[1]
        keys, values = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        return (q @ keys.transpose(-1, -2)) @ values


@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_attention_is_counted_in_pairs(layer: int) -> None:
    config, seen = tiny_config(), 29
    width, keys = config.head_dim_of(layer), config.kv_heads_of(layer)
    q, (k, v) = torch.randn(1, 4, TOKENS, width), torch.randn(2, 1, keys, seen, width)
    assert layer_macs(config, layer, 0, TOKENS * seen)[ATTENTION] == macs(Pairs(), q, k, v)


@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_the_keys_width_is_what_the_context_grows_by(model: DiffusionGemma, layer: int) -> None:
    """Full layers project keys alone; what is stored of them is twice as wide as what is projected."""
    plain = model.layers[layer]
    assert isinstance(plain, TextLayer)
    attention = plain.self_attn
    projections = (attention.k_proj, attention.v_proj)
    assert key_width(model.config, layer) == sum(p.out_features for p in projections if p is not None)
    context, positions = PlainContext(model.config), torch.arange(3)[None]
    theta = rotary_frequencies(attention.head_dim, 1e4)
    with torch.no_grad():
        rope = rotary_table(positions, theta, torch.float32)
        plain.append_keys_values(torch.randn(1, 3, 64), positions, rope, context)
    stored = context.keys[layer].numel() + context.values[layer].numel()
    assert stored == 3 * key_width(model.config, layer) * (1 if layer == SLIDING else 2)


def test_self_conditioning_is_what_torch_counts() -> None:
    config = tiny_config()
    x = torch.randn(1, TOKENS, 64)
    assert self_macs(config) * TOKENS == macs(SelfConditioning(config), x, x)


def test_the_released_models_layers_by_hand() -> None:
    config = SHAPES["26b"]
    assert layer_macs(config, 0, 1, 1000) == {
        PROJECTIONS: 2816 * (2 * 16 * 256 + 2 * 8 * 256),
        ATTENTION: 2 * 1000 * 16 * 256,
        DENSE: 3 * 2816 * 2112,
        EXPERTS: 3 * 8 * 2816 * 704,
        GLUE: 2816 * 128,
    }
    full = layer_macs(config, 5, 1, 1000)
    assert full[PROJECTIONS] == 2816 * (2 * 16 * 512 + 2 * 512)
    assert full[ATTENTION] == 2 * 1000 * 16 * 512
    assert self_macs(config) == 3 * 2816 * 2112


@pytest.mark.parametrize("layer", [SLIDING, FULL])
def test_work_grows_with_tokens_and_pairs(layer: int) -> None:
    one, ten = layer_macs(tiny_config(), layer, 1, 7), layer_macs(tiny_config(), layer, 10, 70)
    assert ten == {part: 10 * count for part, count in one.items()}


def test_every_weight_of_a_layer_belongs_to_one_part(model: DiffusionGemma) -> None:
    """What is listed covers the layers' weights once: all but norms and scalars between the blocks."""
    owners: dict[int, str] = {}
    for module, part in modules(model):
        assert part in PARTS
        for parameter in module.parameters():
            assert id(parameter) not in owners
            owners[id(parameter)] = part
    left = {name.split(".", 2)[2] for name, p in model.layers.named_parameters(prefix="layers")
            if id(p) not in owners}  # fmt: skip
    assert left == {f"{name}.weight" for name, _ in model.layers[0].named_children() if "layernorm" in name}
    named = dict(model.named_parameters())
    for name, part in {
        "layers.0.self_attn.v_proj.weight": PROJECTIONS, "layers.1.self_attn.k_norm.weight": GLUE,
        "layers.1.mlp.gate_proj.weight": DENSE, "layers.0.experts.down_proj": EXPERTS,
        "layers.0.router.per_expert_scale": GLUE,
    }.items():  # fmt: skip
        assert owners[id(named[name])] == part


def test_a_family_says_where_its_work_is() -> None:
    family = registry.family_of(tiny_config())
    assert family.work is not None and family.work() is WORK
    assert len(set(PARTS)) == len(PARTS) == 8
