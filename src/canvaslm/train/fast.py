"""Compiled pieces of a training step. Everything here computes what the plain code
computes, only with fewer passes.

A layer's work before and after attention is compiled once and shared by all layers, for any batch size;
attention stays the fused kernel it is. Compiling whole stacks is no faster to run and takes minutes to build.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..model.protocol import Model
from .objective import Objective, soft_guess, token_losses


def compile_objective(objective: Objective) -> None:
    """Compiles what the objective's model and losses spend their time in; attention
    stays the fused kernel it is."""
    compile_layers(objective.model)
    objective.token_losses = compiled(token_losses)
    objective.soft_guess = compiled(soft_guess)
    mixer = objective.model.self_conditioning
    if mixer is not None:
        _replace(mixer, "forward", compiled(type(mixer).forward))


def compile_layers(model: Model) -> None:
    """Replaces `before` and `after` of each layer of this model by compiled ones.

    Sliding and full layers differ in their sizes, so that two variants of each are built, on the first steps.
    """
    made: dict[tuple[type, str], Callable[..., Any]] = {}
    for layer in model.layers:
        for method in ("before", "after"):
            key = type(layer), method
            if key not in made:
                made[key] = compiled(getattr(type(layer), method))
            _replace(layer, method, made[key])


def _replace(module: nn.Module, method: str, function: Callable[..., Any]) -> None:
    """Puts `function` in the place of one module's method. It is no attribute of the
    module in torch's sense."""
    module.__dict__[method] = functools.partial(function, module)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for any batch size."""
    # One variant per kind of layer, with and without gradient, plus shapes of size 1: well below this limit.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    return torch.compile(function, dynamic=True)


__all__ = ["compile_layers", "compile_objective", "compiled"]
