"""A canvas: all state of one row while it is denoised, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import noise
from ..types import CanvasStop


@dataclass(frozen=True)
class Canvas:
    """One row's canvas after `step` denoise steps. Tensors are [C]; advancing makes a new Canvas."""

    seed: int
    index: int  # 0-based number of the canvas within its answer
    tokens: Tensor  # int64, what the model reads next: accepted tokens and fresh noise
    argmax: Tensor  # int64, the draft: the model's best guess of every place
    frozen: Tensor  # bool, places whose token is given and never changes
    step: int = 0
    history: tuple[Tensor, ...] = ()  # argmax canvases of the last steps, for the stopping rule
    soft: Tensor | None = None  # [C, H], soft embedding of the last prediction; None before the first step
    entropy: Tensor | None = None  # nats, fp32
    accepted: Tensor | None = None  # bool
    changed: Tensor | None = None  # bool, argmax differs from the step before
    logprob: Tensor | None = None  # fp32, of the argmax token
    top: tuple[Tensor, Tensor] | None = None  # (token ids int64, log-probabilities fp32), each [C, k]
    held: Tensor | None = None  # int64, steps for which a place kept its argmax and was certain
    stop: CanvasStop | None = None  # set once the canvas is finished

    @property
    def mean_entropy(self) -> float:
        """Mean over the places, in nats; infinite before the first step."""
        return float("inf") if self.entropy is None else float(self.entropy.mean())


def start_canvas(
    seed: int,
    index: int,
    length: int,
    vocab_size: int,
    device: torch.device | str = "cpu",
    given: Mapping[int, int] | None = None,
) -> Canvas:
    """A canvas of uniform random tokens over the whole vocabulary; `given` fixes places: {place: token id}."""
    tokens = noise.tokens(noise.stream(seed, index, 0, noise.START), length, vocab_size, device)
    frozen = torch.zeros(length, dtype=torch.bool, device=device)
    for place, token in (given or {}).items():
        tokens[place], frozen[place] = token, True
    return Canvas(seed=seed, index=index, tokens=tokens, argmax=tokens, frozen=frozen)


__all__ = ["Canvas", "start_canvas"]
