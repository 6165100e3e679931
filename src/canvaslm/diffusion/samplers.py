"""Accept rules: which places of a canvas keep the token just sampled. The others are drawn anew, uniformly.

A sampler is a function without memory from the rows' predictions to a mask. All state lives in the canvas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..ops import noise
from ..ops.predict import Prediction
from .canvas import Canvas
from .rows import RowParams


class Sampler(Protocol):
    """Which places [R, C] of R canvases accept their sampled token. What it says of a row
    depends on no other row."""

    def __call__(self, canvas: Canvas, prediction: Prediction, params: RowParams) -> Tensor:
        """prediction: tensors [R, C]; returns bool [R, C]. Reads nothing back from the device."""


def entropy_bound(canvas: Canvas, prediction: Prediction, params: RowParams) -> Tensor:
    """Accepts the most certain places while the entropies before each sum to at most `params.entropy_bound`.

    The sum bounds the mutual information of what is accepted together, so that sampling the places
    independently does little harm (Ben-Hamu et al., https://arxiv.org/abs/2505.24857; `EntropyBoundSampler`
    in the reference). The most certain place is always accepted.
    """
    ordered, order = prediction.entropy.sort(dim=-1, stable=True)
    accepted = ordered.cumsum(-1) - ordered <= params.column("entropy_bound", like=ordered)
    return torch.zeros_like(accepted).scatter(-1, order, accepted)


def probability_threshold(canvas: Canvas, prediction: Prediction, params: RowParams) -> Tensor:
    """Accepts places whose most probable token has probability >=
    `params.accept_threshold`, and the surest one.

    The threshold rule of Fast-dLLM (Wu et al., https://arxiv.org/abs/2505.22618).
    """
    probability = prediction.logprob.exp()
    accepted = probability >= params.column("accept_threshold", like=probability)
    surest = prediction.logprob.argmax(-1, keepdim=True)
    return accepted.scatter(-1, surest, torch.ones_like(accepted))


def ancestral(canvas: Canvas, prediction: Prediction, params: RowParams) -> Tensor:
    """Re-noises the sampled canvas to the next noise level: with s of N steps left after this one, each place
    keeps its token with probability 1 - s/N (forward process of uniform diffusion, Austin et al.,
    https://arxiv.org/abs/2107.03006). Ignores how certain the model is; the last step keeps everything.
    """
    steps = params.column("max_denoising_steps")
    left = steps - canvas.step[:, None] - 1
    (keys,) = noise.streams(canvas.key, canvas.step, noise.ANCESTRAL)
    return noise.uniforms(keys, prediction.entropy.shape[-1]) >= left / steps


SAMPLERS: dict[str, Callable[[Canvas, Prediction, RowParams], Tensor]] = {
    "entropy_bound": entropy_bound,
    "probability_threshold": probability_threshold,
    "ancestral": ancestral,
}

__all__ = ["SAMPLERS", "Sampler", "ancestral", "entropy_bound", "probability_threshold"]
