"""Word reversal. Words are in capitals, which the tokenizer never merges: every letter is one token."""

from __future__ import annotations

from random import Random

from .base import Example, Task, ask
from .words import NOUNS

PROMPTS = ("Reverse: {}", "Reverse the word {}", "Write {} backwards", "Spell {} from the end")
VOWELS = "AEIOU"
CONSONANTS = "BCDFGHJKLMNPQRSTVWXYZ"


def pronounceable(rng: Random) -> str:
    """A made-up word of 3 to 8 letters, consonants and vowels mostly in turn."""
    vowel = rng.random() < 0.3
    letters = []
    for _ in range(rng.randint(3, 8)):
        letters.append(rng.choice(VOWELS if vowel else CONSONANTS))
        vowel = not vowel if rng.random() < 0.85 else vowel
    return "".join(letters)


class Reversal(Task):
    """A word of 3 to 8 letters written backwards; one in five is a real word."""

    name = "reverse"
    thought = "The last letter comes first."

    def draw(self, rng: Random) -> Example:
        word = rng.choice(NOUNS).upper() if rng.random() < 0.2 else pronounceable(rng)
        return ask(self.name, rng.choice(PROMPTS).format(word), word[::-1], word)


__all__ = ["PROMPTS", "Reversal", "pronounceable"]
