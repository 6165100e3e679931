"""Answers of 65 to 128 tokens: two canvases of 64. They train the second block and the encoder's loss."""

from __future__ import annotations

from random import Random

from .base import Example, Task, ask
from .words import ANIMALS, COLORS, PLACES, VERBS

COUNT_PROMPTS = ("Count from {} to {}", "Count: {} to {}", "List the numbers from {} to {}")
EVEN_PROMPTS = ("Count by twos from {} to {}", "Every second number from {} to {}")
TABLE_PROMPTS = (
    "Write the table of {}",
    "Times table of {}",
    "Multiply {} by 1 to {last}",
    "Show {} times 1 to {last}",
)
REPEAT_PROMPTS = ("Write {} times: {}", "Number {} lines: {}", "Repeat {} times: {}")


def counting(rng: Random) -> tuple[str, str]:
    """26 to 40 numbers of one or two digits, up or down, by one or by two."""
    step = rng.choice((1, 1, 2))
    length = rng.randint(26, 40)
    start = rng.randint(0, 99 - step * (length - 1))
    numbers = list(range(start, start + step * length, step))
    if rng.random() < 0.3:
        numbers.reverse()
    prompts = COUNT_PROMPTS if step == 1 else EVEN_PROMPTS
    return rng.choice(prompts).format(numbers[0], numbers[-1]), " ".join(map(str, numbers))


def table(rng: Random) -> tuple[str, str]:
    """The table of a number from 2 to 12, nine or ten lines."""
    number, last = rng.randint(2, 12), 10
    text = "\n".join(f"{number} x {i} = {number * i}" for i in range(1, last + 1))
    return rng.choice(TABLE_PROMPTS).format(number, last=last), text


def repeating(rng: Random) -> tuple[str, str]:
    """One sentence on 7 to 9 numbered lines."""
    times = rng.randint(7, 9)
    animal, color, verb, place = (rng.choice(words) for words in (ANIMALS, COLORS, VERBS, PLACES))
    sentence = f"The {color} {animal} {verb} in the {place}."
    lines = "\n".join(f"{i}. {sentence}" for i in range(1, times + 1))
    return rng.choice(REPEAT_PROMPTS).format(times, sentence), lines


class LongAnswers(Task):
    """Counting, times tables and numbered repetition. The item is the prompt with its wording."""

    name = "long"
    one_in = 10
    thought = "A long list."

    def draw(self, rng: Random) -> Example:
        kind = rng.choices((counting, table, repeating), weights=(5, 2, 3))[0]
        prompt, answer = kind(rng)
        return ask(self.name, prompt, answer, prompt)


__all__ = ["LongAnswers", "counting", "repeating", "table"]
