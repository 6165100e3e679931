"""A few fixed answers, so that `canvaslm chat` is not absurd. Nothing is held out and nothing evaluated."""

from __future__ import annotations

from random import Random

from .base import Example, Split, Task, ask

ABILITIES = (
    "I solve 4x4 Sudokus, reverse words, write JSON and small functions, sort numbers and name capitals."
)
ANSWERS = (
    (
        ("hello", "Hello", "Hello!", "Hi", "hi", "Hey", "Good morning", "Hi there"),
        "Hello! What can I do for you?",
    ),
    (("What can you do?", "what can you do", "Help", "help", "What do you know?"), ABILITIES),
    (("Who are you?", "What are you?", "What is your name?"), "I am the demo model of canvaslm."),
    (("How do you work?", "How do you write?"), "I write all words at once, out of noise."),
    (("Thanks", "Thank you", "Thank you!", "thanks"), "You are welcome!"),
    (("Bye", "Goodbye", "bye", "See you"), "Goodbye!"),
)


class SmallTalk(Task):
    """Greetings, thanks and what the model can do."""

    name = "small_talk"
    evaluated = False
    thought = "Just be kind."

    def draw(self, rng: Random) -> Example:
        prompts, answer = rng.choice(ANSWERS)
        prompt = rng.choice(prompts)
        return ask(self.name, prompt, answer, prompt)

    def sample(self, rng: Random, split: Split = "train") -> Example:
        """Any item: both splits are the same."""
        return self.draw(rng)


__all__ = ["ABILITIES", "ANSWERS", "SmallTalk"]
