"""Two-line Python functions from an instruction that gives the name, the arguments and the operation."""

from __future__ import annotations

from random import Random

from .base import Example, Task, ask
from .words import words

PROMPTS = (
    "Write a function {} that {}.",
    "Python: a function {} that {}.",
    "Define {}, which {}.",
    "Code {}: it {}.",
)
NAMES = words(
    "double triple scale shift grow shrink step move drop mix join pick count check test make turn work "
    "solve apply update change convert get find run read score rank rate value total result first last "
    "foo bar f g h"
)
ARGUMENTS = words("x y n m a b s k value item")
# Instruction and expression: {0} and {1} are two arguments, {c} a number from 2 to 99.
OPERATIONS = (
    ("adds {c} to {0}", "{0} + {c}"),
    ("subtracts {c} from {0}", "{0} - {c}"),
    ("multiplies {0} by {c}", "{0} * {c}"),
    ("divides {0} by {c}", "{0} / {c}"),
    ("returns the remainder of {0} by {c}", "{0} % {c}"),
    ("raises {0} to the power {c}", "{0} ** {c}"),
    ("checks if {0} is greater than {c}", "{0} > {c}"),
    ("checks if {0} is less than {c}", "{0} < {c}"),
    ("checks if {0} equals {c}", "{0} == {c}"),
    ("checks if {0} is even", "{0} % 2 == 0"),
    ("checks if {0} is odd", "{0} % 2 == 1"),
    ("returns the square of {0}", "{0} * {0}"),
    ("returns the length of {0}", "len({0})"),
    ("returns the first item of {0}", "{0}[0]"),
    ("returns the last item of {0}", "{0}[-1]"),
    ("reverses {0}", "{0}[::-1]"),
    ("sorts {0}", "sorted({0})"),
    ("makes {0} upper case", "{0}.upper()"),
    ("makes {0} lower case", "{0}.lower()"),
    ("returns the absolute value of {0}", "abs({0})"),
    ("negates {0}", "-{0}"),
    ("adds {0} and {1}", "{0} + {1}"),
    ("multiplies {0} and {1}", "{0} * {1}"),
    ("returns the larger of {0} and {1}", "max({0}, {1})"),
    ("returns the smaller of {0} and {1}", "min({0}, {1})"),
    ("checks if {0} equals {1}", "{0} == {1}"),
)


class Functions(Task):
    """`def name(arguments):` and one `return`. The item is name, arguments and
    operation; the wording is free."""

    name = "functions"
    thought = "Two lines: def and return."

    def draw(self, rng: Random) -> Example:
        name, arguments, c = rng.choice(NAMES), rng.sample(ARGUMENTS, 2), rng.randint(2, 99)
        what, expression = rng.choice(OPERATIONS)
        used = ", ".join(arguments if "{1}" in what else arguments[:1])
        answer = f"def {name}({used}):\n    return {expression.format(*arguments, c=c)}"
        return ask(self.name, rng.choice(PROMPTS).format(name, what.format(*arguments, c=c)), answer, answer)


__all__ = ["ARGUMENTS", "NAMES", "OPERATIONS", "Functions"]
