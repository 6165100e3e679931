"""The twins of the inner loops: numpy and the native kernels, the same in every bit."""

from __future__ import annotations

import random

import numpy as np
import pytest

from canvaslm.constrain import lattice
from canvaslm.constrain.answers import regex, schema
from canvaslm.constrain.edit import best_edit
from canvaslm.constrain.lattice import NativeLattice, PlainLattice
from canvaslm.constrain.path import best_path
from canvaslm.constrain.reading import CanvasReading
from canvaslm.constrain.steps import Steps
from canvaslm.ops.cpu import loader

from . import schemas
from .words import vocabulary

WORDS = vocabulary()
LANGUAGES = [
    regex("[a-z]+( [a-z]+)*", WORDS), regex("(a|bb|[0-9]{3}){2,}", WORDS),
    schema({"properties": {"name": {"type": "string"}, "n": {"type": "number"}}, "required": ["n"]}, WORDS),
    schema(schemas.NODE | {"$defs": {"node": schemas.NODE}}, WORDS),
]  # fmt: skip


def canvas(seed: int, places: int = 40) -> CanvasReading:
    rng = np.random.default_rng(seed)
    named = np.stack([rng.choice(WORDS.size, 16, replace=False) for _ in range(places)])
    logprobs = -np.sort(rng.integers(1, 40, (places, 16)) / 8.0, axis=1) - 3  # many are equal
    return CanvasReading.of(named, logprobs, WORDS)


@pytest.fixture
def native() -> None:
    if not loader.available():
        pytest.skip("no native kernels here")


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("seed", range(24))
def test_the_twins_agree(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    plain, found = random.Random(seed), []
    steps, reading = LANGUAGES[seed % len(LANGUAGES)].steps, canvas(seed)
    state, room = plain.randrange(steps.automaton.states), plain.choice([0, 40, 400])
    given = [(3, int(reading.tokens[3, 2]))] if seed % 5 == 0 else []

    def native_lattice(steps: Steps, reading: CanvasReading) -> NativeLattice:
        return NativeLattice(steps, reading, loader.library())

    for made in (PlainLattice, native_lattice):
        monkeypatch.setattr("canvaslm.constrain.path.lattice_of", made)
        monkeypatch.setattr("canvaslm.constrain.edit.lattice_of", made)
        found.append((best_path(steps, reading, state, room, given), best_edit(steps, reading, state, 400)))
    assert found[0] == found[1]
    assert found[0][1] is not None


@pytest.mark.usefixtures("native")
def test_the_native_twin_is_taken_where_it_is_ready() -> None:
    assert loader.ready()
    lattice._library.cache_clear()
    assert isinstance(lattice.lattice_of(LANGUAGES[0].steps, canvas(0)), NativeLattice)


def test_kernels_are_not_compiled_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes longer than they would save: numpy it is then."""
    monkeypatch.setattr(loader, "ready", lambda: False)
    lattice._library.cache_clear()
    try:
        assert type(lattice.lattice_of(LANGUAGES[0].steps, canvas(0))) is PlainLattice
    finally:
        lattice._library.cache_clear()
