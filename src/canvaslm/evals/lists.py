"""The eval `lists`: a change to a list of names, of which right answers differ in how much the places know of
each other.

Copying needs nothing of a neighbour; a random insertion or a shuffle has many right answers, each of which is
one only as a whole, so places that are written at once have to agree on which. That is where writing many
tokens in a pass fails first (after the waiting lines of ParallelBench, 2025;
items and words are our own). The demo model was never trained on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ..demo.tasks import Example, Task
from ..demo.tasks.base import ask
from ..demo.tasks.words import PEOPLE
from .tasks import Drawn, EvalTask

MAX_NEW_TOKENS = 128
SHORTEST, LONGEST = 4, 10
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_FORM = "Answer with the names of the list that results, with commas between, and nothing else."

Result = Callable[[list[str], str, int], list[str]]  # of (list, new name, place from 0)
Rule = Callable[[list[str], list[str], str, int], bool]  # of (answer, list, new name, place from 0)


@dataclass(frozen=True)
class Operation:
    """`asks`: what is to be done, with {new} a name that the list has not and {place} an ordinal. `right`:
    whether an answer is. `example`: one that is."""

    asks: str
    right: Rule
    example: Result


def _copied(names: list[str], new: str, place: int) -> list[str]:
    return names


def _reversed(names: list[str], new: str, place: int) -> list[str]:
    return names[::-1]


def _sorted(names: list[str], new: str, place: int) -> list[str]:
    return sorted(names)


def _inserted(names: list[str], new: str, place: int) -> list[str]:
    return [*names[:place], new, *names[place:]]


def _replaced(names: list[str], new: str, place: int) -> list[str]:
    return [*names[:place], new, *names[place + 1 :]]


def _removed(names: list[str], new: str, place: int) -> list[str]:
    return [*names[:place], *names[place + 1 :]]


def _shifted(names: list[str], new: str, place: int) -> list[str]:
    return [*names[1:], names[0]]


def _deranged(said: list[str], names: list[str], new: str, place: int) -> bool:
    same = Counter(said) == Counter(names)
    return same and all(a != b for a, b in zip(said, names, strict=True))


def _only(result: Result) -> Rule:
    """One answer is right."""
    return lambda said, names, new, place: said == result(names, new, place)


def _anywhere(result: Result, behind: int = 0) -> Rule:
    """The result for any place is right; `behind` = 1: for the one behind the last as well."""
    return lambda said, names, new, place: any(
        said == result(names, new, at) for at in range(len(names) + behind)
    )


OPERATIONS: dict[str, Operation] = {
    "copy": Operation("Copy this list as it is.", _only(_copied), _copied),
    "reverse": Operation("Write this list from back to front.", _only(_reversed), _reversed),
    "sort": Operation("Write this list in alphabetical order.", _only(_sorted), _sorted),
    "shuffle": Operation("Shuffle this list so that no name stays at its place.", _deranged, _shifted),
    "replace-at": Operation("Put {new} in place of the {place} name.", _only(_replaced), _replaced),
    "replace-any": Operation(
        "Put {new} in place of one of the names, whichever you like.", _anywhere(_replaced), _replaced
    ),
    "insert-at": Operation(
        "Insert {new} so that it is the {place} name.", _only(_inserted), _inserted
    ),
    "insert-any": Operation("Insert {new} wherever you like.", _anywhere(_inserted, 1), _inserted),
    "remove-at": Operation("Remove the {place} name.", _only(_removed), _removed),
    "remove-any": Operation(
        "Remove one of the names, whichever you like.", _anywhere(_removed), _removed
    ),
}  # fmt: skip


class ListTask(Task):
    """One operation on lists of four to ten different names."""

    one_in = 1  # nothing is trained on: all items may be asked

    def __init__(self, name: str) -> None:
        self.operation = OPERATIONS[name]
        self.label = f"lists:{name}"

    def draw(self, rng: Random) -> Example:
        *names, new = rng.sample(PEOPLE, rng.randint(SHORTEST, LONGEST) + 1)
        place = rng.randrange(len(names))
        wanted = self.operation.asks.format(new=new, place=_ORDINALS[place])
        prompt = f"{wanted} {_FORM}\n\n{', '.join(names)}"
        answer = ", ".join(self.operation.example(list(names), new, place))
        return ask(self.label, prompt, answer, f"{'/'.join(names)}/{new}/{place}")

    def check(self, example: Example, text: str) -> bool:
        """Whether `text` is a list that results. Brackets, quotes and a full stop around names are let pass,
        other words are not."""
        *names, new, place = example.key.removeprefix(f"{self.label}/").split("/")
        return self.operation.right(read_names(text), names, new, int(place))


def read_names(text: str) -> list[str]:
    """The names of an answer: between commas, or one a line; without brackets, quotes, a full stop."""
    whole = text.strip().strip("[]().").strip()
    return [part.strip().strip("\"'").strip() for part in whole.replace("\n", ",").split(",") if part.strip()]


def tasks() -> dict[str, EvalTask]:
    """The eval's tasks by name."""
    return {
        name: Drawn(ListTask(name), f"lists:{name}", MAX_NEW_TOKENS, f"lists:{name}") for name in OPERATIONS
    }


__all__ = ["MAX_NEW_TOKENS", "OPERATIONS", "ListTask", "Operation", "read_names", "tasks"]
