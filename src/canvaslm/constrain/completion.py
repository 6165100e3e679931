"""How a document can end: a search for a short text after which a matcher accepts.

Grammars have no distance to their end that could be read off. What works is to write what is forced, to close
what can be closed, else to write what changes the situation, and to start again with dice where that leads
nowhere. What is found is an end; that nothing is found proves nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from .matchers import Matcher, Matchers, allowed

LONGEST = 8192  # symbols of an end that the first try may write
TRIES = 9
_LONGEST_WITH_DICE = 512

# Bytes in the order in which they are tried: what closes, ends or separates in JSON and its like, then
# short values, and what opens something new last.
_CLOSING = b"}])"
_EARLY = b'}])",:0nft .-1'
_LATE = b"{[("
_ORDER = (*_EARLY, *(b for b in range(33, 127) if b not in _EARLY + _LATE + b"\\"), *_LATE, 0x0A, 0x5C, 0x09)
_MOST_CONTROLS = 4  # a class of tokens such as <[^1-9]> may hold thousands


def _never() -> bool:
    return False


@dataclass
class Work:
    """How much a search may still do: `steps` masks computed or symbols tried, and until `stopped` says so.

    Counted steps end a search at the same place on every machine, which answers need; the clock is for
    compiling only.
    """

    steps: int
    stopped: Callable[[], bool] = _never

    def spend(self, steps: int = 1) -> bool:
        """Whether that much was left; takes it."""
        self.steps -= steps
        return self.steps >= 0 and not self.stopped()


def completion(matchers: Matchers, matcher: Matcher, work: Work, tries: int = TRIES) -> list[int] | None:
    """Tokens after which a matcher of `matchers.symbol_matcher`, which is left as it is, accepts: few, if not
    the fewest, without the end token. None where no end was found within the work and the tries."""
    for attempt in range(tries):
        dice = random.Random(attempt) if attempt else None
        search = _Search(matchers, matcher.deep_copy(), work, dice)
        symbols = search.run(LONGEST if dice is None else _LONGEST_WITH_DICE)
        if symbols is not None:
            return _joined(matchers, symbols)
        if work.steps < 0:
            break
    return None


class _Search:
    """One try. `dice` None: the first byte that helps, in the order above."""

    def __init__(self, matchers: Matchers, matcher: Matcher, work: Work, dice: random.Random | None) -> None:
        self.matchers, self.matcher, self.work, self.dice = matchers, matcher, work, dice
        self.known: dict[bytes, int] = {}  # mask -> what was written there, where there are no dice

    def run(self, most: int) -> list[int] | None:
        """Token ids of single symbols, at most about `most`."""
        written: list[int] = []
        while len(written) <= most:
            if not self.work.spend():
                return None
            if self.matcher.is_accepting():
                return written
            added = self._forced() or self._choice()
            if not added or not self.matcher.consume_tokens(added):
                return None
            written += added
        return None

    def _forced(self) -> list[int]:
        """What alone can follow. Empty where that is nothing, or holds a byte that has no token."""
        ids = [int(self.matchers.byte_ids[byte]) for byte in self.matcher.compute_ff_bytes()]
        return ids if all(token >= 0 for token in ids) else []

    def _choice(self) -> list[int]:
        mask = self.matcher.compute_bitmask()
        if mask in self.known:
            return [self.known[mask]]
        options = self._options(mask)
        moves, stays = [], []
        text = self._in_text(options)
        for token in options:
            if not self.work.spend():
                return []
            effect = self._effect(token, mask, text)
            if effect == "ends" or (effect == "moves" and self.dice is None):
                return self._take(mask, token)
            if effect == "moves":
                moves.append(token)
            elif effect == "stays":
                stays.append(token)
        if self.dice is None:
            return self._take(mask, stays[0]) if stays else []
        pool = moves if moves and (not stays or self.dice.random() < 0.7) else stays
        return [self.dice.choice(pool)] if pool else []

    def _take(self, mask: bytes, token: int) -> list[int]:
        if self.dice is None:
            self.known[mask] = token
        return [token]

    def _options(self, mask: bytes) -> list[int]:
        """What may follow, in the order to try: a byte outside the order only where nothing else may."""
        ids = self.matchers.symbol_ids
        free = set(ids[allowed(mask, ids)].tolist())
        byte_ids = self.matchers.byte_ids.tolist()
        known = [byte_ids[byte] for byte in _ORDER if byte_ids[byte] in free]
        controls = sorted(free.difference(byte_ids))[:_MOST_CONTROLS]
        if known or controls:
            late = len([b for b in (*_LATE, 0x0A, 0x5C, 0x09) if byte_ids[b] in free])
            cut = len(known) - late
            return known[:cut] + controls + known[cut:]
        return sorted(free)[:_MOST_CONTROLS]

    def _in_text(self, options: list[int]) -> bool:
        """Whether nearly anything may follow, as in a string: no byte closes anything there."""
        found = set(options)
        return all(int(self.matchers.byte_ids[byte]) in found for byte in b"x~")

    def _effect(self, token: int, mask: bytes, text: bool) -> str:
        """What a symbol does: "ends" (or closes), "moves" to where something else may follow, "stays", or ""
        where it cannot stand after all."""
        matcher = self.matcher
        if not matcher.try_consume_tokens([token]):
            return ""
        if matcher.is_accepting():
            effect = "ends"
        elif matcher.compute_ff_bytes() or matcher.compute_bitmask() != mask:
            effect = "moves"
        else:
            effect = "stays"
        matcher.rollback(1)
        if not text and effect == "moves" and self.matchers.tokens[token] in (b"}", b"]", b")"):
            return "ends"
        return effect


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


__all__ = ["LONGEST", "TRIES", "Work", "completion"]
