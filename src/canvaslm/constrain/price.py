"""What a symbol of a grammar costs to read, counted, so that it is the same on every machine.

llguidance keeps a set of items for each place of a text: all the ways to have read it so far. Ordinary
grammars have some tens at a time; ambiguous ones have more with each symbol, and the time grows with their
square. Its interpreter, unlike its matchers, tells how many it made.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np

from ..errors import UsageError
from .matchers import Matchers

SYMBOLS = 256  # of the text at random
# The mean of the squares of a step's items by which the price rises by 1: most schemas have less than 500, an
# object of 100 optional properties 220,000, arithmetic without precedence 620,000.
UNIT = 20_000
HIGHEST = 16
MOST = 200_000  # of that mean, where the text also goes beyond llguidance's limits
MOST_FUEL = 20_000_000  # for the lexer's states, in the whole text: 3,000 alternatives take 3,000,000
_BEYOND = ("Current row has", "Too many items")  # llguidance's words for the limits of its items


def price(matchers: Matchers, grammar: str) -> int:
    """Of a symbol of a grammar in llguidance's form that `matchers.matcher` takes: 1 for most, up to 16.

    Raises UsageError where a text at random has many items all along and then too many for llguidance:
    `s: s s | "a"` takes a hundred times as long for each symbol as others do, and not many can follow.
    """
    begin = matchers.interpreter(grammar)
    dice = random.Random(0)
    squares = fuel = beyond = 0
    walker = begin.deep_copy()
    for _ in range(SYMBOLS):
        try:
            items, spent, options = _step(walker, matchers)
            squares, fuel = squares + items * items, fuel + spent
            if len(options):
                walker.commit_token(int(dice.choice(options)))
            else:
                walker = begin.deep_copy()
        except ValueError as error:
            # Else half a character, which the mask took for the beginning of one.
            beyond += any(words in str(error) for words in _BEYOND)
            walker = begin.deep_copy()
        if fuel > MOST_FUEL:
            break
    if fuel > MOST_FUEL or (beyond and squares > SYMBOLS * MOST):
        raise UsageError("the grammar cannot be used: it is too ambiguous to follow a document", "grammar")
    return min(HIGHEST, 1 + squares // (SYMBOLS * UNIT))


def _step(walker: Any, matchers: Matchers) -> tuple[int, int, Any]:
    """Items and fuel of a step of an interpreter, and the symbols that may follow: none where it ends."""
    mask, report = walker.compute_mask()
    told = [part["stats"] for part in json.loads(report)["progress"] if "stats" in part]
    items, fuel = (sum(stats[name] for stats in told) for name in ("all_items", "lexer_cost"))
    if mask is None:
        return items, fuel, ()
    return items, fuel, matchers.symbols[np.frombuffer(mask, np.uint8)[matchers.symbols] > 0]


__all__ = ["HIGHEST", "SYMBOLS", "price"]
