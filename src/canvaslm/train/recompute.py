"""Layers that keep their inputs alone and are computed once more on the way back: a third more time, for a
small part of the memory. Source: Chen et al. 2016 (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..model.protocol import Model


def recompute_layers(model: Model) -> None:
    """Once, before training. What comes before and after a layer's attention is recomputed, each by itself;
    keys and values, which a context keeps, are not. Gradients keep their bits."""
    for layer in model.layers:
        for name in ("before", "after"):
            setattr(layer, name, _recomputed(model, getattr(layer, name)))


def _recomputed(model: Model, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*arguments)
        switch = model.switch
        spans = () if switch is None else switch.spans  # the way back knows no phase

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), nullcontext() if switch is None else switch.using(spans)

        return checkpoint(
            function, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )

    return run


__all__ = ["recompute_layers"]
