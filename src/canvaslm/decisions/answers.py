"""What comes of a question: a probability for each option, and what follows from these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..types import Timings, Usage
from .labels import log_sum
from .questions import Question, QuestionKind


@dataclass(frozen=True)
class Decision:
    """The answer to one question. `values` are the options' as they were given, `texts` how they read;
    `probabilities` add up to 1.

    `label_mass` is the share of the whole vocabulary that the labels have at the first place that is read,
    before they are compared with each other, and `argmax_is_label` whether the likeliest token there is one
    (of any draw): where labels have little, the model did not understand that it was to answer with one.

    >>> asked = canvaslm.choice("Capital of France?", ["Paris", "Berlin"])
    >>> decision = session.decide("", asked)[0]
    >>> decision.best, decision.probabilities[0] > 0.9
    ('Paris', True)
    """

    kind: QuestionKind
    values: tuple[Any, ...]
    probabilities: tuple[float, ...]
    texts: tuple[str, ...]
    label_mass: float
    argmax_is_label: bool

    @property
    def best(self) -> Any:
        """The value that is most probable, the first of equal ones."""
        return self.values[self._best]

    @property
    def probability(self) -> float:
        """The best value's; of a predicate that of true."""
        return self.probabilities[0 if self.kind == "predicate" else self._best]

    @property
    def score(self) -> float:
        """The mean of the numbers of options, from 0: a score's answer."""
        return sum(number * share for number, share in enumerate(self.probabilities))

    @property
    def confidence(self) -> float:
        """From 0, where all options are as probable as each other, to 1. Of a score: how near to the best
        level the others lie."""
        count, most = len(self.probabilities), self.probabilities[self._best]
        if count == 1:
            return 1.0
        if self.kind != "score":
            return (most - 1 / count) / (1 - 1 / count)
        away = sum(share * abs(number - self._best) for number, share in enumerate(self.probabilities))
        even = sum(abs(number - (count - 1) / 2) for number in range(count)) / count
        return max(0.0, 1 - away / even)

    @property
    def sureness(self) -> float:
        """The best option's probability times the label mass: low, too, where the model would have said
        something else altogether."""
        return self.probabilities[self._best] * self.label_mass

    @property
    def _best(self) -> int:
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)


@dataclass(frozen=True)
class Decisions:
    """All answers, in the order of the questions; by number, or by the names that they had.

    `usage` counts the state once, however many questions there are. `rows` were denoised, `steps` a row.
    """

    answers: tuple[Decision, ...]
    names: tuple[str, ...]  # none where questions had none
    usage: Usage
    timings: Timings
    rows: int

    def __getitem__(self, which: int | str) -> Decision:
        return self.answers[self.names.index(which) if isinstance(which, str) else which]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.answers)


@dataclass(frozen=True)
class LabelReading:
    """What one draw says of one question: log-shares of its options, nats, in their order."""

    shares: Sequence[float]
    label_mass: float
    argmax_is_label: bool


def decided(question: Question, readings: Sequence[LabelReading], temperature: float) -> Decision:
    """One answer of several draws: the mean of their probabilities, then made flatter or steeper by a
    temperature."""
    count = len(readings)
    mean = [
        log_sum([reading.shares[i] for reading in readings]) - math.log(count)
        for i in range(len(question.options))
    ]
    return Decision(
        question.kind,
        tuple(option.value for option in question.options),
        tuple(tempered(mean, temperature)),
        tuple(option.text for option in question.options),
        sum(reading.label_mass for reading in readings) / count,
        any(reading.argmax_is_label for reading in readings),
    )


def tempered(logs: Sequence[float], temperature: float) -> list[float]:
    """Probabilities of logarithms divided by a temperature."""
    scaled = [value / temperature for value in logs]
    total = log_sum(scaled)
    if total == -math.inf:  # no option has any: all are as likely
        return [1 / len(scaled)] * len(scaled)
    shares = [math.exp(value - total) for value in scaled]
    whole = sum(shares)
    return [share / whole for share in shares]


def mass_of(said: Mapping[int, float], tokens: Sequence[int]) -> float:
    """The probability of all these tokens, at most 1."""
    return min(1.0, math.exp(log_sum([said[token] for token in tokens])))


__all__ = ["Decision", "Decisions", "LabelReading", "decided", "mass_of", "tempered"]
