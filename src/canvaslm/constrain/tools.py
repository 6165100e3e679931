"""Tool calls by construction: whether an answer calls a tool, which one, and with what arguments.

    thought? text? call+        required; one call where they may not be parallel
    thought? text? call         of one tool, named
    thought? text? call*        auto, where arguments are to be strict or calls not parallel

A call is Gemma 4's, `<|tool_call>call:name{key:value}<tool_call|>`; its arguments follow the tool's schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .answers import Thought, with_thought
from .automaton import TooLarge
from .expression import ANY_TEXT, Expression, choice, marker, repeat, sequence
from .notation import call_notation
from .regular import Regular, marker_symbols, regular
from .schema import Unsupported, compile_schema
from .vocabulary import Vocabulary

_NAME = re.compile(r"[^\s{}\"<>]{1,256}")  # what reads as a name in a call


@dataclass(frozen=True)
class CallMarks:
    """The control tokens of a call, by their texts: around it, and around its strings."""

    begin: str
    end: str
    quote: str


@dataclass(frozen=True)
class CallableTool:
    """A tool by its name, the schema of its arguments, and whether they have to follow it in any case."""

    name: str
    schema: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True)
class CallRules:
    """`named`: the one tool to call; otherwise `required` says whether there has to be a call at all."""

    tools: tuple[CallableTool, ...]
    required: bool = False
    named: str | None = None
    parallel: bool = True

    def chosen(self) -> tuple[CallableTool, ...]:
        """The tools that may be called. Raises UsageError where there are none, or none of this name."""
        if not self.tools:
            raise UsageError("a call is asked for and there are no tools: give some", "tool_choice")
        found = tuple(tool for tool in self.tools if self.named in (None, tool.name))
        if not found:
            known = ", ".join(tool.name for tool in self.tools)[:200]
            raise UsageError(f"there is no tool {self.named!r:.100}: there are {known}", "tool_choice")
        return found


@dataclass(frozen=True, eq=False)
class ToolCalls(Regular):
    """A constraint on calls; `free` names the tools whose arguments it leaves free."""

    free: tuple[str, ...] = ()


def calling(
    rules: CallRules, vocabulary: Vocabulary, marks: CallMarks, *, thought: Thought | None = None
) -> ToolCalls:
    """Answers that call tools as the rules want.

    Where no call is required, arguments of a tool that is not strict are free if its schema is beyond an
    automaton, or all of them together are. Raises UsageError, on `tools` or `tool_choice`, for what cannot be
    guaranteed.
    """
    begin, end, quote = marker_symbols(vocabulary, (marks.begin, marks.end, marks.quote), "tools")
    must, chosen = rules.required or rules.named is not None, rules.chosen()

    loose = [not must and not tool.strict for tool in chosen]
    bound = [
        _bound(tool, quote, index, loose=free)
        for index, (tool, free) in enumerate(zip(chosen, loose, strict=True))
    ]

    def compiled(bodies: Sequence[Expression | None]) -> ToolCalls:
        """None: a tool whose arguments are free."""
        free = [tool.name for tool, body in zip(chosen, bodies, strict=True) if body is None]
        written = [
            _body(tool, quote, index, free=True) if body is None else body
            for index, (tool, body) in enumerate(zip(chosen, bodies, strict=True))
        ]
        call = sequence(marker(begin), "call:", choice(*written), marker(end))
        most = 1 if rules.named is not None or not rules.parallel else None
        answer = sequence(ANY_TEXT, repeat(call, int(must), most))
        found = with_thought(answer, vocabulary, thought)
        made = regular(found, vocabulary, "tools")
        return ToolCalls(made.steps, made.edits, free=tuple(free))

    without = [None if free else body for body, free in zip(bound, loose, strict=True)]
    try:
        return compiled(bound)
    except TooLarge:
        if all(one is other for one, other in zip(without, bound, strict=True)):
            raise
        return compiled(without)


def _bound(tool: CallableTool, quote: int, index: int, *, loose: bool) -> Expression | None:
    """A tool with arguments of its schema; None where that is beyond an automaton and they may be free."""
    try:
        return _body(tool, quote, index, free=False)
    except Unsupported:
        if loose:
            return None
        raise


def _body(tool: CallableTool, quote: int, index: int, *, free: bool) -> Expression:
    """A tool's name and its arguments."""
    if not _NAME.fullmatch(tool.name):
        raise UsageError(
            f"the name {tool.name!r:.100} cannot be called: no spaces, quotes, braces and < >, 256 at most",
            f"tools.{index}",
        )
    schema = {"type": "object"} if free else object_schema(tool, index)
    return sequence(tool.name, compile_schema(schema, call_notation(quote), f"tools.{index}"))


def object_schema(tool: CallableTool, index: int) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object. Raises UsageError for one of anything else."""
    schema = {"type": "object", **tool.schema}
    if schema["type"] != "object":
        raise UsageError(f"the arguments of {tool.name!r:.100} must be an object", f"tools.{index}")
    return schema


def read_rules(source: str) -> CallRules:
    """From the JSON of a `Structure` of kind tools, which has the fields of `CallRules`."""
    given = json.loads(source)
    tools = tuple(CallableTool(**tool) for tool in given.pop("tools"))
    return CallRules(tools, **given)


__all__ = ["CallMarks", "CallRules", "CallableTool", "ToolCalls", "calling", "object_schema", "read_rules"]
