"""The temperature and top-k of each step."""

from __future__ import annotations

import math

from .params import Params


def temperature(params: Params, step: int) -> float:
    """Temperature of the 0-based `step`: linear from t_max down to t_min (reference:
    `LinearTemperatureScheduleLogitsProcessor` in transformers' generation_diffusion_gemma.py).

    `params.temperature` scales it; at 0 the statistics keep the schedule's temperature and
    the sample is the argmax.
    """
    remaining = params.max_denoising_steps - step
    scheduled = params.t_min + (params.t_max - params.t_min) * (remaining / params.max_denoising_steps)
    return scheduled * (params.temperature or 1.0)


def top_k(params: Params, step: int) -> int:
    """How many tokens a place keeps at the 0-based `step`; 0: all.

    With `top_k_start` and `top_k_end` linear between them, the start at the first, flat step (llama.cpp's
    pull request 24427); else `params.top_k`.
    """
    if not (params.top_k_start and params.top_k_end):
        return params.top_k
    last = params.max_denoising_steps - 1
    remaining = (last - step) / last if last else 0.0
    return math.floor(params.top_k_end + (params.top_k_start - params.top_k_end) * remaining + 0.5)


__all__ = ["temperature", "top_k"]
