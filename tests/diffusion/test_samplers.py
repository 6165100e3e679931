"""Samplers, schedule and stopping: properties that hold for any prediction and any parameters."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from canvaslm.diffusion import (
    PARAMETERS,
    SAMPLERS,
    Params,
    RowParams,
    check_params,
    start_canvas,
    temperature,
    top_k,
)
from canvaslm.diffusion.stopping import all_accepted, stable_and_confident, up_to_first_end
from canvaslm.ops.predict import Prediction

VOCAB = 40
# In steps of 1/1024, so that fp32 adds them up exactly.
GRAIN = st.integers(0, 12 * 1024).map(lambda n: n / 1024)
ENTROPIES = st.lists(GRAIN, min_size=1, max_size=24)


def said(entropy: list[float], logprob: list[float] | None = None) -> Prediction:
    uncertain = torch.tensor([entropy])
    best = -uncertain if logprob is None else torch.tensor([logprob])
    tokens = torch.arange(len(entropy))[None] % VOCAB
    return Prediction(tokens, tokens, uncertain, best, None)


def accepted(
    sampler: str, prediction: Prediction, params: Params, step: int = 0, seed: int = 1
) -> list[bool]:
    canvas = start_canvas(seed, 0, prediction.entropy.shape[-1], VOCAB)
    (row,) = SAMPLERS[sampler](replace(canvas, step=torch.tensor([step])), prediction, RowParams.of(params))
    assert row.dtype == torch.bool and row.shape == prediction.entropy.shape[1:]
    return [bool(place) for place in row]


def numbers(name: str) -> st.SearchStrategy[float]:
    """Any value that a parameter may have, its ends often."""
    about = PARAMETERS[name]
    assert about.low is not None and about.high is not None
    return st.sampled_from([float(about.low), float(about.high)]) | st.floats(about.low, about.high)


def steps() -> st.SearchStrategy[int]:
    return st.sampled_from([1, 2, 10_000]) | st.integers(1, 10_000)


class TestEntropyBound:
    """The most certain places, while those before sum to at most the bound."""

    @settings(max_examples=150, deadline=None)
    @given(ENTROPIES, GRAIN)
    def test_the_accepted_are_the_most_certain(self, entropy: list[float], bound: float) -> None:
        kept = accepted("entropy_bound", said(entropy), Params(entropy_bound=bound))
        inside = [e for e, k in zip(entropy, kept, strict=True) if k]
        outside = [e for e, k in zip(entropy, kept, strict=True) if not k]
        assert inside and (not outside or max(inside) <= min(outside))
        assert sum(sorted(inside)[:-1]) <= bound
        assert not outside or sum(inside) > bound

    @settings(max_examples=100, deadline=None)
    @given(ENTROPIES, numbers("entropy_bound"), numbers("entropy_bound"))
    def test_a_larger_bound_accepts_no_less(self, entropy: list[float], one: float, other: float) -> None:
        few, many = (
            accepted("entropy_bound", said(entropy), Params(entropy_bound=bound))
            for bound in sorted((one, other))
        )
        assert all(b for a, b in zip(few, many, strict=True) if a)

    @settings(max_examples=100, deadline=None)
    @given(st.permutations(range(12)))
    def test_where_a_place_stands_does_not_matter(self, order: list[int]) -> None:
        entropy = [0.01 * 2**i for i in range(12)]
        kept = accepted("entropy_bound", said(entropy), Params(entropy_bound=0.3))
        moved = accepted("entropy_bound", said([entropy[i] for i in order]), Params(entropy_bound=0.3))
        assert moved == [kept[i] for i in order]
        assert kept == [True] * 5 + [False] * 7  # 0.01 + .02 + .04 + .08 = 0.15 before the fifth, 0.31 after

    def test_the_ends_of_its_range(self) -> None:
        entropy = [0.5, 0.0, 3.0, 0.0, 12.0]
        assert accepted("entropy_bound", said(entropy), Params(entropy_bound=0)) == [
            True,
            True,
            False,
            True,
            False,
        ]
        assert all(accepted("entropy_bound", said(entropy), Params(entropy_bound=1e6)))


class TestProbabilityThreshold:
    """All that is sure enough, and the surest."""

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=24), st.floats(0, 1))
    def test_sure_places_and_the_surest(self, logprob: list[float], threshold: float) -> None:
        kept = accepted(
            "probability_threshold", said([1.0] * len(logprob), logprob), Params(accept_threshold=threshold)
        )
        assert kept[logprob.index(max(logprob))]
        for value, k in zip(logprob, kept, strict=True):
            if value != max(logprob) and abs(math.exp(value) - threshold) > 1e-5:
                assert k == (math.exp(value) >= threshold)

    def test_the_ends_of_its_range(self) -> None:
        logprob = [-0.5, 0.0, -9.0, 0.0]
        prediction = said([1.0] * 4, logprob)
        assert all(accepted("probability_threshold", prediction, Params(accept_threshold=0)))
        certain = accepted("probability_threshold", prediction, Params(accept_threshold=1))
        assert certain == [False, True, False, True]


class TestAncestral:
    """A coin for each place, that knows nothing of the prediction."""

    @settings(max_examples=60, deadline=None)
    @given(steps(), st.integers(0, 2**63 - 1))
    def test_the_last_step_keeps_all(self, count: int, seed: int) -> None:
        params = Params(max_denoising_steps=count)
        assert all(accepted("ancestral", said([5.0] * 30), params, count - 1, seed))

    def test_the_coin_is_the_rows_seed_and_step_alone(self) -> None:
        params = Params(max_denoising_steps=4)
        first = accepted("ancestral", said([0.0] * 64), params, 1)
        assert first == accepted("ancestral", said([9.0] * 64), params, 1)
        assert first != accepted("ancestral", said([0.0] * 64), params, 2)
        assert first != accepted("ancestral", said([0.0] * 64), params, 1, seed=2)
        assert not all(first) and any(first)


class TestSchedule:
    """Temperature and top-k of each step."""

    @settings(max_examples=150, deadline=None)
    @given(steps(), numbers("t_min"), numbers("t_max"), numbers("temperature"), st.data())
    def test_temperature_falls_and_stays_in_its_range(
        self, count: int, low: float, high: float, scale: float, data: st.DataObject
    ) -> None:
        low, high = sorted((low, high))
        params = check_params(Params(max_denoising_steps=count, t_min=low, t_max=high, temperature=scale))
        at = sorted({0, count - 1, *data.draw(st.lists(st.integers(0, count - 1), max_size=5))})
        found = [temperature(params, step) for step in at]
        factor = scale or 1.0
        assert found == sorted(found, reverse=True)
        assert found[0] == pytest.approx(high * factor) and all(t > 0 for t in found if factor > 1e-300)
        assert found[-1] >= low * factor * (1 - 1e-9)
        assert found[-1] == pytest.approx((low + (high - low) / count) * factor)

    @settings(max_examples=150, deadline=None)
    @given(steps(), st.integers(1, 1_000_000), st.integers(1, 1_000_000), st.data())
    def test_top_k_goes_one_way_from_start_to_end(
        self, count: int, start: int, end: int, data: st.DataObject
    ) -> None:
        params = check_params(Params(max_denoising_steps=count, top_k_start=start, top_k_end=end))
        at = sorted({0, count - 1, *data.draw(st.lists(st.integers(0, count - 1), max_size=5))})
        found = [top_k(params, step) for step in at]
        assert found == sorted(found, reverse=start > end)
        assert all(min(start, end) <= k <= max(start, end) for k in found)
        assert (found[0], found[-1]) == (start if count > 1 else end, end)

    @given(st.integers(0, 1_000_000), steps())
    def test_without_a_schedule_top_k_is_what_was_said(self, k: int, count: int) -> None:
        params = Params(top_k=k, max_denoising_steps=count)
        assert {top_k(params, step) for step in (0, count // 2, count - 1)} == {k}


TOKENS = st.lists(st.integers(0, 5), min_size=1, max_size=12)
ENDS = st.lists(st.integers(0, 5), max_size=3)


def rows_of(params: list[Params], ends: list[list[int]]) -> RowParams:
    return RowParams.join([RowParams.of(p, e) for p, e in zip(params, ends, strict=True)])


class TestStopping:
    """When a row may end."""

    @settings(max_examples=200, deadline=None)
    @given(TOKENS, ENDS)
    def test_places_up_to_the_first_end(self, tokens: list[int], ends: list[int]) -> None:
        (found,) = up_to_first_end(torch.tensor([tokens]), RowParams.of(Params(), ends).eos)
        first = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        assert [bool(x) for x in found] == [i <= first for i in range(len(tokens))]

    def test_rows_have_ends_of_their_own(self) -> None:
        """The filling of shorter lists of ends is no token: it ends nothing."""
        eos = rows_of([Params()] * 3, [[], [3], [1, 2]]).eos
        tokens = torch.tensor([[1, 2, 3, 0]] * 3)
        assert up_to_first_end(tokens, eos).sum(-1).tolist() == [4, 3, 1]

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, 5), st.integers(0, 4), st.sampled_from([0.0, 0.001, 0.01, 0.1, 1.0])),
            min_size=1, max_size=10,
        ),
        ENDS, st.booleans(), st.integers(0, 3), st.sampled_from([0.002, 0.02, 0.2]),
    )  # fmt: skip
    def test_stable_and_confident(
        self, places: list[tuple[int, int, float]], ends: list[int], aware: bool, wait: int, limit: float
    ) -> None:
        params = Params(stability_threshold=wait, confidence_threshold=limit, eos_aware_stopping=aware)
        tokens, unchanged, entropy = zip(*places, strict=True)
        looked = len(places)
        if aware:
            looked = next((i + 1 for i, token in enumerate(tokens) if token in ends), looked)
        mean = sum(entropy[:looked]) / looked
        if math.isclose(mean, limit, rel_tol=1e-5):
            return
        expected = all(n >= wait for n in unchanged[:looked]) and mean < limit
        columns = (torch.tensor([tokens]), torch.tensor([unchanged]), torch.tensor([entropy]))
        assert stable_and_confident(*columns, RowParams.of(params, ends)).tolist() == [expected]
        # Beside a row with the rule, a row without it is judged as if alone.
        other = replace(params, eos_aware_stopping=True)
        both = rows_of([params, other], [ends, []])
        doubled = [torch.cat((column, column)) for column in columns]
        assert stable_and_confident(doubled[0], doubled[1], doubled[2], both)[0].item() == expected

    @settings(max_examples=150, deadline=None)
    @given(TOKENS, ENDS, st.booleans(), st.data())
    def test_all_accepted(self, tokens: list[int], ends: list[int], aware: bool, data: st.DataObject) -> None:
        size = len(tokens)
        kept = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
        looked = size
        if aware:
            looked = next((i + 1 for i, token in enumerate(tokens) if token in ends), size)
        params = RowParams.of(Params(eos_aware_stopping=aware), ends)
        found = all_accepted(torch.tensor([tokens]), torch.tensor([kept]), params)
        assert found.tolist() == [all(kept[:looked])]

    def test_what_follows_the_end_is_never_read(self) -> None:
        """The tail may be as unsure and unsteady as it likes, even not a number."""
        params = RowParams.of(Params(eos_aware_stopping=True, stability_threshold=1), (4,))
        tokens = torch.tensor([[7, 4, 9, 9]])
        unchanged, entropy = torch.tensor([[3, 3, 0, 0]]), torch.tensor([[0.0, 0.0, 99.0, float("inf")]])
        assert stable_and_confident(tokens, unchanged, entropy, params).tolist() == [True]
        assert stable_and_confident(tokens, unchanged, entropy, RowParams.of(Params())).tolist() == [False]


def test_a_row_judged_among_others_is_judged_as_alone() -> None:
    """Every sampler, over rows at different steps with different parameters."""
    generator = torch.Generator().manual_seed(3)
    entropy = torch.rand(6, 16, generator=generator) ** 3
    prediction = Prediction(*(torch.zeros(6, 16, dtype=torch.int64),) * 2, entropy, -entropy, None)
    params = [
        Params(entropy_bound=0.1 * i, accept_threshold=0.5 + 0.08 * i, max_denoising_steps=8 + i)
        for i in range(6)
    ]
    canvases = [replace(start_canvas(i, i, 16, VOCAB), step=torch.tensor([i])) for i in range(6)]
    canvas = canvases[0].join(canvases)

    def part(x: Tensor, row: int) -> Tensor:
        return x[row : row + 1]

    for sampler in SAMPLERS.values():
        together = sampler(canvas, prediction, rows_of(params, [[]] * 6))
        for row in range(6):
            mine = Prediction(
                part(prediction.sampled, row), part(prediction.argmax, row), part(entropy, row),
                part(-entropy, row), None,
            )  # fmt: skip
            alone = sampler(canvases[row], mine, RowParams.of(params[row]))
            assert torch.equal(part(together, row), alone)
