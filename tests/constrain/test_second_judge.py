"""What an automaton makes of a schema is accepted by llguidance's reading of it, too: two that know nothing
of each other."""

from __future__ import annotations

import pytest

from canvaslm.constrain import answers
from canvaslm.constrain.regular import Regular
from canvaslm.constrain.schema_document import Unsupported

from .judge import accepts_json
from .random_schemas import answer, check_json, whole
from .words import vocabulary, written

WORDS, PLACES = vocabulary(), 48
FREE = r"[ \n]*"  # white space is the automaton's own affair


def compiled(seed: int) -> Regular | None:
    """The automaton of a schema; None where it is beyond one."""
    try:
        return answers.schema(whole(seed), WORDS)
    except Unsupported:
        return None


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_llguidance_accepts_what_the_automaton_says(first: int) -> None:
    found = {seed: made for seed in range(first, first + 20) if (made := compiled(seed)) is not None}
    assert len(found) >= 10
    for seed, constraint in found.items():
        budget = max(constraint.shortest, PLACES * (1 + seed % 3))
        text = written(answer(constraint, seed, WORDS, PLACES, budget), WORDS)
        check_json(text, whole(seed))
        if "exclusiveMinimum" not in str(whole(seed)):  # their ranges have no 0.90, with a zero at the end
            assert accepts_json(whole(seed), text, FREE), (seed, text)
