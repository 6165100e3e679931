"""Families that commit in blocks which see themselves: on the native store as on the plain one, and as the
masks say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from canvaslm.cache import DenoiseContext, EncodeContext, KVCache
from canvaslm.engine import Engine
from canvaslm.model import Context, PlainContext
from canvaslm.ops import cpu
from canvaslm.types import Committed, Event, Finished, Params, Request
from tests.second_family import HOLE, HoleConfig, HoleModel, hole_model

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no native kernels here")

BLOCK = 16
CLOSE = 2e-3  # the native kernel multiplies in 16 bits: about 5e-4 of a result


@dataclass(frozen=True)
class SlidingHoles(HoleConfig):
    """The first layer slides, over a window that ends inside a block."""

    num_heads: int = 4
    num_kv_heads: int = 2
    sliding_window: ClassVar[int] = 21

    def is_sliding(self, layer: int) -> bool:
        return layer == 0

    def window_of(self, layer: int) -> int | None:
        return self.sliding_window if layer == 0 else None


CONFIGS = [HoleConfig(), SlidingHoles()]


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> None:
    torch.manual_seed(5)


def heads(config: HoleConfig, length: int) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(1, config.num_heads, length, config.head_dim)
    k, v = torch.randn(2, 1, config.num_kv_heads, length, config.head_dim)
    return q, k, v


def attended(
    config: HoleConfig, store: str | None, tensors: tuple[Tensor, Tensor, Tensor], cuts: list[int]
) -> list[Tensor]:
    """What each layer's encoding gives [1, L, heads * D], in chunks; then a canvas behind it. store None: by
    the masks over everything."""
    q, k, v = tensors
    cache = KVCache(config, "cpu", torch.float32, store=store or "tensors")
    plain, found, at = PlainContext(config), [], 0
    for count in cuts:
        part = slice(at, at + count)
        context: Context = plain if store is None else EncodeContext(cache)
        for layer in range(config.num_layers):
            found.append(
                context.encode_attention(
                    layer, q[:, :, part], k[:, :, part], v[:, :, part], torch.arange(at, at + count)[None]
                )
            )
        cache.advance(count)
        at += count
    canvas = slice(at, at + BLOCK)
    context = plain if store is None else DenoiseContext(cache)
    for layer in range(config.num_layers):
        positions = torch.arange(at, at + BLOCK)[None]
        found.append(
            context.denoise_attention(layer, q[:, :, canvas], k[:, :, canvas], v[:, :, canvas], positions)
        )
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize(
    "cuts", [[16], [16] * 5, [80], [32, 48], [512, 64], [256, 16], [240, 32, 272]], ids=str
)
def test_both_stores_give_what_the_masks_say(config: HoleConfig, cuts: list[int]) -> None:
    tensors = heads(config, sum(cuts) + BLOCK)
    by_masks = attended(config, None, tensors, cuts)
    for store in ("tensors", "blocks"):
        for mine, expected in zip(attended(config, store, tensors, cuts), by_masks, strict=True):
            torch.testing.assert_close(mine, expected, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_a_token_really_sees_what_follows_in_its_block(config: HoleConfig) -> None:
    """Otherwise causal commits would pass the tests above with a model that hardly looks ahead."""
    q, k, v = heads(config, 2 * BLOCK)
    q = q / 10  # so that everything seen counts
    other = v.clone()
    other[:, :, BLOCK - 1] += 10  # the last token of the first block, of which the canvas is the second
    for store in ("tensors", "blocks"):
        first, second = (attended(config, store, (q, k, values), [BLOCK])[0] for values in (v, other))
        assert ((first - second).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("store", ["tensors", "blocks"])
def test_cuts_between_blocks_change_nothing(config: HoleConfig, store: str) -> None:
    tensors = heads(config, 320 + BLOCK)
    layers = config.num_layers

    def joined(cuts: list[int]) -> list[Tensor]:
        found = attended(config, store, tensors, cuts)
        encoded = [torch.cat(found[layer : len(cuts) * layers : layers], 1) for layer in range(layers)]
        return [*encoded, *found[-layers:]]

    whole = joined([320])
    for cuts in ([16] * 20, [48, 272], [256, 64]):
        for mine, expected in zip(joined(cuts), whole, strict=True):
            torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("store", ["tensors", "blocks"])
def test_int8_is_close(store: str) -> None:
    config = SlidingHoles()
    q, k, v = heads(config, 96 + BLOCK)
    cache = KVCache(config, "cpu", torch.int8, store=store)
    part = slice(96)
    for layer in range(config.num_layers):
        found = EncodeContext(cache).encode_attention(
            layer, q[:, :, part], k[:, :, part], v[:, :, part], torch.arange(96)[None]
        )
        expected = attended(config, None, (q, k, v), [96])[layer]
        assert 0 < float((found - expected).norm() / expected.norm()) < 0.05


class BlockModel(HoleModel):
    """The second family's model, its keys and values where the native kernels read them."""

    store = "blocks"


@pytest.fixture(params=[0, 7])
def models(request: pytest.FixtureRequest) -> tuple[HoleModel, HoleModel]:
    plain = hole_model(request.param)
    native = BlockModel(HoleConfig()).eval()
    native.load_state_dict(plain.state_dict())
    return plain, native


@torch.inference_mode()
def test_states_of_a_whole_model_are_close(models: tuple[HoleModel, HoleModel]) -> None:
    tokens = torch.randint(6, 260, (1, 96))
    states = []
    for model in models:
        cache = KVCache(model.config, "cpu", torch.float32, store=model.store)
        for at, count in ((0, 32), (32, 48)):
            chunk = slice(at, at + count)
            model.encode(tokens[:, chunk], torch.arange(at, at + count)[None], EncodeContext(cache))
            cache.advance(count)
        holes = torch.full((1, BLOCK), HOLE)
        states.append(model.denoise(holes, torch.arange(80, 96)[None], DenoiseContext(cache)))
    assert float((states[0] - states[1]).norm() / states[0].norm()) < 0.01


@pytest.mark.parametrize("length", [1, 16, 31, 50, 300])
def test_the_engine_remembers_blocks_on_the_native_store(
    models: tuple[HoleModel, HoleModel], length: int
) -> None:
    """Three canvases, the two later ones behind commits that look both ways: asked again, the prompt and the
    answer's whole blocks are remembered, and no token changes; a next turn neither."""
    _, model = models
    params = Params(max_new_tokens=40, max_denoising_steps=24, sampler="probability_threshold",
                    accept_threshold=0.3, temperature=0.0, seed=1)  # fmt: skip
    prompt = tuple(10 + (7 * i + i * i) % 250 for i in range(length))
    engine = Engine(model)
    first, cached = answer(engine, Request(prompt, params))
    assert (len(first), cached) == (40, 0)
    again, cached = answer(engine, Request(prompt, params))
    assert (again, cached) == (first, length // BLOCK * BLOCK)
    turn = Request((*prompt, *first, 20, 21), params)
    warm, cached = answer(engine, turn)
    assert cached == (length + 40 - 1) // BLOCK * BLOCK
    assert warm == answer(Engine(model, prefix_memory=0), turn)[0]


def answer(engine: Engine, request: Request) -> tuple[list[int], int]:
    """The tokens of a request that runs alone, and how many of its prompt were remembered."""
    engine.submit(request)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    assert isinstance(events[-1], Finished), events[-1]
    tokens = [t for event in events if isinstance(event, Committed) for t in event.tokens]
    return tokens, events[-1].usage.cached_tokens
