"""The sampling rules on hand-made predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from canvaslm.diffusion import (
    SAMPLERS,
    Canvas,
    RowParams,
    advance,
    check_params,
    progress,
    start_canvas,
    temperature,
    top_k,
)
from canvaslm.errors import UsageError
from canvaslm.ops.predict import Prediction
from canvaslm.types import Params

VOCAB = 50


def prediction(
    entropy: list[float], argmax: list[int] | None = None, sampled: list[int] | None = None
) -> Prediction:
    """Of one row."""
    places = len(entropy)
    best = torch.tensor([argmax or list(range(10, 10 + places))])
    drawn = torch.tensor([sampled or list(range(20, 20 + places))])
    uncertain = torch.tensor([entropy])
    return Prediction(drawn, best, uncertain, -uncertain, None)


def canvas(places: int = 4, **given: int) -> Canvas:
    return start_canvas(3, 0, places, VOCAB, given={int(k[1:]): v for k, v in given.items()})


def accepts(sampler: str, start: Canvas, said: Prediction, params: Params) -> torch.Tensor:
    (row,) = SAMPLERS[sampler](start, said, RowParams.of(params))
    return row


def step(start: Canvas, said: Prediction, params: Params) -> Canvas:
    return advance(start, said, RowParams.of(params), VOCAB)


def stop(moved: Canvas) -> str | None:
    return progress(moved)[0].stop


def test_temperature_falls_linearly_and_ends_above_t_min() -> None:
    params = Params(max_denoising_steps=4, t_min=0.4, t_max=0.8)
    assert [round(temperature(params, s), 6) for s in range(4)] == [0.8, 0.7, 0.6, 0.5]
    assert temperature(replace(params, temperature=2.0), 0) == pytest.approx(1.6)
    assert temperature(replace(params, temperature=0), 0) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("steps", "start", "end", "ks"),
    [
        (5, 256, 16, [256, 196, 136, 76, 16]),
        (4, 10, 1, [10, 7, 4, 1]),
        (3, 10, 5, [10, 8, 5]),  # 7.5 rounds up
        (3, 2, 8, [2, 5, 8]),
        (1, 256, 16, [16]),  # the only step is the last
    ],
)
def test_top_k_falls_linearly_from_start_to_end(steps: int, start: int, end: int, ks: list[int]) -> None:
    params = Params(max_denoising_steps=steps, top_k=7, top_k_start=start, top_k_end=end)
    assert [top_k(params, s) for s in range(steps)] == ks


def test_without_both_ends_top_k_stays() -> None:
    assert [top_k(Params(top_k=7, max_denoising_steps=3), s) for s in range(3)] == [7, 7, 7]
    assert top_k(Params(), 0) == 0
    for name, missing in (("top_k_start", "top_k_end"), ("top_k_end", "top_k_start")):
        four: Any = {name: 4}
        with pytest.raises(UsageError, match=f"{name} = 4 needs {missing} > 0") as caught:
            check_params(Params(**four))
        assert caught.value.param == missing
    assert check_params(Params(top_k=3, top_k_start=4, top_k_end=4, top_k_tail_correction=True)).top_k == 3


@pytest.mark.parametrize(
    ("entropy", "accepted"),
    [
        ([5.0, 4.0, 3.0, 9.0], [False, False, True, False]),  # the surest place always
        ([0.0, 0.05, 0.04, 9.0], [True, True, True, True]),  # before the last: 0.09 <= 0.1
        ([0.0, 0.07, 0.06, 9.0], [True, True, True, False]),  # before the last: 0.13
        ([0.2, 0.2, 0.2, 0.2], [True, False, False, False]),  # ties go to the first place
    ],
)
def test_entropy_bound(entropy: list[float], accepted: list[bool]) -> None:
    assert accepts("entropy_bound", canvas(), prediction(entropy), Params()).tolist() == accepted


def test_probability_threshold_accepts_the_sure_and_the_surest() -> None:
    def accepted(entropy: list[float]) -> list[bool]:
        return accepts("probability_threshold", canvas(), prediction(entropy), Params()).tolist()

    assert accepted([0.05, 3.0, 0.01, 0.2]) == [True, False, True, False]
    assert accepted([2.0, 3.0, 1.0, 4.0]) == [False, False, True, False]


def test_ancestral_keeps_more_and_more_and_at_last_everything() -> None:
    params, flat = Params(max_denoising_steps=5, sampler="ancestral"), prediction([1.0] * 2000)
    start = start_canvas(3, 0, 2000, VOCAB)
    shares = [
        accepts("ancestral", replace(start, step=torch.tensor([s])), flat, params).float().mean().item()
        for s in range(5)
    ]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=0.04)
    assert shares[-1] == 1.0


def test_accepted_places_take_the_sample_and_others_fresh_noise() -> None:
    before = canvas()
    after = step(before, prediction([0.2, 9.0, 9.0, 9.0]), Params())
    assert after.accepted is not None
    assert after.accepted[0].tolist() == [True, False, False, False]
    assert after.tokens[0, 0] == 20
    assert after.argmax[0].tolist() == [10, 11, 12, 13]
    again = step(after, prediction([0.2, 9.0, 9.0, 9.0]), Params())
    assert not torch.equal(after.tokens[:, 1:], again.tokens[:, 1:])  # drawn anew every step
    assert torch.equal(before.tokens, canvas().tokens)  # advancing leaves the old canvas alone


def test_a_canvas_stops_when_stable_and_confident() -> None:
    params, sure = Params(stability_threshold=2), prediction([0.001] * 4)
    state = canvas()
    for expected in (None, None, "converged"):
        state = step(state, sure, params)
        assert stop(state) == expected


def test_one_changed_place_starts_the_wait_again() -> None:
    params, state = Params(stability_threshold=1), canvas()
    state = step(state, prediction([0.001] * 4), params)
    state = step(state, prediction([0.001] * 4, [10, 11, 12, 40]), params)
    assert stop(state) is None
    assert state.changed is not None
    assert state.changed[0].tolist() == [False, False, False, True]
    assert stop(step(state, prediction([0.001] * 4, [10, 11, 12, 40]), params)) == "converged"


def test_without_stability_confidence_alone_decides() -> None:
    params = Params(stability_threshold=0)
    assert stop(step(canvas(), prediction([0.001] * 4), params)) == "converged"
    assert stop(step(canvas(), prediction([0.006] * 4), params)) is None


def test_the_last_step_ends_a_canvas_anyway() -> None:
    state = step(canvas(), prediction([3.0] * 4), Params(max_denoising_steps=1))
    assert stop(state) == "max_steps"


def test_given_places_are_certain() -> None:
    state = step(canvas(4, p1=7), prediction([9.0, 9.0, 1.0, 9.0]), Params())
    assert state.entropy is not None
    assert (int(state.tokens[0, 1]), int(state.argmax[0, 1]), float(state.entropy[0, 1])) == (7, 7, 0.0)


def test_start_canvases_differ_by_seed_and_index_only() -> None:
    assert torch.equal(start_canvas(1, 0, 64, VOCAB).tokens, start_canvas(1, 0, 64, VOCAB).tokens)
    assert not torch.equal(start_canvas(1, 0, 64, VOCAB).tokens, start_canvas(2, 0, 64, VOCAB).tokens)
    assert not torch.equal(start_canvas(1, 0, 64, VOCAB).tokens, start_canvas(1, 1, 64, VOCAB).tokens)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0), ("max_new_tokens", -3), ("max_new_tokens", 10**12), ("max_new_tokens", 2.5),
        ("max_denoising_steps", 0), ("max_denoising_steps", 10**9), ("temperature", float("nan")),
        ("temperature", -1.0), ("t_min", float("inf")), ("t_max", 0.1), ("entropy_bound", -0.1),
        ("accept_threshold", 1.5), ("confidence_threshold", "low"), ("stability_threshold", True),
        ("top_k", -1), ("top_k", 2.0), ("top_k_start", -1), ("top_k_end", True), ("top_k_tail_correction", 1),
        ("sampler", "magic"), ("seed", 2**70), ("seed", -2), ("seed", 1.5),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        check_params(replace(Params(), **{name: value}))
    assert caught.value.param == name


def test_minus_one_means_a_random_seed() -> None:
    assert check_params(Params(seed=-1)).seed is None
    assert check_params(Params(seed=0)).seed == 0
