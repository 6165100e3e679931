"""Accept rules: which places of a canvas keep the token just sampled. The others are drawn anew, uniformly.

A sampler is a function without memory from one row's prediction to a mask. All state lives in the canvas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..ops import noise
from ..ops.predict import Prediction
from ..types import Params
from .canvas import Canvas


class Sampler(Protocol):
    """Which places [C] of a canvas accept their sampled token."""

    def __call__(self, canvas: Canvas, prediction: Prediction, params: Params) -> Tensor:
        """prediction of one row: tensors [C]; returns bool [C]."""


def entropy_bound(canvas: Canvas, prediction: Prediction, params: Params) -> Tensor:
    """Accepts the most certain places while the entropies before each sum to at most `params.entropy_bound`.

    The sum bounds the mutual information of what is accepted together, so that sampling the places independently
    does little harm (Ben-Hamu et al., https://arxiv.org/abs/2505.24857; `EntropyBoundSampler` in the reference).
    The most certain place is always accepted.
    """
    ordered, order = prediction.entropy.sort(stable=True)
    accepted = ordered.cumsum(0) - ordered <= params.entropy_bound
    return torch.zeros_like(accepted).scatter(0, order, accepted)


def probability_threshold(canvas: Canvas, prediction: Prediction, params: Params) -> Tensor:
    """Accepts places whose most probable token has probability >= `params.accept_threshold`, and the surest one.

    The threshold rule of Fast-dLLM (Wu et al., https://arxiv.org/abs/2505.22618).
    """
    accepted = prediction.logprob.exp() >= params.accept_threshold
    accepted[prediction.logprob.argmax()] = True
    return accepted


def ancestral(canvas: Canvas, prediction: Prediction, params: Params) -> Tensor:
    """Re-noises the sampled canvas to the next noise level: with s of N steps left after this one, each place keeps
    its token with probability 1 - s/N (forward process of uniform diffusion, Austin et al.,
    https://arxiv.org/abs/2107.03006). Ignores how certain the model is; the last step keeps everything.
    """
    left = params.max_denoising_steps - canvas.step - 1
    key = noise.stream(canvas.seed, canvas.index, canvas.step, noise.ANCESTRAL)
    coins = noise.uniforms(key, prediction.entropy.shape[0], prediction.entropy.device)
    return coins >= left / params.max_denoising_steps


SAMPLERS: dict[str, Callable[[Canvas, Prediction, Params], Tensor]] = {
    "entropy_bound": entropy_bound,
    "probability_threshold": probability_threshold,
    "ancestral": ancestral,
}

__all__ = ["SAMPLERS", "Sampler", "ancestral", "entropy_bound", "probability_threshold"]
