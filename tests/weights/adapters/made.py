"""Adapters of tiny models, and the model with an adapter's changes added to its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from canvaslm.model import PlainContext
from canvaslm.model.adapters import Adapter, WeightDelta
from canvaslm.model.diffusion_gemma import DiffusionGemma, DiffusionGemmaConfig
from canvaslm.weights.adapters.modules import modules_of
from canvaslm.weights.adapters.sides import both_sides
from tests.adapters import random_delta
from tests.tiny import tiny_config

CONFIG = tiny_config()
MODULES = modules_of(CONFIG)


def delta(module: str, rank: int = 2, scale: float = 1.5, seed: int = 0) -> WeightDelta:
    """A change as large as the weights, of the size that the tiny model has for the module."""
    *experts, out, inner = MODULES.shapes[module]
    generator = torch.Generator().manual_seed(seed + sum(map(ord, module)))
    a = torch.randn(*experts, rank, inner, generator=generator) / inner**0.5
    b = torch.randn(*experts, out, rank, generator=generator) / rank**0.5
    return WeightDelta(a, b, scale)


def some(words: Iterable[str]) -> list[str]:
    """The modules whose names contain one of the words."""
    return [name for name in MODULES.shapes if any(word in name for word in words)]


def deltas(*words: str, seed: int = 0, rank: int = 2, scale: float = 1.5) -> dict[str, WeightDelta]:
    return {name: delta(name, rank, scale, seed) for name in some(words)}


def adapter_of(config: DiffusionGemmaConfig, *words: str) -> Adapter:
    """Of equal sides, for a model of these sizes; of the modules whose names contain one of the words, or
    all."""
    modules = modules_of(config)
    changes = {
        name: random_delta(shape, 2, seed)
        for seed, (name, shape) in enumerate(modules.shapes.items())
        if not words or any(word in name for word in words)
    }
    return both_sides(changes, modules)


def same(one: Mapping[str, WeightDelta], other: Mapping[str, WeightDelta], tolerance: float = 0.0) -> bool:
    """Whether two sides change the same matrices by the same."""
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].matrix(), other[name].matrix(), rtol=0, atol=tolerance) for name in one
    )


@contextmanager
def added(model: DiffusionGemma, side: Mapping[str, WeightDelta]) -> Iterator[None]:
    """The model with the changes in its weights, for a while."""
    weights = dict(model.named_parameters())
    before = {name: weights[MODULES.weight(name)].detach().clone() for name in side}
    with torch.no_grad():
        for name, change in side.items():
            weights[MODULES.weight(name)].add_(change.matrix())
        try:
            yield
        finally:
            for name, values in before.items():
                weights[MODULES.weight(name)].copy_(values)


@torch.no_grad()
def logits(model: DiffusionGemma, adapter: Adapter, prompt: Tensor, canvas: Tensor, soft: bool) -> Tensor:
    """Of a canvas behind a prompt, each phase with its own weights; with `soft`, of its second step."""
    length = prompt.shape[1]
    context = PlainContext(model.config)
    with added(model, adapter.encode):
        model.encode(prompt, torch.arange(length).expand(len(prompt), -1), context)
    places = torch.arange(length, length + canvas.shape[1]).expand(len(prompt), -1)
    with added(model, adapter.denoise):
        found = model.logits(model.denoise(canvas, places, context, None))
        if soft:
            embedded = model.soft_embedding(found.softmax(-1))
            found = model.logits(model.denoise(canvas, places, context, embedded))
    return found


__all__ = ["CONFIG", "MODULES", "adapter_of", "added", "delta", "deltas", "logits", "same", "some"]
