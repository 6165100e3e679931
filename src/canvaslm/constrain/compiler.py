"""From what a caller wants an answer to be to a `Constraint`, remembered.

Compiling takes up to seconds, and is done on a thread that may wait. What was compiled is kept for the next
request that wants the same, as long as all that is kept stays within a number of states.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from ..errors import UsageError
from ..types import Constraint, Structure
from .answers import Thought, choice, regex, schema
from .automaton import TooLarge
from .avoid import without
from .grammar import gbnf, json_schema, lark
from .regular import Regular
from .schema_document import Unsupported
from .tools import CallMarks, calling, read_rules
from .vocabulary import Vocabulary

MAX_SOURCE = 65_536  # bytes
MOST_SECONDS = 10.0  # that a grammar may take to compile
MOST_STATES = 60_000  # of all automata that are kept: about 1,700 bytes each
GRAMMAR_STATES = 2_000  # what a compiled grammar counts as


class Compiler:
    """Compiles for one model. Safe to share between threads.

    `vocabulary` is made when it is first needed: for 262,144 tokens that takes a second.
    """

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        thought: Thought | None = None,
        marks: CallMarks | None = None,
    ) -> None:
        """thought: what an answer may have before it where the model was asked to think; marks: what tool
        calls are written with."""
        self._make, self._thought, self._marks = vocabulary, thought, marks
        self._vocabulary: Vocabulary | None = None
        self._lock, self._making = Lock(), Lock()
        self._known: OrderedDict[tuple[Structure, bool], Constraint] = OrderedDict()

    @property
    def vocabulary(self) -> Vocabulary:
        with self._making:
            if self._vocabulary is None:
                self._vocabulary = self._make()
            return self._vocabulary

    def compile(self, structure: Structure, *, thinking: bool = False) -> Constraint:
        """The constraint of a structure; `thinking`: a thought may stand before the answer.

        Raises UsageError, naming `structure.param`, for what is no such structure, is too large, or has no
        answer at all.
        """
        key = (structure, thinking)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        size = len(structure.source.encode("utf-8", "replace"))
        if size > MAX_SOURCE:
            raise UsageError(
                f"the {structure.kind} has {size} bytes: {MAX_SOURCE} are the most, make it smaller",
                structure.param or structure.kind,
            )
        try:
            made = self._compiled(structure, self._thought if thinking else None)
        except UsageError as error:
            place = error.param if structure.kind == "tools" else None
            raise UsageError(str(error), place or structure.param or structure.kind) from error
        self._keep(key, made)
        return made

    def _compiled(self, structure: Structure, thought: Thought | None) -> Constraint:
        vocabulary, source = self.vocabulary, structure.source
        if structure.kind == "regex":
            return regex(source, vocabulary, thought=thought)
        if structure.kind == "choice":
            return choice(json.loads(source), vocabulary, thought=thought)
        if structure.kind == "avoid":
            return without(json.loads(source), vocabulary)
        if structure.kind == "schema":
            return _schema(source, vocabulary, thought)
        if structure.kind == "tools" and self._marks is not None:
            return calling(read_rules(source), vocabulary, self._marks, thought=thought)
        # GBNF defines a rule with `::=`, which Lark does not have.
        compiled = gbnf if "::=" in source else lark
        return compiled(source, vocabulary, thought=thought, stopped=_deadline())

    def _keep(self, key: tuple[Structure, bool], made: Constraint) -> None:
        with self._lock:
            self._known[key] = made
            while len(self._known) > 1 and sum(map(_states, self._known.values())) > MOST_STATES:
                self._known.popitem(last=False)


def _schema(source: str, vocabulary: Vocabulary, thought: Thought | None) -> Constraint:
    """By an automaton, which is exact; where the schema is beyond one, by llguidance."""
    try:
        return schema(source, vocabulary, thought=thought)
    except (Unsupported, TooLarge) as beyond:
        try:
            return json_schema(json.loads(source), vocabulary, thought=thought, stopped=_deadline())
        except UsageError as error:
            raise UsageError(f"{beyond}; nor by way of a grammar: {error}", "schema") from error


def _deadline() -> Callable[[], bool]:
    end = time.monotonic() + MOST_SECONDS
    return lambda: time.monotonic() > end


def _states(made: Any) -> int:
    return made.steps.automaton.states if isinstance(made, Regular) else GRAMMAR_STATES


__all__ = ["GRAMMAR_STATES", "MAX_SOURCE", "MOST_STATES", "Compiler"]
