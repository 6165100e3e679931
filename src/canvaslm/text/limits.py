"""How much a chat template may do: time, size of values, work in all.

A template is code from a stranger's checkpoint. Python cannot stop a single huge operation (`"x" * 10**10`),
so each operation that can grow is priced *before* it runs, and each loop turn, call and output looks at the
clock. Sizes are rough: characters of text, 64 for any other value or container slot.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Undefined

from ..errors import BadTemplate

MAX_INT_BITS = 4096
SLOT = 64


class Meter:
    """The allowance of one rendering.

    `value` caps a single value with all that it contains; `work` caps the sum of all priced operations;
    `seconds` is wall time from now. Exceeding any raises BadTemplate.
    """

    def __init__(self, value: int, work: int, seconds: float) -> None:
        self.value = value
        self._work = work
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._countdown = 32

    def tick(self, cost: int = 0) -> None:
        """One small operation. The clock is read at every 32nd, or after 100 kB of work."""
        self._work -= cost
        self._countdown -= 1 + (cost >> 12)
        if self._countdown > 0:
            return
        self._countdown = 32
        if self._work < 0:
            raise BadTemplate(
                "the chat template does too much work for these messages. Use another template."
            )
        if time.monotonic() > self._deadline:
            raise BadTemplate(
                f"the chat template was still running after {self._seconds:g} s. Use another template."
            )

    def price(self, size: int) -> None:
        """An operation whose result may have this size; refused if a value of that size is."""
        if size > self.value:
            raise BadTemplate(
                f"the chat template makes a value of about {size} characters; {self.value} are allowed here."
            )
        self.tick(size)

    def weigh(self, value: Any, *, printable: bool = False) -> int:
        """The size of a value, counting what it contains as often as it is contained. Costs the looking only.

        That counting is what stops lists of lists of lists that share their parts: comparing,
        hashing or printing them takes as long as their full size says. `printable=True` refuses
        objects that have no plain text.
        """
        size = seen = 0
        stack = [value]
        while stack:
            item = stack.pop()
            seen += 1
            size += _own_size(item, printable)
            if size > self.value:
                self.price(size)
            if isinstance(item, (list, tuple, set, frozenset)):
                stack.extend(item)
            elif isinstance(item, dict):
                stack.extend(item)
                stack.extend(item.values())
        self.tick(8 * seen)
        return size

    def listed(self, values: Iterable[Any]) -> list[Any]:
        """All values of an iterator, priced one by one."""
        found: list[Any] = []
        size = 0
        for value in values:
            found.append(value)
            size += self.weigh(value) + SLOT
            if size > self.value:
                self.price(size)
        return found

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values of a loop, one tick each."""
        for value in values:
            self.tick()
            yield value


def _own_size(item: Any, printable: bool) -> int:
    if isinstance(item, str):
        return len(item) + 8
    if isinstance(item, int) and item.bit_length() > MAX_INT_BITS:
        raise BadTemplate(f"the chat template computes a number of more than {MAX_INT_BITS} bits.")
    if isinstance(item, (list, tuple, set, frozenset, dict)):
        return SLOT + 8 * len(item)
    if isinstance(item, range):
        return SLOT + 16 * len(item)
    if printable and not isinstance(item, (int, float, Undefined, type(None))):
        raise BadTemplate(f"the chat template writes out a {type(item).__name__}, which has no text.")
    return 16


__all__ = ["MAX_INT_BITS", "SLOT", "Meter"]
