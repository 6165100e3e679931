"""What a demo task is: a seeded generator of conversations with one right answer,
split by a hash of the item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from random import Random
from typing import Any, ClassVar, Literal

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Example:
    """One conversation that ends with a user's turn, and the answer wanted.

    `key` names the item in canonical form (the order or wording that does not matter is gone), so
    that two examples of one item share it. `thought`, when not empty, is what the model is to think
    first: thinking is then on. `holes`, when there are any, are the parts of the answer to be written, as
    (start, end) in its characters, in order and apart; all else of it is given, and where it is `closed`,
    what ends it as well.
    """

    messages: tuple[dict[str, str], ...]
    answer: str
    task: str
    key: str
    thought: str = ""
    holes: tuple[tuple[int, int], ...] = ()
    closed: bool = False

    def pieces(self) -> list[tuple[str, bool]]:
        """The answer from left to right, as (text, whether it is given). No piece is empty."""
        edges = [0, *(edge for hole in self.holes for edge in hole), len(self.answer)]
        if not self.holes:
            return [(self.answer, False)]
        return [(self.answer[a:b], i % 2 == 0) for i, (a, b) in enumerate(pairwise(edges)) if a < b]


def held_out(key: str, one_in: int) -> bool:
    """Whether the item `key` belongs to the held-out split: one in `one_in`, by
    blake2b, the same for ever."""
    digest = blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % one_in == 0


def ask(task: str, prompt: str, answer: str, key: str) -> Example:
    """An example of a single user turn. `key` is prefixed with the task's name."""
    return Example(({"role": "user", "content": prompt},), answer, task, f"{task}/{key}")


class Task(ABC):
    """A generator and its scorer. A task keeps no state: all randomness comes from the `rng` handed in."""

    name: ClassVar[str]
    # One item in `one_in` is held out. Small universes hold out more, so that an
    # evaluation finds enough items.
    one_in: ClassVar[int] = 20
    # Small talk has a handful of fixed answers: nothing to hold out, nothing to evaluate.
    evaluated: ClassVar[bool] = True
    # What the model says to itself when thinking is on.
    thought: ClassVar[str] = ""
    # Whether `structure` says something of every item.
    structured: ClassVar[bool] = False

    @abstractmethod
    def draw(self, rng: Random) -> Example:
        """Any item, of either split."""

    def sample(self, rng: Random, split: Split = "train") -> Example:
        """An item of `split`: items of the other one are drawn and dropped."""
        wanted = split == "heldout"
        while True:
            example = self.draw(rng)
            if held_out(example.key, self.one_in) == wanted:
                return example

    def check(self, example: Example, text: str) -> bool:
        """Whether `text` answers `example`: an exact match but for white space around it."""
        return text.strip() == example.answer

    def structure(self, example: Example) -> dict[str, Any]:
        """What is known of the answer's form, as an option of a session: a `schema` or a `regex`."""
        return {}

    def valid(self, example: Example, text: str) -> bool:
        """Whether `text` has the form that `structure` says, right or wrong."""
        return True


__all__ = ["Example", "Split", "Task", "ask", "held_out"]
