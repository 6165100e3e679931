"""How a document can end: a search for a short text after which a matcher accepts.

Grammars have no distance to their end that could be read off. What works is to write what is forced, to close
what can be closed, else to write what changes the situation, and to start again with dice where that leads
nowhere. What is found is an end; that nothing is found proves nothing.
"""

from __future__ import annotations

import random
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .matchers import Matcher, Matchers, allowed, following
from .vocabulary import BYTES

LONGEST = 8192  # symbols of an end that the first try may write
TRIES = 9
_LONGEST_WITH_DICE = 512

# Bytes in the order in which they are tried: what closes, ends or separates in JSON and its like, then
# short values, and what opens something new last.
_CLOSING = frozenset(b"}])")
_QUOTE = ord('"')
_LETTERS = frozenset(string.ascii_letters.encode())
_SPACES = frozenset(b" \n\t\\")  # always possible somewhere, and never needed first
_EARLY = b'}])",:0nft .-1'
_LATE = b"{[(\n\\\t"
_ORDER = bytes((*_EARLY, *(b for b in range(33, 127) if b not in _EARLY + _LATE), *_LATE))
_MOST_CONTROLS = 4  # a class of tokens such as <[^1-9]> may hold thousands


def _never() -> bool:
    return False


@dataclass
class Effort:
    """How much a search may still do: `steps` masks computed or symbols tried, and until `stopped` says so.

    Counted steps end a search at the same place on every machine, which answers need; the clock is for
    compiling only.
    """

    steps: int
    said: str = ""  # llguidance's words where it gave up
    stopped: Callable[[], bool] = _never

    def spend(self, steps: int = 1) -> bool:
        """Whether that much was left; takes it."""
        self.steps -= steps
        return self.steps >= 0 and not self.stopped()


def completion(matchers: Matchers, matcher: Matcher, work: Effort, tries: int = TRIES) -> list[int] | None:
    """Tokens after which a matcher of `matchers.matcher`, which is left as it is, accepts: few, if not
    the fewest, without the end token. None where no end was found within the work and the tries."""
    for attempt in range(tries):
        dice = random.Random(attempt) if attempt else None
        search = _Try(matchers, matcher.deep_copy(), work, dice)
        symbols = search.run(LONGEST if dice is None else _LONGEST_WITH_DICE)
        if symbols is not None:
            return matchers.tokens_of(symbols)
        if work.steps < 0:
            break
    return None


class _Try:
    """One search. What was written least often so far comes first: so nothing is opened again and again, and
    a number does not grow for ever. `dice` None: among equals the first in the order above."""

    def __init__(
        self, matchers: Matchers, matcher: Matcher, work: Effort, dice: random.Random | None
    ) -> None:
        self.matchers, self.matcher, self.work, self.dice = matchers, matcher, work, dice
        self.met: Counter[bytes] = Counter()  # situations, by what may follow there
        self.known: dict[bytes, dict[bytes, tuple[float, list[int]]]] = {}  # mask -> what was explored there

    def run(self, most: int) -> list[int] | None:
        """Symbols, at most about `most`."""
        written: list[int] = []
        while len(written) <= most:
            if not self.work.spend():
                return None
            mask, accepting = following(self.matcher)
            if accepting:
                return written
            symbol = self._choice(mask)
            if symbol is None or not self.matcher.consume_token(symbol):
                self.work.said = self.work.said or str(self.matcher.get_error())
                return None
            written.append(symbol)
        return None

    def _choice(self, mask: bytes) -> int | None:
        """The symbol to write; None where none may follow."""
        options = self.known.get(mask)
        if options is None:
            options = self.known[mask] = self._explored(mask)
        if not options:
            return None
        # Of symbols that lead to the same place one will do.
        weights = [weight / (1 + 4 * self.met[leads]) for leads, (weight, _) in options.items()]
        chosen = list(options)
        leads = self.dice.choices(chosen, weights)[0] if self.dice else chosen[weights.index(max(weights))]
        self.met[leads] += 1
        symbols = options[leads][1]
        return self.dice.choice(symbols) if self.dice else symbols[0]

    def _explored(self, mask: bytes) -> dict[bytes, tuple[float, list[int]]]:
        """{where a symbol leads: (how good that is, the symbols)}; one alone where it ends the document or
        closes something. Where a mask comes again, so does what was found here, though it may mislead."""
        symbols = self._symbols(mask)
        if len(symbols) == 1:
            return {mask: (1.0, symbols)}
        found: dict[bytes, tuple[float, list[int]]] = {}
        text = self._in_text(symbols)
        if text:  # words rather than a row of brackets
            symbols.sort(key=lambda symbol: symbol not in _LETTERS)
            symbols.sort(key=lambda symbol: symbol != _QUOTE)
        for symbol in symbols:
            if not self.work.spend():
                return {}
            leads = self._probe(symbol)
            if leads is None:
                continue
            closes = symbol == _QUOTE if text else symbol in _CLOSING
            if not leads or (self.dice is None and closes and (leads != mask or not text)):
                return {leads: (1.0, [symbol])}
            found.setdefault(leads, (self._weight(symbol, text), []))[1].append(symbol)
        return found

    def _symbols(self, mask: bytes) -> list[int]:
        """What may follow, in the order to try: a byte outside the order only where nothing else may."""
        free: list[int] = self.matchers.symbols[allowed(mask, self.matchers.symbols)].tolist()
        among = set(free)
        if len(free) == 1:
            return free
        known = [symbol for symbol in _ORDER if symbol in among]
        controls = [symbol for symbol in free if symbol >= BYTES][:_MOST_CONTROLS]
        cut = sum(symbol not in _LATE for symbol in known)
        return known[:cut] + controls + known[cut:] or free[:_MOST_CONTROLS]

    def _in_text(self, symbols: list[int]) -> bool:
        """Whether nearly anything may follow, as in a string: no byte closes anything there."""
        return set(b"x~") <= set(symbols)

    def _weight(self, symbol: int, text: bool) -> float:
        if symbol in _CLOSING and not text:
            return 10.0
        return 0.0002 if symbol in _SPACES else 1.0

    def _probe(self, symbol: int) -> bytes | None:
        """The mask behind a symbol: where it leads. b"" where the document may end
        there, None where the symbol cannot stand after all."""
        matcher = self.matcher
        if not matcher.try_consume_tokens([symbol]):
            return None
        mask, accepting = following(matcher)
        matcher.rollback(1)
        return b"" if accepting else mask


__all__ = ["LONGEST", "TRIES", "Effort", "completion"]
