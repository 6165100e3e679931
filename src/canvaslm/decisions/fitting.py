"""How right probabilities are, and the temperature that makes them so (Guo et al. 2017).

A temperature is the one number T for which the logarithms of the probabilities, divided by it, give the
labelled answers the least log loss. How right probabilities are *with* it is measured by halves: each half of
the answers has the temperature that was fitted to the other, so that no answer is judged by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .answers import tempered
from .questions import QuestionKind

COLDEST, HOTTEST = 0.05, 20.0
BINS = 10  # of equal width, for the calibration error
DRAWS = 1000  # of the bootstrap
_GOLDEN = (math.sqrt(5) - 1) / 2
_LEAST = 1e-300  # a probability that is not 0, for logarithms

Probabilities = Sequence[float]


@dataclass(frozen=True)
class LabelledAnswer:
    """The probabilities of a question's options at temperature 1, and which of them is right."""

    kind: QuestionKind
    probabilities: tuple[float, ...]
    truth: int

    def at(self, temperature: float) -> list[float]:
        """The probabilities at a temperature."""
        return tempered([math.log(max(p, _LEAST)) for p in self.probabilities], temperature)


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, by the percentiles of a bootstrap over answers."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibrated:
    """What a temperature did to some answers: figure -> before, after, after less before (paired)."""

    count: int
    temperature: float
    figures: dict[str, tuple[Estimate, Estimate, Estimate]]


def fit_temperature(answers: Sequence[LabelledAnswer]) -> float:
    """The temperature of the least log loss, between `COLDEST` and `HOTTEST`. The loss is convex in 1 / T, so
    there is one minimum."""
    low, high = math.log(COLDEST), math.log(HOTTEST)
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    losses = [_loss_at(answers, math.exp(x)) for x in inner]
    while high - low > 1e-4:
        if losses[0] <= losses[1]:
            high, inner[1], losses[1] = inner[1], inner[0], losses[0]
            inner[0] = high - _GOLDEN * (high - low)
            losses[0] = _loss_at(answers, math.exp(inner[0]))
        else:
            low, inner[0], losses[0] = inner[0], inner[1], losses[1]
            inner[1] = low + _GOLDEN * (high - low)
            losses[1] = _loss_at(answers, math.exp(inner[1]))
    return math.exp((low + high) / 2)


def calibrated(answers: Sequence[LabelledAnswer], seed: int = 0, draws: int = DRAWS) -> Calibrated:
    """The temperature of answers of one kind, two at least, and what it does."""
    halves = (answers[0::2], answers[1::2])
    heats = (fit_temperature(halves[1]), fit_temperature(halves[0]))
    before = [list(answer.probabilities) for answer in answers]
    after = [answer.at(heats[number % 2]) for number, answer in enumerate(answers)]
    truths = [answer.truth for answer in answers]
    figures = {
        name: _compared(measure, before, after, truths, seed, draws) for name, measure in FIGURES.items()
    }
    return Calibrated(len(answers), fit_temperature(answers), figures)


def accuracy(probabilities: Sequence[Probabilities], truths: Sequence[int]) -> float:
    """The share of answers whose likeliest option is right."""
    return _mean([float(_best(p) == t) for p, t in zip(probabilities, truths, strict=True)])


def brier(probabilities: Sequence[Probabilities], truths: Sequence[int]) -> float:
    """The mean squared distance from the truth, summed over options: 0 to 2 (Brier 1950)."""
    return _mean(
        [
            sum((share - (i == t)) ** 2 for i, share in enumerate(p))
            for p, t in zip(probabilities, truths, strict=True)
        ]
    )


def log_loss(probabilities: Sequence[Probabilities], truths: Sequence[int]) -> float:
    """The mean of -log of what the right option was given, in nats."""
    return _mean([-math.log(max(p[t], _LEAST)) for p, t in zip(probabilities, truths, strict=True)])


def calibration_error(probabilities: Sequence[Probabilities], truths: Sequence[int]) -> float:
    """How far the likeliest option's probability is from how often it is right, over bins of that
    probability, weighted by how many answers these hold."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for p, truth in zip(probabilities, truths, strict=True):
        best = _best(p)
        bins[min(BINS - 1, int(p[best] * BINS))].append((p[best], best == truth))
    gaps = (abs(sum(share - right for share, right in each)) for each in bins)
    return sum(gaps) / len(truths)


Measure = Callable[[Sequence[Probabilities], Sequence[int]], float]
FIGURES: dict[str, Measure] = {
    "accuracy": accuracy,
    "Brier score": brier,
    "calibration error": calibration_error,
    "log loss": log_loss,
}


def _compared(
    measure: Measure,
    before: Sequence[Probabilities],
    after: Sequence[Probabilities],
    truths: Sequence[int],
    seed: int,
    draws: int,
) -> tuple[Estimate, Estimate, Estimate]:
    """A figure before, after, and their difference, each resample the same answers for both."""
    rng, count = Random(seed), len(truths)
    seen = []
    for _ in range(draws):
        chosen = rng.choices(range(count), k=count)
        right = [truths[i] for i in chosen]
        seen.append((measure([before[i] for i in chosen], right), measure([after[i] for i in chosen], right)))
    was, is_now = measure(before, truths), measure(after, truths)
    return (
        _estimate(was, [one for one, _ in seen]),
        _estimate(is_now, [other for _, other in seen]),
        _estimate(is_now - was, [other - one for one, other in seen]),
    )


def _estimate(value: float, drawn: list[float]) -> Estimate:
    ordered = sorted(drawn)
    return Estimate(value, ordered[int(0.025 * len(ordered))], ordered[int(0.975 * (len(ordered) - 1))])


def _loss_at(answers: Sequence[LabelledAnswer], temperature: float) -> float:
    return log_loss([answer.at(temperature) for answer in answers], [answer.truth for answer in answers])


def _best(probabilities: Probabilities) -> int:
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


__all__ = [
    "FIGURES", "HOTTEST", "Calibrated", "Estimate", "LabelledAnswer", "accuracy", "brier", "calibrated",
    "calibration_error", "fit_temperature", "log_loss",
]  # fmt: skip
