"""The sampling parameters as keyword arguments.

Written by `python -m canvaslm.cli.docs` from the table in params.py: edit that.
"""

from __future__ import annotations

from typing import TypedDict


class SamplingOptions(TypedDict, total=False):
    """A field for each of `Params`; None takes the checkpoint's default."""

    max_new_tokens: int | None
    canvas_length: int | None
    min_new_tokens: int | None
    thinking_budget: int | None
    retry_empty: bool | None
    stop_on_repetition: bool | None
    repair: int | None
    mask: str | None
    seed: int | None
    max_denoising_steps: int | None
    temperature: float | None
    t_max: float | None
    t_min: float | None
    top_k: int | None
    top_k_start: int | None
    top_k_end: int | None
    top_k_tail_correction: bool | None
    sampler: str | None
    entropy_bound: float | None
    accept_threshold: float | None
    stability_threshold: int | None
    confidence_threshold: float | None
    first_places: int | None
    keep_steps: int | None
    keep_entropy: float | None
    decoding: str | None
    top_p: float | None
    verify: str | None
    verify_threshold: float | None
    verify_steps: int | None
    eos_aware_stopping: bool | None
    settle_steps: int | None
    settle_entropy: float | None


__all__ = ["SamplingOptions"]
