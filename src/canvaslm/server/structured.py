"""What clients want an answer to be: the fields of vLLM and llama-server, which every dialect takes, and the
formats that OpenAI's and Anthropic's clients name.

One wish a request; two are refused, and so is one that cannot be seen to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..text.tool_choice import ToolChoice, calls_of, must_call
from ..types import Structure, StructureKind
from .problems import Problem, unsupported

MAX_CHOICES, MAX_WORDS = 4096, 256
_ANY_OBJECT = {"type": "object"}
# The keys of vLLM's `structured_outputs`, and of the older fields that begin with `guided_`.
_KINDS: Mapping[str, StructureKind] = {
    "json": "schema", "regex": "regex", "choice": "choice", "grammar": "grammar",
}  # fmt: skip
Choices = Annotated[list[str], Field(fail_fast=True, max_length=MAX_CHOICES)]


class Structured(BaseModel):
    """What the whole answer has to be. One of these at most."""

    model_config = ConfigDict(extra="allow", strict=True)

    structured_outputs: dict[str, Any] | None = Field(
        None,
        description="vLLM's: an object with one of json (a schema), regex, choice, grammar, json_object. "
        "The answer is of that kind for sure.",
    )
    guided_json: dict[str, Any] | str | None = Field(None, description="vLLM's older name of a schema.")
    guided_regex: str | None = Field(None, description="vLLM's older name of a pattern.")
    guided_choice: Choices | None = Field(None, description="vLLM's older name of a list of answers.")
    guided_grammar: str | None = Field(None, description="vLLM's older name of a grammar.")
    json_schema: dict[str, Any] | None = Field(None, description="llama-server's name of a schema.")
    grammar: str | None = Field(None, description="llama-server's: a grammar in GBNF, or in Lark.")

    bad_words: Annotated[list[str], Field(fail_fast=True, max_length=MAX_WORDS)] | None = Field(
        None, description="Texts that the answer does not have, not even within a word."
    )

    def structure(self) -> Structure | None:
        """What the answer has to be; None: anything. Raises Problem for two wishes, and for what is none."""
        asked = [wish for wish in self.wishes() if wish is not None]
        if len(asked) > 1 and asked[0].kind == "tools" and not must_call(asked[0]):
            asked = asked[1:]  # a call that may come, and does not where all of the answer is something else
        if len(asked) > 1:
            raise Problem(
                400,
                f"{asked[0].param} and {asked[1].param} cannot both hold: send one of them",
                param=asked[1].param,
            )
        return asked[0] if asked else None

    def calls(self) -> tuple[Sequence[Mapping[str, Any]] | None, ToolChoice | None, bool | None]:
        """The tools, as OpenAI defines them, which may or must be called, and whether several at once; a
        dialect says."""
        return None, None, None

    def wishes(self) -> Iterator[Structure | None]:
        """All that are there; a dialect adds its own."""
        yield calls_of(*self.calls())
        yield from _of_vllm(self.structured_outputs or {}, "structured_outputs.")
        older = {name: getattr(self, f"guided_{name}") for name in _KINDS}
        yield from _of_vllm(older, "guided_")
        if self.json_schema is not None:
            yield schema_wish(self.json_schema, "json_schema")
        if self.grammar:
            yield Structure("grammar", self.grammar, "grammar")
        if self.bad_words:
            yield Structure("avoid", json.dumps(self.bad_words), "bad_words")


def _of_vllm(given: Mapping[str, Any], prefix: str) -> Iterator[Structure]:
    for name, value in given.items():
        param = f"{prefix}{name[:64]}"
        if value is None or value is False:
            continue
        if name == "json_object":
            yield schema_wish(_ANY_OBJECT, param)
        elif name in _KINDS:
            yield _wish(_KINDS[name], value, param)
        else:
            raise unsupported(param, f"{param} is not supported: one of {', '.join(_KINDS)}, json_object is")


def _wish(kind: StructureKind, value: Any, param: str) -> Structure:
    if kind == "schema":
        return schema_wish(value, param)
    if kind == "choice":
        return _choices(value, param)
    if not isinstance(value, str):
        raise Problem(400, f"{param} should be a text", param=param)
    return Structure(kind, value, param)


def _choices(value: Any, param: str) -> Structure:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value[:MAX_CHOICES]):
        raise Problem(400, f"{param} should be a list of texts", param=param)
    if len(value) > MAX_CHOICES:
        raise Problem(400, f"{param} has {len(value)} texts: at most {MAX_CHOICES}", param=param)
    return Structure("choice", json.dumps(value), param)


def schema_wish(schema: Any, param: str) -> Structure:
    """An answer that is a JSON text of this schema: an object, true or false, or the JSON text of one."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise Problem(400, f"{param} is no JSON: {error}", param=param) from error
    if not isinstance(schema, dict | bool):
        raise Problem(400, f"{param} should be a JSON schema, as an object", param=param)
    return Structure("schema", json.dumps(schema, ensure_ascii=False), param)


def format_wish(given: Mapping[str, Any] | None, param: str) -> Structure | None:
    """OpenAI's `response_format`, the `format` of the Responses API and of Anthropic's `output_config`:
    {"type": "text" | "json_object" | "json_schema", ...}, its schema in an object of its own or beside the
    type. Raises Problem for other types."""
    kind = (given or {}).get("type", "text")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return schema_wish(given.get("schema", _ANY_OBJECT), param)
    if kind != "json_schema":
        raise unsupported(
            param, f"{param}.type {str(kind)[:64]!r} is not supported: text, json_object, json_schema are"
        )
    inner = given.get("json_schema", given)
    if not isinstance(inner, dict) or "schema" not in inner:
        raise Problem(400, f"{param} of type json_schema needs a schema", param=param)
    return schema_wish(inner["schema"], param)


__all__ = ["MAX_CHOICES", "Structured", "format_wish", "schema_wish"]
