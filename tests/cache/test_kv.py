"""What a cache holds: the same bytes however tokens were cut, as much as was estimated,
in every type it can keep."""

from __future__ import annotations

import ctypes

import pytest
import torch

import canvaslm
from canvaslm.cache import DenoiseContext, EncodeContext, KVCache, storage_type
from canvaslm.engine import Driver, Engine
from canvaslm.errors import UsageError
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.ops.cpu.memory import MemoryBlock
from canvaslm.types import Finished, Params, Request
from tests.tiny import tiny_config

TOKENS = [(7 * i + i * i) % 60 + 2 for i in range(600)]


def new_cache(model: DiffusionGemma, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(model.config, "cpu", dtype, store=model.store)


def is_packed(model: DiffusionGemma) -> bool:
    return hasattr(model.layers[0], "plain")


@torch.inference_mode()
def encode(
    model: DiffusionGemma, cache: KVCache, tokens: list[int], cuts: list[int] | None = None
) -> KVCache:
    at = 0
    for count in cuts or [len(tokens)]:
        chunk = torch.tensor([tokens[at : at + count]])
        model.encode(chunk, cache.length + torch.arange(count)[None], EncodeContext(cache))
        cache.advance(count)
        at += count
    return cache


@torch.inference_mode()
def denoise(model: DiffusionGemma, cache: KVCache) -> torch.Tensor:
    places = model.config.canvas_length
    positions = cache.length + torch.arange(places)[None]
    return model.denoise(torch.arange(places)[None] + 5, positions, DenoiseContext(cache))


def blocks(cache: KVCache) -> list[bytes]:
    pieces = [part for part in cache.shared() if isinstance(part, MemoryBlock)]
    assert pieces
    return [ctypes.string_at(piece.address, piece.nbytes) for piece in pieces]


@pytest.mark.parametrize("dtype", [torch.int16, torch.int8])
@pytest.mark.parametrize("cuts", [[100, 156, 200, 56], [16] * 32, [5, 507], [256, 256], [255, 2, 255]])
def test_native_bytes_do_not_depend_on_how_a_prompt_was_cut(
    packed_model: DiffusionGemma, cuts: list[int], dtype: torch.dtype
) -> None:
    """Two layers: the second's keys depend on the first's attention, so that is exact too."""
    whole = encode(packed_model, new_cache(packed_model, dtype), TOKENS[:512])
    cut = encode(packed_model, new_cache(packed_model, dtype), TOKENS[:512], cuts)
    assert blocks(cut) == blocks(whole)
    assert torch.equal(denoise(packed_model, cut), denoise(packed_model, whole))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.int8, 0.05)])
def test_narrow_types_are_close_in_plain_torch(
    plain_model: DiffusionGemma, dtype: torch.dtype, bound: float
) -> None:
    wide, narrow = (
        denoise(plain_model, encode(plain_model, new_cache(plain_model, kind), TOKENS, [512, 88]))
        for kind in (torch.float32, dtype)
    )
    assert 0 < float((wide - narrow).norm() / wide.norm()) < bound


def test_int8_is_close_on_native_kernels(packed_model: DiffusionGemma) -> None:
    wide, narrow = (
        denoise(packed_model, encode(packed_model, new_cache(packed_model, kind), TOKENS, [512, 88]))
        for kind in (torch.int16, torch.int8)
    )
    assert 0 < float((wide - narrow).norm() / wide.norm()) < 0.1


def test_int8_gives_whole_answers(model: DiffusionGemma) -> None:
    params = Params(max_new_tokens=40, max_denoising_steps=4, seed=1)
    engine = Engine(model, kv_type=torch.int8)
    assert engine.runner.kv_type is torch.int8
    answers = [list(Driver(engine).events(Request(tuple(TOKENS[:50]), params))) for _ in range(2)]
    assert all(isinstance(events[-1], Finished) for events in answers)
    assert answers[1][-1].usage.cached_tokens == 49
    assert [e.tokens for e in answers[0][:-1]] == [e.tokens for e in answers[1][:-1]]


def test_what_is_kept_for_what_is_asked() -> None:
    for asked in (torch.float32, torch.bfloat16, torch.float16, torch.int16):
        assert storage_type(asked, store="blocks") is torch.int16
    assert storage_type(torch.int8, store="blocks") is torch.int8
    for asked in (torch.float32, torch.bfloat16, torch.int8):
        assert storage_type(asked, store="tensors") is asked
    with pytest.raises(UsageError, match=r"torch\.int16 here: choose float32, bfloat16 or int8"):
        storage_type(torch.int16, store="tensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("length", [1, 200, 250, 900, 2000])
def test_no_cache_grows_beyond_its_estimate(model: DiffusionGemma, length: int, dtype: torch.dtype) -> None:
    engine = Engine(model, kv_type=dtype, prefix_memory=0)
    params = Params(max_new_tokens=100, max_denoising_steps=1, seed=0)
    engine.submit(Request(tuple(TOKENS[i % 600] for i in range(length)), params))
    (sequence,) = engine.scheduler.waiting
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, sequence.cache.bytes if sequence.cache else 0)
    in_blocks = engine.runner.model.store == "blocks"
    # Plain buffers of sliding layers are made for what a canvas sees; a chunk of 512 tokens
    # may be more than that.
    assert 0 < most <= sequence.kv_bytes * (1 if in_blocks or length <= 200 else 2)


def test_int8_takes_half_of_16_bits() -> None:
    config = tiny_config(head_dim=256, global_head_dim=512)
    for tokens in (256, 5000):
        halves = [
            KVCache.estimate(config, tokens, dtype, store="blocks") for dtype in (torch.int8, torch.int16)
        ]
        assert halves[0] / halves[1] == pytest.approx(0.5, abs=0.02)
        assert KVCache.estimate(config, tokens, torch.int8) == pytest.approx(
            KVCache.estimate(config, tokens, torch.bfloat16) / 2, rel=0.02
        )


def test_sliding_layers_forget_and_full_ones_do_not(model: DiffusionGemma) -> None:
    cache = encode(model, new_cache(model), TOKENS * 4, [300] * 8)
    spans = [cache.has_sliding(i) for i in range(-(-2400 // cache.block))]
    assert not spans[0]
    assert spans[-1]
    # A branch may start a little earlier than the end, and not where sliding layers have forgotten.
    assert cache.usable(2400) == 2400
    assert cache.usable(2400 - cache.slack) == 2400 - cache.slack
    assert cache.usable(1000) == 0


def test_a_session_takes_the_types_by_name() -> None:
    assert canvaslm.load(kv_type="int8").engine.runner.kv_type is torch.int8
    with pytest.raises(UsageError, match="'int4': choose one of float32, bfloat16, int8"):
        canvaslm.load(kv_type="int4")
