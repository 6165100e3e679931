"""Chat messages and tools, checked and brought to the plain form that chat templates expect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..types import Message, Messages, ToolCall

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_ALIASES = {"model": "assistant", "function": "tool"}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_THOUGHT = re.compile(r"<\|channel>.*?(?:<channel\|>|\Z)", re.DOTALL)


def plain_messages(messages: Messages, *, keep_parts: bool = False) -> list[dict[str, Any]]:
    """Messages as dicts of plain data: `role`, `content`, and where given `tool_calls`, `tool_call_id`,
    `name`, `reasoning_content`.

    A string is one user message. `content` may be a list of text parts; it stays a list (outside system
    messages) when `keep_parts`, for templates that read lists. Thoughts are taken out of earlier answers.
    Tool calls and results without ids get matching ones. Raises UsageError (param `messages`).
    """
    if isinstance(messages, str):
        messages = [Message("user", messages)]
    if not isinstance(messages, Sequence) or not messages:
        raise _refused("must be a string or a list with at least one message")
    plain = [_message(_as_mapping(m), keep_parts) for m in messages]
    _match_results(plain)
    return plain


def _refused(text: str) -> UsageError:
    return UsageError(f"messages: {text}", param="messages")


def _message(given: Mapping[str, Any], keep_parts: bool) -> dict[str, Any]:
    role = given.get("role")
    role = _ALIASES.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in ROLES:
        raise _refused(f"role {str(role)[:40]!r} is unknown; roles are {', '.join(sorted(ROLES))}")
    content = _content(given.get("content"), keep_parts and role not in ("system", "developer"))
    plain: dict[str, Any] = {
        "role": role,
        "content": _without_thoughts(content) if role == "assistant" else content,
    }
    for key in ("name", "tool_call_id", "reasoning", "reasoning_content"):
        if given.get(key) is not None:
            plain[key] = _string(given[key], key)
    if given.get("tool_calls"):
        plain["tool_calls"] = _tool_calls(given["tool_calls"])
    return plain


def _as_mapping(message: Any) -> Mapping[str, Any]:
    if isinstance(message, Message):
        return vars(message)
    if isinstance(message, Mapping):
        return message
    raise _refused(f"each is a Message or an object with 'role' and 'content', not {type(message).__name__}")


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _refused(f"'{key}' must be a string, not {type(value).__name__}")
    return value


def _content(content: Any, keep_parts: bool) -> str | list[dict[str, str]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise _refused(f"'content' must be a string or a list of parts, not {type(content).__name__}")
    parts = [_part(part) for part in content]
    return [{"type": "text", "text": text} for text in parts] if keep_parts else "".join(parts)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _TEXT_PARTS:
        raise _refused(f"content parts of type {str(kind)[:40]!r} are not supported yet, only text")
    return _string(part.get("text"), "text")


def _without_thoughts(content: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
    """History keeps final answers only; Gemma's own template drops the channels in the same way."""
    if isinstance(content, str):
        return _THOUGHT.sub("", content) if "<|channel>" in content else content
    return [{"type": "text", "text": _THOUGHT.sub("", part["text"])} for part in content]


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise _refused("'tool_calls' must be a list")
    return [_tool_call(call) for call in calls]


def _tool_call(call: Any) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = {"function": {"name": call.name, "arguments": call.arguments}}
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _refused("each tool call has a 'function' with a 'name'")
    plain: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        plain["id"] = _string(call["id"], "id")
    plain["function"] = {"name": function["name"], "arguments": _arguments(function.get("arguments"))}
    return plain


def _arguments(arguments: Any) -> dict[str, Any]:
    """Clients of the OpenAI dialect send arguments as JSON text; templates want the object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise _refused("the arguments of a tool call are not valid JSON") from None
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise _refused("the arguments of a tool call must be an object")
    return dict(arguments)


def _match_results(messages: Sequence[dict[str, Any]]) -> None:
    """Gives calls without an id one, and each result without an id that of the next call it can belong to."""
    open_calls: list[dict[str, Any]] = []
    number = 0
    for message in messages:
        if message["role"] == "tool":
            _match_result(message, open_calls)
            continue
        open_calls = list(message.get("tool_calls", ())) if message["role"] == "assistant" else []
        for call in open_calls:
            call.setdefault("id", f"call_{number}")
            number += 1


def _match_result(result: dict[str, Any], open_calls: list[dict[str, Any]]) -> None:
    wanted = result.get("tool_call_id")
    for call in open_calls:
        same_name = result.get("name") in (None, call["function"]["name"])
        if call["id"] == wanted or (wanted is None and same_name):
            result["tool_call_id"] = call["id"]
            open_calls.remove(call)
            return


def plain_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tool declarations as `{"type": "function", "function": {...}}`; bare functions are wrapped.

    None where there are none. Raises UsageError (param `tools`).
    """
    if not tools:
        return None
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise UsageError("tools must be a list of function declarations", param="tools")
    return [_tool(tool) for tool in tools]


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError("each tool has a 'function' with a 'name'", param="tools")
    return {"type": "function", "function": {"description": "", **function}}


__all__ = ["ROLES", "plain_messages", "plain_tools"]
