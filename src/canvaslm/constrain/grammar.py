"""Constraints that are no regular language, or too large for an automaton: GBNF, Lark, JSON schemas.

llguidance tells which tokens may follow; `beam` finds the document that the canvas means; an end of it is
always in hand. `gbnf`, `lark` and `json_schema` compile: they raise UsageError, within counted work, for what
is no grammar, is too large, or has no end that is found.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import EngineFailure, UsageError
from ..types import Projection, Readout
from .answers import Thought
from .beam import READS, Beam, CanvasRows, Found, searches
from .completion import Effort, completion
from .gbnf import gbnf_to_lark
from .limits import check_document, check_multiples, check_nesting, check_text
from .matchers import Matcher, Matchers, SymbolWalker, short_message, takes
from .price import price
from .vocabulary import Vocabulary

# Seconds of this thread's own time for a canvas. What it says never depends on them: its work is counted.
# They end the requests of grammars that were made to look fast.
SLOWEST = 6.0
THIN = 8  # a canvas of which less than the 8th part is of the document
MOST_THIN = 2  # so many in a row: the third such canvas ends the document, for each costs all its steps
COMPILE_STEPS = 60_000  # of the search for the first whole document
WHITE_SPACE = r"[ \n]{0,2}"  # between the signs of a JSON text: free, but no way to spend a budget


def _never() -> bool:
    return False


@dataclass(frozen=True)
class GrammarState:
    """Where a document is between two canvases."""

    tokens: tuple[int, ...] = ()  # committed so far
    completion: tuple[int, ...] = ()  # that would complete it, without the end token
    thin: int = 0  # canvases in a row that said hardly anything of it


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled grammar: a `Constraint`. Its matchers stand at the beginning and are only ever copied, so
    any number of requests may share it."""

    matchers: Matchers
    pad: int
    symbols: Matcher
    completion: tuple[int, ...]  # a whole document, without the end token
    price: int = 1  # of a symbol
    field: str = "grammar"  # what to call it to who wrote it
    top: int = 16

    @property
    def shortest(self) -> int:
        """Tokens of a whole document, its end token included: no fewer than the fewest there are, and a
        budget of so many is enough."""
        return len(self.completion) + 1

    def start(self) -> GrammarState:
        return GrammarState((), self.completion)

    def project(self, state: GrammarState, readout: Readout) -> Projection:
        """The document, or the part of one, that a canvas means.

        A readout without places asks for the rest of the document: no canvas will follow.
        Raises UsageError where the room is smaller than `shortest` on the first canvas.
        """
        if readout.room < len(state.completion) + 1:
            raise UsageError(
                f"the answer needs {len(state.completion) + 1} more tokens to be complete, and "
                f"{readout.room} are left: raise max_new_tokens",
                "max_new_tokens",
            )
        first = SymbolWalker(self.matchers, self.symbols.deep_copy())
        if not takes(first, state.tokens):
            raise EngineFailure("a document's beginning is not accepted any more: this is a bug")
        work = Effort(searches(self.price), stopped=self._too_slow())
        beam = Beam(self.matchers, first, state.completion, readout.room, work, READS // self.price)
        lead = len(readout.top_tokens) - len(readout.tokens)  # places of the canvas before the answer's
        found = self._judged(state, beam.best(self._places(readout, lead)), beam)
        thin = state.thin + 1 if THIN * len(found.tokens) < len(readout.tokens) else 0
        if thin > MOST_THIN and not found.ended:
            found = beam.completed(found)
        tokens = state.tokens + found.tokens
        return Projection(
            found.tokens,
            tuple(None if place is None else place + lead for place in found.places),
            GrammarState(tokens, found.completion, thin),
            found.ended,
        )

    def _too_slow(self) -> Callable[[], bool]:
        """Asked now and then, raises UsageError once a canvas takes much longer than its counted work can."""
        end = time.thread_time() + SLOWEST

        def stopped() -> bool:
            if time.thread_time() > end:
                raise UsageError(
                    f"the {self.field} is too slow to follow a document: make it less ambiguous", self.field
                )
            return False

        return stopped

    def _places(self, readout: Readout, lead: int) -> CanvasRows:
        """The answer's places, as far as there is room."""
        count = min(len(readout.tokens), readout.room)
        width = max((len(row) for row in readout.top_tokens), default=1)
        tokens = np.array(readout.top_tokens[lead : lead + count], np.int64).reshape(count, width)
        logprobs = np.array(readout.top_logprobs[lead : lead + count], np.float64).reshape(count, width)
        given = readout.given[len(readout.given) - len(readout.tokens) :][:count]
        for place in np.nonzero(np.array(given, bool))[0].tolist():
            tokens[place, 0], logprobs[place] = readout.tokens[place], -np.inf
            logprobs[place, 0] = 0.0
        return CanvasRows.of(tokens, logprobs, given, self.matchers.ends, self.pad, len(self.matchers.tokens))

    def _judged(self, state: GrammarState, found: Found, beam: Beam) -> Found:
        """What was found, if a fresh matcher accepts it, else the end in hand."""
        said = found.tokens[:-1] if found.ended else found.tokens
        judge = SymbolWalker(self.matchers, self.symbols.deep_copy())
        if takes(judge, [*state.tokens, *said]) and (not found.ended or judge.is_accepting()):
            return found
        return beam.known_end()


def gbnf(
    text: str,
    vocabulary: Vocabulary,
    *,
    thought: Thought | None = None,
    stopped: Callable[[], bool] = _never,
) -> Grammar:
    """Documents of a llama.cpp grammar.

    stopped: asked now and then; once it says True, compiling ends with a UsageError.
    """
    readings = [{"lark_grammar": lark} for lark in gbnf_to_lark(text)]
    return _compiled(readings, vocabulary, thought, stopped, "grammar")


def lark(
    text: str,
    vocabulary: Vocabulary,
    *,
    thought: Thought | None = None,
    stopped: Callable[[], bool] = _never,
) -> Grammar:
    """Documents of a grammar in llguidance's Lark: control tokens are `<|tool_call>` or `<[106]>`."""
    check_text(text, "grammar")
    check_nesting(text, "grammar")
    _check_schemas_within(text)
    return _compiled([{"lark_grammar": text}], vocabulary, thought, stopped, "grammar")


def json_schema(
    document: dict[str, Any] | bool,
    vocabulary: Vocabulary,
    *,
    thought: Thought | None = None,
    stopped: Callable[[], bool] = _never,
    white_space: str = WHITE_SPACE,
) -> Grammar:
    """JSON texts that a schema accepts. white_space: an expression for what may stand between signs."""
    check_document(document, "schema")
    check_multiples(document, "schema")
    if document is False:
        raise UsageError("the schema false accepts nothing", "schema")
    _refuse_counted_keys(document)
    schema = {} if document is True else document
    if not isinstance(schema, dict):
        raise UsageError(f"the schema must be an object, not {type(document).__name__}", "schema")
    guided = {**schema, "x-guidance": {"whitespace_pattern": white_space}}
    return _compiled([{"json_schema": guided}], vocabulary, thought, stopped, "schema")


def _refuse_counted_keys(schema: Any) -> None:
    """Raises UsageError for a least number of properties above one: llguidance lets a key come twice, and
    then it counts once."""
    rest = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            rest += value.values()
            least = value.get("minProperties")
            if isinstance(least, int | float) and least > 1:
                raise UsageError(
                    "the schema cannot be used: minProperties above 1 is not supported here; name the "
                    "properties and require them",
                    "schema",
                )
        elif isinstance(value, list):
            rest += value


def _check_schemas_within(text: str) -> None:
    """Raises UsageError where a schema within a Lark grammar is none or beyond the limits of schemas."""
    for place in re.finditer(r"%json\b\s*", text):
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, place.end())
        except ValueError as error:
            raise UsageError(f"the grammar has no JSON behind %json: {error}", "grammar") from None
        check_document(schema, "grammar")
        check_multiples(schema, "grammar")


def _compiled(
    readings: Sequence[dict[str, Any]],
    vocabulary: Vocabulary,
    thought: Thought | None,
    stopped: Callable[[], bool],
    field: str,
) -> Grammar:
    """The first of several readings of an answer's grammar, in llguidance's form, that has a document."""
    matchers, outer = Matchers.of(vocabulary), _outer(vocabulary, thought)
    for reading in readings:
        try:
            parts = [{"lark_grammar": outer}, {"name": "answer", **reading}]
            text = json.dumps({"grammars": [_in_symbols(matchers, part) for part in parts]})
            symbols = matchers.matcher(text)
            work = Effort(COMPILE_STEPS, stopped=stopped)
            document = completion(matchers, symbols, work)
            cost = price(matchers, text) if document is not None else 1
        except UsageError as error:
            raise UsageError(str(error).replace("the grammar", f"the {field}", 1), field) from None
        if document is None:
            continue
        return Grammar(matchers, vocabulary.pad, symbols, tuple(document), cost, field)
    why = "compiling took too long" if stopped() else "no document was found that it accepts"
    words = f" ({short_message(work.said)})" if work.said and not stopped() else ""
    raise UsageError(f"the {field} cannot be used: {why}{words}; make it simpler", field)


def _in_symbols(matchers: Matchers, part: dict[str, Any]) -> dict[str, Any]:
    """A grammar that names tokens by the numbers that `matchers` have for them."""
    lark = part.get("lark_grammar")
    return part if lark is None else {**part, "lark_grammar": matchers.in_symbols(lark)}


def _outer(vocabulary: Vocabulary, thought: Thought | None) -> str:
    """The grammar around the answer's: a thought before it or not, where the vocabulary has its markers.

    `no_forcing`: masks have every token that may follow, not just the one that an encoder would write.
    """
    options = '%llguidance {"no_forcing": true}\n'
    ids = {vocabulary.names[token]: token for token in vocabulary.controls}
    marks = [ids.get(text.encode("utf-8")) for text in (thought.begin, thought.end)] if thought else [None]
    if thought is None or None in marks:
        return options + "start: @answer"
    name = re.escape(thought.name).replace("/", "\\/")
    return f"{options}start: (<[{marks[0]}]> /{name}\\n(.|\\n)*/ <[{marks[1]}]>)? @answer"


__all__ = ["WHITE_SPACE", "Grammar", "GrammarState", "gbnf", "json_schema", "lark"]
