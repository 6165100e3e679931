"""Word lists the generators draw from. Short and common, so that most become one
token of the demo tokenizer."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of `text`, split at white space."""
    return tuple(text.split())


PEOPLE = words("Ada Tom Eva Max Ida Leo Mia Sam Zoe Ben Amy Jon Lea Kim Ray Una Pia Nora Otto Rosa")
CITIES = words("Oslo Rome Lima Bern Cairo Paris Tokyo Delhi Quito Berlin Madrid Lisbon")
COLORS = words("red blue green black white brown pink gray gold orange")
ANIMALS = words("cat dog cow pig hen fox owl bee ant bear wolf lion duck goat horse mouse")
FRUITS = words("apple pear plum fig lemon grape melon cherry peach mango")
THINGS = words("hat cup key bag box pen book lamp ball coat ring boat bike chair table")
JOBS = words("cook nurse pilot baker farmer teacher doctor judge")
VERBS = words("sleeps runs sings jumps swims eats waits hides")
PLACES = words("house garden river forest school market")
NOUNS = ANIMALS + FRUITS + THINGS + JOBS + PLACES

__all__ = [
    "ANIMALS",
    "CITIES",
    "COLORS",
    "FRUITS",
    "JOBS",
    "NOUNS",
    "PEOPLE",
    "PLACES",
    "THINGS",
    "VERBS",
    "words",
]
