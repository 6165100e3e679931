"""Easy sorting: 3 to 5 different numbers of two digits."""

from __future__ import annotations

from random import Random

from .base import Example, Task, ask

PROMPTS = ("Sort: {}", "Sort these numbers: {}", "Put in order: {}", "Smallest first: {}")


class Sorting(Task):
    """Numbers from 10 to 99, so that every number is two tokens. The item is the
    set: no order of it leaks."""

    name = "sort"
    thought = "The smallest number comes first."

    def draw(self, rng: Random) -> Example:
        numbers = rng.sample(range(10, 100), rng.randint(3, 5))
        answer = " ".join(map(str, sorted(numbers)))
        return ask(self.name, rng.choice(PROMPTS).format(" ".join(map(str, numbers))), answer, answer)


__all__ = ["Sorting"]
