"""Conversations of two user turns: a new task after another one, or a question about the first turn."""

from __future__ import annotations

from random import Random

from .base import Example, Split, Task
from .blanks import Blanks
from .capitals import Capitals
from .reversal import Reversal
from .sorting import Sorting
from .words import PEOPLE

PARTS: tuple[Task, ...] = (Capitals(), Reversal(), Sorting(), Blanks())
INTRODUCTIONS = ("I am {}.", "My name is {}.", "Hello, I am {}.", "Hi! {} here.")
NAME_QUESTIONS = ("What is my name?", "Who am I?", "Do you know my name?", "Tell me my name.")
BACK = ("And back?", "Now reverse it back.", "Reverse that.")
DESCENDING = ("Now largest first.", "And the other way round?", "Reverse the order.")


def conversation(first: str, reply: str, second: str) -> tuple[dict[str, str], ...]:
    """The messages of two user turns with the model's reply between them."""
    return (
        {"role": "user", "content": first},
        {"role": "assistant", "content": reply},
        {"role": "user", "content": second},
    )


class TwoTurns(Task):
    """Both turns of a mixed pair belong to the split asked for, so no held-out item shows up in a history."""

    name = "two_turns"
    one_in = 10
    thought = "I look back at the talk."

    def sample(self, rng: Random, split: Split = "train") -> Example:
        if rng.random() < 0.3:
            return super().sample(rng, split)
        return self._mixed(rng, split) if rng.random() < 0.6 else self._follow_up(rng, split)

    def draw(self, rng: Random) -> Example:
        """A name that is told and then asked for."""
        name, told, question = rng.choice(PEOPLE), rng.choice(INTRODUCTIONS), rng.choice(NAME_QUESTIONS)
        messages = conversation(told.format(name), f"Hello {name}!", question)
        key = f"{self.name}/{told.format(name)}/{question}"
        return Example(messages, f"Your name is {name}.", self.name, key)

    def _mixed(self, rng: Random, split: Split) -> Example:
        first, second = (rng.choice(PARTS).sample(rng, split) for _ in range(2))
        messages = conversation(first.messages[0]["content"], first.answer, second.messages[0]["content"])
        return Example(messages, second.answer, self.name, f"{first.key}//{second.key}")

    def _follow_up(self, rng: Random, split: Split) -> Example:
        if rng.random() < 0.5:
            first, question = PARTS[1].sample(rng, split), rng.choice(BACK)
            answer = first.answer[::-1]
        else:
            first, question = PARTS[2].sample(rng, split), rng.choice(DESCENDING)
            answer = " ".join(reversed(first.answer.split()))
        messages = conversation(first.messages[0]["content"], first.answer, question)
        return Example(messages, answer, self.name, f"{first.key}//{question}")


__all__ = ["TwoTurns", "conversation"]
