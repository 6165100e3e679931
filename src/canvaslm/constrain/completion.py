"""How a document can end: a search for a short text after which a matcher accepts.

Grammars have no distance to their end that could be read off. What works is to write what is forced, to close
what can be closed, else to write what changes the situation, and to start again with dice where that leads
nowhere. What is found is an end; that nothing is found proves nothing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .matchers import Matcher, Matchers, allowed, following

LONGEST = 8192  # symbols of an end that the first try may write
TRIES = 9
_LONGEST_WITH_DICE = 512

# Bytes in the order in which they are tried: what closes, ends or separates in JSON and its like, then
# short values, and what opens something new last.
_CLOSING = (b"}", b"]", b")")
_SPACES = (b" ", b"\n", b"\t", b"\\")  # always possible somewhere, and never needed first
_EARLY = b'}])",:0nft .-1'
_LATE = b"{[(\n\\\t"
_LATE_COUNT = len(_LATE)
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
            return _joined(matchers, symbols)
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
        """Token ids of single symbols, at most about `most`."""
        written: list[int] = []
        while len(written) <= most:
            if not self.work.spend():
                return None
            mask, accepting = following(self.matcher)
            if accepting:
                return written
            token = self._choice(mask)
            if token is None or not self.matcher.consume_token(token):
                self.work.said = self.work.said or str(self.matcher.get_error())
                return None
            written.append(token)
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
        tokens = options[leads][1]
        return self.dice.choice(tokens) if self.dice else tokens[0]

    def _explored(self, mask: bytes) -> dict[bytes, tuple[float, list[int]]]:
        """{where a symbol leads: (how good that is, the symbols)}; one alone where it ends the document or
        closes something. Where a mask comes again, so does what was found here, though it may mislead."""
        symbols = self._symbols(mask)
        if len(symbols) == 1:
            return {mask: (1.0, symbols)}
        found: dict[bytes, tuple[float, list[int]]] = {}
        text = self._in_text(symbols)
        if text:  # words rather than a row of brackets
            symbols.sort(key=lambda token: not self.matchers.tokens[token].isalpha())
            symbols.sort(key=lambda token: self.matchers.tokens[token] != b'"')
        for token in symbols:
            if not self.work.spend():
                return {}
            leads = self._probe(token)
            if leads is None:
                continue
            closes = self.matchers.tokens[token] == b'"' if text else self._closes(token)
            if not leads or (self.dice is None and closes and (leads != mask or not text)):
                return {leads: (1.0, [token])}
            found.setdefault(leads, (self._weight(token, text), []))[1].append(token)
        return found

    def _symbols(self, mask: bytes) -> list[int]:
        """What may follow, in the order to try: a byte outside the order only where nothing else may."""
        ids = self.matchers.symbol_ids
        free: list[int] = ids[allowed(mask, ids)].tolist()
        among = set(free)
        if len(free) == 1:
            return free
        ordered = self.matchers.byte_ids[list(_ORDER)].tolist()
        known = [token for token in ordered if token in among]
        controls = [token for token in free if token in self.matchers.controls][:_MOST_CONTROLS]
        late = set(ordered[-_LATE_COUNT:])
        cut = sum(token not in late for token in known)
        return known[:cut] + controls + known[cut:] or free[:_MOST_CONTROLS]

    def _in_text(self, symbols: list[int]) -> bool:
        """Whether nearly anything may follow, as in a string: no byte closes anything there."""
        return {int(self.matchers.byte_ids[byte]) for byte in b"x~"} <= set(symbols)

    def _closes(self, token: int) -> bool:
        return self.matchers.tokens[token] in _CLOSING

    def _weight(self, token: int, text: bool) -> float:
        if self._closes(token) and not text:
            return 10.0
        return 0.0002 if self.matchers.tokens[token] in _SPACES else 1.0

    def _probe(self, token: int) -> bytes | None:
        """The mask behind a symbol: where it leads. b"" where the document may end
        there, None where the symbol cannot stand after all."""
        matcher = self.matcher
        if not matcher.try_consume_tokens([token]):
            return None
        mask, accepting = following(matcher)
        matcher.rollback(1)
        return b"" if accepting else mask


def _joined(matchers: Matchers, symbols: list[int]) -> list[int]:
    """Tokens, each as long as can be, that say the same as tokens of single symbols."""
    bytes_of = {int(token): byte for byte, token in enumerate(matchers.byte_ids) if token >= 0}
    found: list[int] = []
    run = bytearray()
    for token in symbols:
        if token in bytes_of:
            run.append(bytes_of[token])
            continue
        found += [*matchers.split(bytes(run)), token]
        run.clear()
    return [*found, *matchers.split(bytes(run))]


__all__ = ["LONGEST", "TRIES", "Effort", "completion"]
