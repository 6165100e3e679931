"""What callers want an answer to be: as `Structure`s, and read back from its text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..constrain.answers import Thought
from ..constrain.compiler import Compiler
from ..constrain.tools import CallMarks
from ..constrain.vocabulary import BYTES, Vocabulary
from ..errors import UsageError
from ..options import GenerateOptions
from ..text.tokenizer import Tokenizer
from ..text.tool_choice import calls_of, must_call
from ..text.toolcalls import QUOTE
from ..types import Structure
from .schemas import read_answer, schema_of

KINDS = ("schema", "regex", "choice", "grammar", "bad_words")


def compiler_for(tokenizer: Tokenizer, size: int, ends: Sequence[int], pad: int) -> Compiler:
    """The compiler of constraints for a model with `size` tokens, whose answers end with one of `ends`."""
    markers = tokenizer.markers
    return Compiler(
        lambda: vocabulary_of(tokenizer, size, ends, pad),
        Thought(markers.thought[0], markers.thought[1], markers.thought_name),
        CallMarks(*markers.call, QUOTE),
    )


def vocabulary_of(tokenizer: Tokenizer, size: int, ends: Sequence[int], pad: int) -> Vocabulary:
    """A tokenizer's tokens as constraints see them: control tokens are nothing, but for the markers of
    thoughts and tool calls."""
    texts = (*tokenizer.markers.thought, *tokenizer.markers.call, QUOTE)
    known = {text: token for text in texts if (token := tokenizer.marker_id(text)) is not None}
    markers = {text: BYTES + i for i, text in enumerate(known)}
    symbols = {known[text]: (symbol,) for text, symbol in markers.items()}
    names = [tokenizer.token_bytes(token) for token in range(size)]
    controls = [token for token in range(size) if tokenizer.is_control(token)]
    silent = {*controls, *ends}
    data = [
        symbols.get(token, b"" if token in silent else name) for token, name in enumerate(names)
    ]  # fmt: skip
    return Vocabulary.of(data, controls, names, ends, pad, markers)


def structure_of(options: GenerateOptions) -> Structure | None:
    """What the answer has to be; None: anything. Raises UsageError for two wishes at once, or for none that
    can be understood."""
    asked = [name for name in KINDS if options.get(name) is not None]
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} cannot both hold: give one of them", asked[1])
    calls = calls_of(options.get("tools"), options.get("tool_choice"), options.get("parallel_tool_calls"))
    if not asked:
        return calls
    (name,) = asked
    if calls is not None and must_call(calls):
        raise UsageError(f"{name} and a tool_choice that wants a call cannot both hold", "tool_choice")
    return _MAKERS[name](options.get(name))


def _schema(given: Any) -> Structure:
    try:
        text = json.dumps(schema_of(given), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"schema should be plain JSON: {error}", "schema") from error
    return Structure("schema", text, "schema")


def _choice(given: Any) -> Structure:
    return Structure("choice", _texts(given, "choice"), "choice")


def _bad_words(given: Any) -> Structure:
    return Structure("avoid", _texts(given, "bad_words"), "bad_words")


def _texts(given: Any, name: str) -> str:
    """A list of texts, as JSON."""
    is_list = isinstance(given, Sequence) and not isinstance(given, str)
    if not is_list or not all(isinstance(text, str) for text in given):
        raise UsageError(f'{name} should be a list of texts, as ["yes", "no"]', name)
    return json.dumps(list(given))


def _regex(given: Any) -> Structure:
    return Structure("regex", _text(given, "regex"), "regex")


def _grammar(given: Any) -> Structure:
    return Structure("grammar", _text(given, "grammar"), "grammar")


def _text(given: Any, name: str) -> str:
    if not isinstance(given, str):
        raise UsageError(f"{name} should be a text, found {type(given).__name__}", name)
    return given


_MAKERS: Mapping[str, Callable[[Any], Structure]] = {
    "schema": _schema, "choice": _choice, "regex": _regex, "grammar": _grammar,
    "bad_words": _bad_words,
}  # fmt: skip


def parsed(options: GenerateOptions, text: str) -> Any:
    """What an answer says where a schema was asked for; None where none was, or the answer was cut short."""
    given = options.get("schema")
    return None if given is None else read_answer(given, text)


__all__ = ["compiler_for", "parsed", "structure_of", "vocabulary_of"]
