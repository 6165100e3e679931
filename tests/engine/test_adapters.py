"""Answers written with adapters: each row's bits are its own, whatever goes with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.engine import Engine
from canvaslm.errors import UsageError
from canvaslm.model import Model, PlainContext
from canvaslm.model.adapters import Adapter
from canvaslm.model.adapting import AdaptedSpan
from canvaslm.ops import cpu
from canvaslm.types import AdapterUse, Params, Request
from canvaslm.weights.gguf.load import load_quantised
from tests.adapters import random_adapter
from tests.tiny import tiny_model, write_tiny_gguf

from .crowd import outputs

SIZES = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 160, "moe_intermediate_size": 96}


def plain() -> Model:
    return tiny_model(canvas_length=16, sliding_window=24)


def packed(folder: Path) -> Model:
    source = tiny_model(canvas_length=16, sliding_window=24, **SIZES)
    return load_quantised(write_tiny_gguf(source, folder / "m.gguf", "Q4_K_M")).model


@pytest.fixture(params=["plain", "packed"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    if request.param == "plain":
        return plain()
    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    return packed(tmp_path)


def ask(seed: int, *adapters: Adapter, scale: float = 1.0, **params: Any) -> Request:
    g = torch.Generator().manual_seed(seed)
    tokens = tuple(int(t) for t in torch.randint(5, 60, (20 + 7 * seed,), generator=g))
    usual = {"max_new_tokens": 40, "max_denoising_steps": 4, "seed": seed, **params}
    return Request(tokens, Params(**usual), adapters=tuple(AdapterUse(a, scale) for a in adapters))


def test_rows_with_two_adapters_and_none_have_the_bits_they_have_alone(model: Model) -> None:
    one, two = random_adapter(model, seed=1), random_adapter(model, seed=2)
    requests = [ask(1, one), ask(2), ask(3, two), ask(1), ask(2, one, two), ask(4, one, keep_steps=2)]
    alone = [outputs(model, [request])[0] for request in requests]
    assert outputs(model, requests) == alone
    assert alone[0] != alone[3]  # the same prompt without its adapter


def test_an_adapter_that_changes_nothing_gives_the_bits_of_the_base(tmp_path: Path) -> None:
    for model in (plain(), *([packed(tmp_path)] if cpu.available() else [])):
        before = outputs(model, [ask(1), ask(2)])
        adapter = random_adapter(model)
        untrained = Adapter(
            *(
                {name: replace(delta, b=torch.zeros_like(delta.b)) for name, delta in side.items()}
                for side in (adapter.encode, adapter.denoise)
            )
        ).without_zeros()
        assert not untrained.encode and not untrained.denoise
        assert outputs(model, [ask(1, untrained), ask(2)]) == before
        # And once adapted, without any.
        assert outputs(model, [ask(1), ask(2)]) == before


def test_no_prefix_is_shared_between_encode_sides(model: Model) -> None:
    one, two = random_adapter(model, seed=1), random_adapter(model, seed=2)
    denoise_only = Adapter(denoise=one.denoise)
    first = ask(30)
    uses = [(one,), (two,), (), (denoise_only,)]
    fresh = [outputs(model, [replace(first, adapters=_uses(*use))])[0] for use in uses]
    engine = Engine(model)
    cached: list[int] = []
    again = []
    for use in uses:
        engine.submit(replace(first, adapters=_uses(*use)))
        tokens: list[int] = []
        while engine.has_work:
            for event in engine.step():
                tokens += getattr(event, "tokens", ())
                if type(event).__name__ == "Finished":
                    cached.append(event.usage.cached_tokens)
        again.append(tokens)
    assert again == fresh
    assert cached[:3] == [0, 0, 0]
    assert cached[3] > 0  # its encode side is the base's


def _uses(*adapters: Adapter) -> tuple[AdapterUse, ...]:
    return tuple(AdapterUse(adapter) for adapter in adapters)


@pytest.mark.parametrize("part", ["self_attn", "mlp", "router", "experts", "self_conditioning"])
def test_adapted_logits_are_those_of_merged_weights(part: str) -> None:
    model, merged = plain(), plain()
    adapter = random_adapter(model, parts=[part], sides="equal")
    for name, delta in adapter.encode.items():
        weight = merged.get_parameter(name if "experts" in name else f"{name}.weight")
        weight.data += delta.matrix()
    tokens = torch.randint(5, 60, (1, 40))
    switch = model.adapt()
    with switch.using([AdaptedSpan(0, None, ((adapter.encode, 1.0),))]):
        got = _logits(model, tokens)
    torch.testing.assert_close(got, _logits(merged, tokens), rtol=1e-4, atol=2e-5)
    assert not torch.allclose(got, _logits(model, tokens), atol=1e-3)


def _logits(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    places = torch.arange(56)[None]
    context = PlainContext(model.config)
    with torch.no_grad():
        model.encode(tokens, places[:, :40], context)
        soft = torch.randn(1, 16, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        return model.logits(model.denoise(tokens[:, :16], places[:, 40:], context, soft))


def test_scale_is_a_factor_and_zero_is_the_base(model: Model) -> None:
    adapter = random_adapter(model)
    doubled = Adapter(
        *(
            {name: replace(delta, scale=2 * delta.scale) for name, delta in side.items()}
            for side in (adapter.encode, adapter.denoise)
        )
    )
    assert outputs(model, [ask(1, adapter, scale=2.0)]) == outputs(model, [ask(1, doubled)])
    assert outputs(model, [ask(1, adapter, scale=0.0)]) == outputs(model, [ask(1)])


def test_an_adapter_of_another_model_is_refused_and_all_misfits_are_named() -> None:
    model = plain()
    other = random_adapter(tiny_model(canvas_length=16, hidden_size=96), parts=["mlp"])
    with pytest.raises(UsageError, match=r"encode layers.0.mlp.gate_proj: .*and \d+ more") as found:
        Engine(model).submit(ask(1, other))
    assert found.value.param == "adapter"
    with pytest.raises(UsageError, match="finite"):
        Engine(model).submit(ask(1, random_adapter(model), scale=float("nan")))
