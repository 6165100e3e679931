"""The constraints by name: answers that match a pattern, are one of some texts, or JSON.

Each may have a thought before it: what stands in that is free, but for markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UsageError
from . import expression
from .expression import ANY_TEXT, Expression, marker, optional, sequence
from .notation import json_notation
from .pattern import parse
from .regular import Regular, marker_symbols, regular
from .schema import compile_schema
from .schema_document import Schema
from .vocabulary import Vocabulary

MAX_CHOICE_BYTES = 65_536


@dataclass(frozen=True)
class Thought:
    """The control tokens that a thought stands between, by their texts, and its name behind the first."""

    begin: str
    end: str
    name: str


def regex(pattern: str, vocabulary: Vocabulary, *, thought: Thought | None = None) -> Regular:
    """Answers that match a pattern as a whole. Raises UsageError for what `pattern` refuses, or limits do."""
    found = with_thought(parse(pattern, "regex"), vocabulary, thought)
    return regular(found, vocabulary, "regex")


def choice(texts: Sequence[str], vocabulary: Vocabulary, *, thought: Thought | None = None) -> Regular:
    """Answers that are one of these texts. Raises UsageError for none, an empty one alone, or too many."""
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UsageError("choice needs one text at least: give the answers to choose from", "choice")
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if size > MAX_CHOICE_BYTES:
        raise UsageError(
            f"the choices have {size} bytes together: {MAX_CHOICE_BYTES} are the most, give fewer", "choice"
        )
    options = expression.choice(*dict.fromkeys(texts))
    return regular(with_thought(options, vocabulary, thought), vocabulary, "choice")


def schema(
    document: str | Schema,
    vocabulary: Vocabulary,
    *,
    thought: Thought | None = None,
    space: str | None = None,
    param: str = "schema",
) -> Regular:
    """Answers that are JSON documents of a schema; `space`: a pattern of the white space between its parts.

    Raises Unsupported and UsageError as `compile_schema` does, TooLarge beyond the limits, all on `param`.
    """
    notation = json_notation(None if space is None else parse(space, "whitespace_pattern"))
    found = compile_schema(document, notation, param)
    return regular(with_thought(found, vocabulary, thought), vocabulary, param)


def any_json(vocabulary: Vocabulary, *, thought: Thought | None = None) -> Regular:
    """Answers that are any JSON object, its brackets nested to a few levels."""
    return schema({"type": "object"}, vocabulary, thought=thought, param="response_format")


def with_thought(answer: Expression, vocabulary: Vocabulary, thought: Thought | None) -> Expression:
    """The answer, a thought before it or not; the answer alone where the vocabulary knows no thoughts."""
    if thought is None or not {thought.begin, thought.end} <= set(vocabulary.markers):
        return answer
    begin, end = marker_symbols(vocabulary, (thought.begin, thought.end))
    before = sequence(marker(begin), f"{thought.name}\n", ANY_TEXT, marker(end))
    return sequence(optional(before), answer)


__all__ = ["MAX_CHOICE_BYTES", "Thought", "any_json", "choice", "regex", "schema", "with_thought"]
