"""Capitals of 40 countries in many wordings.

A model cannot name a capital it was never told, so what is held out is the combination of opener, question
and country: every country is trained in most wordings, and asked in the others.
"""

from __future__ import annotations

from random import Random

from .base import Example, Task, ask

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Iceland": "Reykjavik",
    "Ireland": "Dublin",
    "Russia": "Moscow",
    "Ukraine": "Kyiv",
    "Romania": "Bucharest",
    "Bulgaria": "Sofia",
    "Turkey": "Ankara",
    "Egypt": "Cairo",
    "Morocco": "Rabat",
    "Kenya": "Nairobi",
    "Ghana": "Accra",
    "India": "Delhi",
    "China": "Beijing",
    "Japan": "Tokyo",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Nepal": "Kathmandu",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Cuba": "Havana",
    "Canada": "Ottawa",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Ecuador": "Quito",
    "Mexico": "Mexico City",
    "Australia": "Canberra",
}
OPENERS = (
    "",
    "Please: ",
    "Quiz: ",
    "Question: ",
    "Tell me: ",
    "Quick: ",
    "Geography: ",
    "One more: ",
    "Do you know this? ",
    "I forgot: ",
)
# Question and answer. {0} is the country, {1} its capital.
FORMS = (
    ("What is the capital of {0}?", "The capital of {0} is {1}."),
    ("Which city is the capital of {0}?", "{1} is the capital of {0}."),
    ("Name the capital of {0}.", "{1}"),
    ("Capital of {0}?", "{1}"),
    ("{1} is the capital of which country?", "{1} is the capital of {0}."),
    ("Which country has the capital {1}?", "{0}"),
    ("Is {1} the capital of {0}?", "Yes, {1} is the capital of {0}."),
)


class Capitals(Task):
    """2800 combinations, one in five held out."""

    name = "capitals"
    one_in = 5
    thought = "This is about a country."

    def draw(self, rng: Random) -> Example:
        opener, (question, answer) = rng.choice(OPENERS), rng.choice(FORMS)
        pair = rng.choice(tuple(CAPITALS.items()))
        prompt = opener + question.format(*pair)
        return ask(self.name, prompt, answer.format(*pair), prompt)


__all__ = ["CAPITALS", "FORMS", "OPENERS", "Capitals"]
