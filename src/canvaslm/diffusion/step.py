"""One step of the sampling algorithm: canvases and a prediction in, the next canvases out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..families import ModelFacts
from ..ops import noise
from ..ops.predict import Prediction
from .canvas import STOPS, Canvas
from .rows import RowParams
from .samplers import SAMPLERS
from .stopping import all_accepted, ends_early, stable_and_confident

_UNIFORM = ModelFacts()


def advance(
    canvas: Canvas,
    prediction: Prediction,
    params: RowParams,
    vocab_size: int,
    facts: ModelFacts = _UNIFORM,
) -> Canvas:
    """Accepts some of the sampled tokens, makes noise of the other places, and decides
    which canvases are done.

    canvas, prediction, params: of the same R rows, tensors [R, C] (soft [R, C, H]). facts: the model's. Where
    it keeps what it accepted, such a place is frozen, and the argmax has its token. The result of a finished
    canvas is its `argmax`. Nothing is read from the device, and no row depends on another. Reference:
    `_denoising_step` in transformers' generation_diffusion_gemma.py.
    """
    prediction = _pin(prediction, canvas)
    accepted = _accept(canvas, _open_places(canvas, prediction, facts), params) | canvas.frozen | canvas.kept
    greedy = params.column("temperature") == 0
    sampled = torch.where(greedy, prediction.argmax, prediction.sampled)
    argmax = torch.where(accepted, sampled, prediction.argmax) if facts.keeps_accepted else prediction.argmax
    changed = argmax != canvas.argmax
    first = canvas.step[:, None] == 0  # the argmax before the first step is noise, which no step has said
    moved = replace(
        canvas,
        tokens=torch.where(accepted, sampled, _noise(canvas, vocab_size, facts)),
        argmax=argmax,
        frozen=accepted if facts.keeps_accepted else canvas.frozen,
        step=canvas.step + 1,
        unchanged=torch.where(changed | first, 0, canvas.unchanged + 1),
        held=_held(canvas.held, prediction, changed, params.column("settle_entropy")),
        soft=prediction.soft,
        entropy=prediction.entropy,
        accepted=accepted,
        changed=changed,
        logprob=prediction.logprob,
        top_tokens=prediction.top_tokens,
        top_logprobs=prediction.top_logprobs,
    )
    return _keep(replace(moved, stop=_decide(moved, params, facts)), canvas, prediction, params)


def settle(canvas: Canvas, params: RowParams) -> Canvas:
    """Freezes the start of each live canvas that has been certain for `settle_steps`
    steps; `settled` counts it.

    Nothing happens to rows with `settle_steps` 0.
    """
    if not params.sends_early:
        return canvas
    wanted = params.column("settle_steps")
    certain = (canvas.held >= wanted).long().cumprod(-1).sum(-1)  # places before the first that waits
    live = (wanted[:, 0] > 0) & (canvas.stop == 0)
    settled = torch.where(live, torch.maximum(canvas.settled, certain), canvas.settled)
    places = torch.arange(canvas.tokens.shape[-1], device=canvas.tokens.device)
    start = (places < settled[:, None]) & live[:, None]
    tokens = torch.where(start, canvas.argmax, canvas.tokens)
    return replace(canvas, tokens=tokens, frozen=canvas.frozen | start, settled=settled)


def _noise(canvas: Canvas, vocab_size: int, facts: ModelFacts) -> Tensor:
    """What places that are not accepted become: int64 [R, C]."""
    if facts.mask_token_id is not None:
        return torch.full_like(canvas.tokens, facts.mask_token_id)
    (keys,) = noise.streams(canvas.key, canvas.step, noise.RENOISE)
    return noise.tokens(keys, canvas.tokens.shape[-1], vocab_size)


def _open_places(canvas: Canvas, prediction: Prediction, facts: ModelFacts) -> Prediction:
    """What a sampler judges. Where accepted places stay, the surest place is one of the
    others: each step accepts one."""
    if not facts.keeps_accepted:
        return prediction
    return replace(prediction, logprob=prediction.logprob.masked_fill(canvas.frozen, -torch.inf))


def _accept(canvas: Canvas, prediction: Prediction, params: RowParams) -> Tensor:
    """Each row's sampler's word: bool [R, C]."""
    first, *others = dict.fromkeys(params.samplers)
    accepted = SAMPLERS[first](canvas, prediction, params)
    for name in others:
        accepted = torch.where(params.using(name), SAMPLERS[name](canvas, prediction, params), accepted)
    return accepted


def _held(before: Tensor, prediction: Prediction, changed: Tensor, limit: Tensor) -> Tensor:
    """Steps for which each place kept its argmax with an entropy below the limit [R, 1] in nats, this step
    included. before: how many they were, int64 [R, C]."""
    certain = prediction.entropy < limit.to(prediction.entropy.dtype)
    return torch.where(certain, torch.where(changed, 1, before + 1), 0)


def _keep(moved: Canvas, before: Canvas, prediction: Prediction, params: RowParams) -> Canvas:
    """Notes which places of a canvas that goes on need not be computed any more: those certain of one argmax
    for `keep_steps` steps. They take part in all further steps with what they were last computed to be."""
    if not params.keeps:
        return moved
    assert moved.changed is not None
    new = moved.changed | (before.step[:, None] == 0)
    wanted = params.column("keep_steps")
    sure = torch.where(wanted > 0, _held(before.sure, prediction, new, params.column("keep_entropy")), 0)
    kept = moved.kept | (sure >= wanted) & (wanted > 0)
    # Its token is no longer drawn.
    return replace(moved, sure=sure, kept=kept, tokens=torch.where(kept, moved.argmax, moved.tokens))


def _pin(prediction: Prediction, canvas: Canvas) -> Prediction:
    """Given places are certain: their token is what was given, whatever the model thinks. Kept ones are
    certain of their argmax; else the mean entropy would never fall to what ends a canvas."""
    frozen, fixed = canvas.frozen, canvas.frozen | canvas.kept
    known = torch.where(frozen, canvas.tokens, canvas.argmax)
    return replace(
        prediction,
        sampled=torch.where(fixed, known, prediction.sampled),
        argmax=torch.where(fixed, known, prediction.argmax),
        entropy=prediction.entropy.masked_fill(fixed, 0.0),
        logprob=prediction.logprob.masked_fill(frozen, 0.0),
    )


def _decide(moved: Canvas, params: RowParams, facts: ModelFacts) -> Tensor:
    """Why each row is finished, as an index into STOPS: int64 [R]."""
    assert moved.entropy is not None
    if facts.keeps_accepted:
        done = all_accepted(moved.argmax, moved.frozen, params)
    else:
        done = stable_and_confident(moved.argmax, moved.unchanged, moved.entropy, params)
    most, first = params.column("max_denoising_steps")[:, 0], params.column("verify_steps")[:, 0]
    last = moved.step >= torch.where(first > 0, torch.minimum(most, first), most)
    stop = torch.where(done, STOPS.index("converged"), torch.where(last, STOPS.index("max_steps"), 0))
    if not params.grows:
        return stop
    # Of a row of its own: one without `first_places` has the places that it has.
    small = moved.argmax.shape[-1] < params.column("canvas_length")[:, 0]
    small = small & (params.column("first_places")[:, 0] > 0)
    return torch.where(small & ~ends_early(moved.argmax, params), STOPS.index("outgrown"), stop)


__all__ = ["advance", "settle"]
