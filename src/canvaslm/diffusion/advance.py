"""One step of the sampling algorithm: a canvas and a prediction in, the next canvas out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..ops import noise
from ..ops.predict import Prediction
from ..types import CanvasStop, Params
from .canvas import Canvas
from .samplers import SAMPLERS
from .stopping import stable_and_confident


def advance(canvas: Canvas, prediction: Prediction, params: Params, vocab_size: int) -> Canvas:
    """Accepts some of the sampled tokens, draws the other places anew, and decides whether the canvas is done.

    prediction: one row's, tensors [C] (soft [C, H]). The result of a finished canvas is its `argmax`.
    Reference: `_denoising_step` in transformers' generation_diffusion_gemma.py.
    """
    prediction = _pin(prediction, canvas)
    accepted = SAMPLERS[params.sampler](canvas, prediction, params) | canvas.frozen
    sampled = prediction.argmax if params.temperature == 0 else prediction.sampled
    key = noise.stream(canvas.seed, canvas.index, canvas.step, noise.RENOISE)
    fresh = noise.tokens(key, len(sampled), vocab_size, sampled.device)
    moved = replace(
        canvas,
        tokens=torch.where(accepted, sampled, fresh),
        argmax=prediction.argmax,
        step=canvas.step + 1,
        history=_remember(canvas.history, prediction.argmax, params),
        soft=prediction.soft,
        entropy=prediction.entropy,
        accepted=accepted,
        changed=prediction.argmax != canvas.argmax,
    )
    return replace(moved, stop=_decide(moved, canvas.history, params))


def _pin(prediction: Prediction, canvas: Canvas) -> Prediction:
    """Given places are certain: their token is what was given, whatever the model thinks."""
    if not bool(canvas.frozen.any()):
        return prediction
    given, zero = canvas.tokens, torch.zeros_like(prediction.entropy)
    return Prediction(
        torch.where(canvas.frozen, given, prediction.sampled),
        torch.where(canvas.frozen, given, prediction.argmax),
        torch.where(canvas.frozen, zero, prediction.entropy),
        torch.where(canvas.frozen, zero, prediction.logprob),
        prediction.soft,
    )


def _remember(history: tuple[Tensor, ...], argmax: Tensor, params: Params) -> tuple[Tensor, ...]:
    keep = params.stability_threshold
    return (*history, argmax)[-keep:] if keep else ()


def _decide(moved: Canvas, history: tuple[Tensor, ...], params: Params) -> CanvasStop | None:
    if stable_and_confident(history, moved.argmax, moved.mean_entropy, params):
        return "converged"
    return "max_steps" if moved.step >= params.max_denoising_steps else None


__all__ = ["advance"]
