"""Where an answer stands, token by token: inside a thought, after it, with something said or not yet.

Plain data and pure functions. What follows from it for a canvas is in `guards.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..types import TurnMarks


@dataclass(frozen=True)
class TurnState:
    """What the tokens of a turn have come to so far."""

    open: bool = False  # inside a thought
    name: int = 0  # tokens of the channel's name that are still to come
    used: int = 0  # tokens thought, of all thoughts together; names and markers are none
    said: bool = False  # there was one outside a thought that shows

    @classmethod
    def of_prompt(cls, tokens: Iterable[int], marks: TurnMarks) -> TurnState:
        """Before the answer's first token. Some templates open the thought in the prompt, name and all."""
        opened = False
        for token in tokens:
            if token in (marks.open, marks.close):
                opened = token == marks.open
        return cls(open=opened)

    def spent(self, budget: int) -> bool:
        """Whether an open thought has all its tokens: the next must close it."""
        return self.open and not self.name and self.used >= budget

    def after(self, token: int, marks: TurnMarks) -> TurnState:
        """With one more token."""
        if not self.open:
            if token == marks.open:
                return replace(self, open=True, name=marks.name)
            return replace(self, said=self.said or token not in marks.blank)
        if token == marks.close:
            return replace(self, open=False)
        if self.name:
            return replace(self, name=self.name - 1)
        return replace(self, used=self.used + 1)

    def after_all(self, tokens: Iterable[int], marks: TurnMarks) -> TurnState:
        turn = self
        for token in tokens:
            turn = turn.after(token, marks)
        return turn


__all__ = ["TurnState"]
