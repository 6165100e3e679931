"""Canvases of a model that knows nothing: random most probable tokens, projected one after the other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from canvaslm.constrain.regular import Regular
from canvaslm.types import Readout


def readout(
    rng: np.random.Generator, size: int, places: int, room: int, given: Mapping[int, int] | None = None
) -> Readout:
    """Sixteen tokens a place; how sure the model seems is random too."""
    given = given or {}
    named = np.stack([rng.choice(size, 16, replace=False) for _ in range(places)])
    logprobs = -np.sort(rng.random((places, 16)), axis=1) * rng.choice([1, 8, 25]) - 0.05
    tokens = [given.get(place, int(best)) for place, best in enumerate(named[:, 0])]
    return Readout(
        tuple(tokens), tuple(place in given for place in range(places)),
        tuple(map(tuple, named.tolist())), tuple(map(tuple, logprobs.tolist())), room,
    )  # fmt: skip


def answer(constraint: Regular, rng: np.random.Generator, places: int, budget: int) -> list[int]:
    """What an engine commits in all: the constraint's tokens, canvas after canvas, the end included."""
    state, out = constraint.start(), list[int]()
    size = constraint.steps.vocabulary.size
    while True:
        projection = constraint.project(state, readout(rng, size, places, budget - len(out)))
        assert projection.tokens and len(projection.tokens) == len(projection.places)
        assert len(out) + len(projection.tokens) <= budget
        out += projection.tokens
        state = projection.state
        if projection.ended:
            assert out[-1] in constraint.steps.vocabulary.ends
            return out


__all__ = ["answer", "readout"]
