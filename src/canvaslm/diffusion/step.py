"""One step of the sampling algorithm: a canvas and a prediction in, the next canvas out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..ops import noise
from ..ops.predict import Prediction
from ..types import CanvasStop, Params
from .canvas import Canvas
from .samplers import SAMPLERS
from .stopping import stable_and_confident


def advance(
    canvas: Canvas, prediction: Prediction, params: Params, vocab_size: int, eos_token_ids: Sequence[int] = ()
) -> Canvas:
    """Accepts some of the sampled tokens, draws the other places anew, and decides whether the canvas is done.

    prediction: one row's, tensors [C] (soft [C, H]). eos_token_ids matter to `eos_aware_stopping` alone. The result of a finished canvas is its `argmax`.
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
        logprob=prediction.logprob,
        top=_top(prediction),
        held=_held(canvas, prediction, params),
    )
    return replace(moved, stop=_decide(moved, canvas.history, params, eos_token_ids))


def settle(canvas: Canvas, sent: int, params: Params) -> tuple[Canvas, int]:
    """Freezes the prefix that has been certain for `settle_steps` steps: (canvas, places frozen so far).

    sent: how many places were frozen before. Nothing happens with `settle_steps` 0.
    """
    if not params.settle_steps or canvas.held is None:
        return canvas, sent
    waiting = (canvas.held < params.settle_steps).nonzero()
    count = max(sent, int(waiting[0]) if len(waiting) else len(canvas.held))
    if count == sent:
        return canvas, sent
    prefix = torch.arange(len(canvas.held), device=canvas.held.device) < count
    tokens = torch.where(prefix, canvas.argmax, canvas.tokens)
    return replace(canvas, tokens=tokens, frozen=canvas.frozen | prefix), count


def _top(prediction: Prediction) -> tuple[Tensor, Tensor] | None:
    if prediction.top_tokens is None or prediction.top_logprobs is None:
        return None
    return prediction.top_tokens, prediction.top_logprobs


def _held(canvas: Canvas, prediction: Prediction, params: Params) -> Tensor:
    """Steps for which each place kept its argmax with an entropy below `settle_entropy`, this step included."""
    before = canvas.held if canvas.held is not None else torch.zeros_like(prediction.argmax)
    kept = torch.where(prediction.argmax == canvas.argmax, before + 1, 1)
    return torch.where(prediction.entropy < params.settle_entropy, kept, 0)


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
        prediction.top_tokens,
        prediction.top_logprobs,
    )


def _remember(history: tuple[Tensor, ...], argmax: Tensor, params: Params) -> tuple[Tensor, ...]:
    keep = params.stability_threshold
    return (*history, argmax)[-keep:] if keep else ()


def _decide(
    moved: Canvas, history: tuple[Tensor, ...], params: Params, eos_token_ids: Sequence[int]
) -> CanvasStop | None:
    assert moved.entropy is not None
    if stable_and_confident(history, moved.argmax, moved.entropy, params, eos_token_ids):
        return "converged"
    return "max_steps" if moved.step >= params.max_denoising_steps else None


__all__ = ["advance", "settle"]
