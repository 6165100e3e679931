"""Seconds that an answer takes by preset: what passes cost on the model at hand, times how many are taken.

A model of the time, not a run: an untrained model, or one of random weights, ends its answers nowhere, and a
trained one answers in its own way. The passes are real ones of an engine, at so many computed places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any

from ..diffusion.params import PRESETS
from ..engine import Engine
from ..errors import CanvasError
from ..types import Failed, Params, Request
from .commits import measure_commits
from .engines import fresh
from .habits import Habit, habit_of
from .parts import clock_of
from .summary import median

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Costs:
    """Seconds of passes of one row behind a context of `context` tokens.

    steps: (places computed of the `canvas` there are, seconds), ascending. token: of a causal token with its
    choice. commit, read: of encoding a canvas, and of reading it; None for families without a causal reader.
    """

    context: int
    canvas: int
    steps: tuple[tuple[int, float], ...]
    token: float | None = None
    commit: float | None = None
    read: float | None = None

    def step(self, places: float) -> float:
        """A denoise step that computes so many places: between what was measured, on a straight line."""
        counts = [count for count, _ in self.steps]
        after = min(max(1, bisect_left(counts, places)), len(counts) - 1)
        if len(counts) == 1:
            return self.steps[0][1]
        (x, low), (y, high) = self.steps[after - 1], self.steps[after]
        share = min(1.0, max(0.0, (places - x) / (y - x)))
        return low + share * (high - low)

    def encoding(self, whole: float | None, tokens: float) -> float:
        """Encoding so many tokens, where a canvas takes `whole`: between that and one token."""
        if whole is None:
            return 0.0
        one = min(whole, self.token or 0.0)
        return one + (whole - one) * min(1.0, max(0.0, (tokens - 1) / max(1, self.canvas - 1)))


def seconds(costs: Costs, habit: Habit, tokens: int) -> float | None:
    """Of an answer of so many tokens; None where the model has no such passes."""
    if PRESETS[habit.preset].get("decoding") == "causal":
        return None if costs.token is None else tokens * costs.token
    if habit.reads and costs.read is None:
        return None
    drafted = min(tokens, costs.canvas)
    return (
        habit.steps * costs.step(habit.places * costs.canvas)
        + habit.reads * costs.encoding(costs.read, drafted)
        + habit.commits * costs.encoding(costs.commit, costs.canvas)
    )


def answer_report(costs: Costs, habits: Sequence[Habit], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Each preset's seconds for each length, with the reference's over them."""
    first = {n: seconds(costs, habit_of(habits, "quality", n / costs.canvas), n) for n in lengths}
    report = []
    for preset in dict.fromkeys(habit.preset for habit in habits):
        for tokens in lengths:
            habit = habit_of(habits, preset, tokens / costs.canvas)
            took, usual = seconds(costs, habit, tokens), first[tokens]
            ratio = usual / took if took and usual else None
            report.append(
                {"preset": preset, "tokens": tokens, "seconds": took, "ratio": ratio, **_passes(habit, costs)}
            )
    return report


def _passes(habit: Habit, costs: Costs) -> dict[str, float]:
    places = habit.steps * habit.places * costs.canvas
    return {"steps": habit.steps, "places": places, "reads": habit.reads, "fill": habit.fill}


def measure_costs(engine: Engine, context: int, *, repeats: int = 3, tell: Tell = lambda text: None) -> Costs:
    """Behind `context` random tokens, each the median of `repeats` passes. Raises UsageError (PromptTooLong)
    for a context that the model has no room for."""
    config = engine.config
    counts = [config.canvas_length]
    if not config.facts.logit_shift:
        while counts[-1] // 2 >= max(1, min(16, config.canvas_length)):
            counts.append(counts[-1] // 2)
    steps = tuple((n, _step(engine, context, n, repeats, tell)) for n in reversed(counts))
    commits = measure_commits(engine, context, pairs=repeats, tell=tell)
    if commits is None:
        return Costs(context, config.canvas_length, steps)
    tell("a causal token")
    token = _token(engine, context, repeats)
    return Costs(context, config.canvas_length, steps, token, median(commits.plain), median(commits.read))


def _step(engine: Engine, context: int, places: int, repeats: int, tell: Tell) -> float:
    """A step that computes so many places, spread over the canvas, beside what is kept of the others."""
    tell(f"a step of {places} places")
    used, whole = fresh(engine, rows=1, mixed=False), engine.config.canvas_length
    keeps = 0 if places == whole else 10**3  # steps: more than are taken, since what is kept is said here
    used.submit(_request(engine, context, keep_steps=keeps, max_denoising_steps=repeats + 4))
    (sequence,) = used.scheduler.waiting
    while sequence.progress.step < 1:
        _take(used)
    now, times = clock_of(used.runner.device), []
    for _ in range(repeats):
        if places < whole:
            assert sequence.canvas is not None
            kept = sequence.canvas.kept.clone()
            kept[:] = True
            kept[0, [i * whole // places for i in range(places)]] = False
            sequence.canvas = replace(sequence.canvas, kept=kept)
            sequence.progress = replace(sequence.progress, kept=whole - places)
        begin = now()
        _take(used)
        times.append(now() - begin)
    return median(times)


def _token(engine: Engine, context: int, repeats: int) -> float:
    used = fresh(engine, rows=1, mixed=False)
    used.submit(
        _request(engine, context, decoding="causal", max_new_tokens=repeats + 2, min_new_tokens=repeats + 1)
    )
    (sequence,) = used.scheduler.waiting
    while not sequence.output:
        _take(used)
    now, times = clock_of(used.runner.device), []
    while len(sequence.output) <= repeats:
        begin = now()
        _take(used)
        times.append(now() - begin)
    return median(times)


def _request(engine: Engine, context: int, **params: Any) -> Request:
    random, config = Random(f"bench/answers/{context}"), engine.config
    tokens = tuple(random.randrange(config.vocab_size) for _ in range(context))
    usual = {"max_new_tokens": config.canvas_length, "confidence_threshold": 0.0, "seed": 0}
    return Request(tokens, Params(**{**usual, **params}))


def _take(engine: Engine) -> None:
    """One engine step. Raises what made it fail."""
    for event in engine.step():
        if isinstance(event, Failed):
            raise event.error if isinstance(event.error, CanvasError) else CanvasError(str(event.error))


def costs_report(costs: Costs) -> dict[str, Any]:
    """Plain data."""
    steps = [{"places": places, "seconds": took} for places, took in costs.steps]
    return {**asdict(costs), "steps": steps}


__all__ = ["Costs", "answer_report", "costs_report", "measure_costs", "seconds"]
