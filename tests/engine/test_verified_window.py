"""Verified answers longer than a sliding window: what is out of reach is dropped when a verdict falls."""

from __future__ import annotations

import pytest

from canvaslm.types import Params, Request
from tests.tiny import tiny_model

from .crowd import outputs


@pytest.mark.parametrize("verify", ["greedy", "threshold", "sample"])
def test_a_verdict_may_drop_what_is_out_of_reach(verify: str) -> None:
    model = tiny_model(canvas_length=16, sliding_window=24)
    params = Params(max_new_tokens=1200, max_denoising_steps=4, verify=verify, verify_steps=2, seed=1)
    # A Failed event would be raised as an assertion.
    (tokens,) = outputs(model, [Request(tuple(range(5, 45)), params)])
    assert len(tokens) == 1200
