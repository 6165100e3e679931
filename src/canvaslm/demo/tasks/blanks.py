"""Blank filling: a sentence with a gap that has one right word. The answer is the whole sentence.

Half of the sentences are settled by what stands before them ("Ada is in Rome. ..."), the others
by a small stock of facts. For the facts it is the combination of opener, form and fact that is
held out, as for capitals.
"""

from __future__ import annotations

from random import Random

from .base import Example, Task, ask
from .words import CITIES, COLORS, PEOPLE, THINGS, words

BLANK = "___"
OPENERS = ("Fill the blank: ", "Fill in: ", "Complete: ", "Which word is missing? ")
OPPOSITES = tuple(
    pair.split("/")
    for pair in words(
        "hot/cold big/small old/new fast/slow high/low long/short light/dark rich/poor hard/soft early/late "
        "full/empty open/closed wet/dry happy/sad near/far true/false up/down left/right good/bad"
    )
)
YOUNG = tuple(
    pair.split("/")
    for pair in words(
        "cat/kitten dog/puppy cow/calf pig/piglet sheep/lamb horse/foal bear/cub duck/duckling goose/gosling "
        "goat/kid"
    )
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")


def fact(rng: Random) -> tuple[str, str]:
    """A sentence with a gap, and the word for it, that must be known."""
    kind = rng.randrange(4)
    if kind == 0:
        pair = rng.choice(OPPOSITES)
        shown, hidden = rng.sample(pair, 2)
        return f"The opposite of {shown} is {BLANK}.", hidden
    if kind == 1:
        old, young = rng.choice(YOUNG)
        return rng.choice(
            ((f"A young {old} is a {BLANK}.", young), (f"A {young} is a young {BLANK}.", old)),
        )
    names = DAYS if kind == 2 else MONTHS
    at, back = rng.randrange(len(names)), rng.random() < 0.5
    word = "before" if back else "after"
    near = names[(at + (-1 if back else 1)) % len(names)]
    return f"The {'day' if kind == 2 else 'month'} {word} {names[at]} is {BLANK}.", near


def told(rng: Random) -> tuple[str, str]:
    """A sentence with a gap, and the word for it, that the sentences before it give."""
    people, which = rng.sample(PEOPLE, 2), rng.randrange(2)
    if rng.random() < 0.5:
        cities = rng.sample(CITIES, 2)
        story = f"{people[0]} is in {cities[0]} and {people[1]} is in {cities[1]}."
        gap = rng.choice((f"{people[which]} is in {BLANK}.", f"{BLANK} is in {cities[which]}."))
        return f"{story} {gap}", cities[which] if gap.endswith(f"{BLANK}.") else people[which]
    colors, thing = rng.sample(COLORS, 2), rng.choice(THINGS)
    story = f"{people[0]} has a {colors[0]} {thing}, {people[1]} a {colors[1]} one."
    return f"{story} The {thing} of {people[which]} is {BLANK}.", colors[which]


class Blanks(Task):
    """The answer repeats the sentence that has the gap, filled in."""

    name = "blanks"
    one_in = 10
    thought = "One word is missing."

    def draw(self, rng: Random) -> Example:
        text, word = (fact if rng.random() < 0.5 else told)(rng)
        prompt = rng.choice(OPENERS) + text
        sentence = next(part for part in text.replace(". ", ".\n").split("\n") if BLANK in part)
        return ask(self.name, prompt, sentence.replace(BLANK, word), prompt)


__all__ = ["BLANK", "Blanks", "fact", "told"]
