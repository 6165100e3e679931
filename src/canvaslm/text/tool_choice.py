"""Which tools an answer may call, and which it must, as callers say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..types import Structure

ToolChoice = str | Mapping[str, Any]


def forbids_calls(choice: ToolChoice | None) -> bool:
    """Whether no tool may be called. Raises UsageError for a choice that is none."""
    return _wanted(choice) == ("none", None)


def calls_of(
    tools: Sequence[Mapping[str, Any]] | None, choice: ToolChoice | None, parallel: bool | None
) -> Structure | None:
    """What calls have to be; None where the model is free in that.

    `choice`: auto (None), none, required, or the definition or name of one tool, as OpenAI writes them. In
    auto, calls are free unless `parallel` is False, at most one, or a tool says `strict`. Raises UsageError.
    """
    wanted, named = _wanted(choice)
    if wanted == "none":
        return None
    if not tools:
        if wanted != "auto":
            raise UsageError("tool_choice asks for a call, and there are no tools: give some", "tool_choice")
        return None
    callable_tools = [_callable(tool, index) for index, tool in enumerate(tools)]
    if wanted == "auto" and parallel is not False and not any(tool["strict"] for tool in callable_tools):
        return None
    rules = {
        "tools": callable_tools, "required": wanted == "required", "named": named,
        "parallel": parallel is not False,
    }  # fmt: skip
    try:
        return Structure("tools", json.dumps(rules, ensure_ascii=False, allow_nan=False), "tools")
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the tools should be plain JSON: {error}", "tools") from error


def must_call(structure: Structure) -> bool:
    """Whether there has to be a call, not only a right one if there is any."""
    rules = json.loads(structure.source)
    return bool(rules["required"]) or rules["named"] is not None


def _callable(tool: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The name of an OpenAI-style definition, its schema, and whether that holds in any case."""
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError(f"tools.{index}: a tool needs a function with a name", "tools")
    schema = function.get("parameters")
    if not isinstance(schema, Mapping | None):
        raise UsageError(f"tools.{index}: the parameters should be a JSON schema", "tools")
    strict = bool(function.get("strict", tool.get("strict", False)))
    return {"name": function["name"], "schema": dict(schema or {}), "strict": strict}


def _wanted(choice: ToolChoice | None) -> tuple[str, str | None]:
    """(auto, none, required or named, the name)."""
    if choice is None or choice in ("auto", "none", "required"):
        return str(choice or "auto"), None
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if choice.get("type", "function") == "function" and isinstance(name, str):
            return "named", name
    raise UsageError(
        'tool_choice should be "auto", "none", "required" or one tool, as {"type": "function", "function": '
        '{"name": "add"}}',
        "tool_choice",
    )


__all__ = ["ToolChoice", "calls_of", "forbids_calls", "must_call"]
