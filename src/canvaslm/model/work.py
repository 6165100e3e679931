"""What a family tells of the work that its layers do: for measuring, never for running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from .config import ModelConfig
from .protocol import Model

PROJECTIONS, DENSE, EXPERTS, ATTENTION = "projections", "dense_mlp", "experts", "attention"
HEAD, SELF, GLUE, REST = "head_sampling", "self_conditioning", "glue", "rest"
PARTS = (PROJECTIONS, DENSE, EXPERTS, ATTENTION, HEAD, SELF, GLUE, REST)


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates by part, and which module belongs to which part."""

    # (config, layer, tokens, pairs of a query and a key that meet) -> multiply-accumulates of one layer.
    layer_macs: Callable[[ModelConfig, int, int, int], dict[str, int]]
    key_width: Callable[[ModelConfig, int], int]  # columns of what projects a layer's keys and values
    self_macs: Callable[[ModelConfig], int]  # of self-conditioning one place, the soft embedding left out
    modules: Callable[[Model], Iterator[tuple[nn.Module, str]]]  # those of the layers that hold weights


__all__ = ["ATTENTION", "DENSE", "EXPERTS", "GLUE", "HEAD", "PARTS", "PROJECTIONS", "REST", "SELF", "Work"]
