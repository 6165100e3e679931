"""What Anthropic's clients send to /v1/messages, and how it becomes chat messages.

Anthropic's turns are lists of blocks. Text blocks side by side become one text with line breaks between them,
tool results become turns of their own, and turns of one role in a row are one turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ....text.stop import MAX_LENGTH, MAX_STOPS
from ....text.tool_choice import ToolChoice
from ....types import Structure
from ...fields import (
    AnswerSchema,
    Blocks,
    Count,
    Open,
    Temperature,
    TokenByToken,
    Tools,
)
from ...limits import MAX_MESSAGES
from ...problems import Problem, unsupported
from ...structured import format_wish

_CHOICES = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
_THINKING = ("enabled", "adaptive", "disabled", "between_tools")
_IGNORED = "Accepted and ignored, with a warning: a canvas is sampled as a whole."
# Sent by clients with every request; what they wish for with them does not change an answer here.
_HARMLESS = frozenset(
    {"cache_control", "context_management", "speed", "inference_geo", "betas", "user_profile_id"}
)

Turns = list[dict[str, Any]]


class Turn(Open):
    """One turn: text, or blocks of type text, thinking, tool_use, tool_result, and
    document (of plain text)."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class OutputConfig(Open):
    """How the answer is to be."""

    effort: str | None = Field(None, description="Bounds a thought: see reasoning_effort.")
    format: dict[str, Any] | None = Field(
        None, description='{"type": "json_schema", "schema": ...}: the answer is that for sure.'
    )


class Conversation(TokenByToken):
    """POST /v1/messages/count_tokens, and what /v1/messages shares with it."""

    model: str | None = Field(None, description="The model, or one of its adapters; without it the model.")
    messages: list[Turn] = Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    system: str | Blocks | None = Field(None, description="Text, or blocks of type text.")
    tools: Tools | None = Field(
        None, description="Of type custom, which is also the default: name, input_schema."
    )
    tool_choice: dict[str, Any] | None = Field(
        None,
        description='{"type": "auto" | "any" | "tool" | "none"}, for tool with its "name"; with '
        '"disable_parallel_tool_use": true one call at most.',
    )
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = Field(
        None, description="The name that `output_config.format` had before."
    )

    def refuse(self) -> None:
        """Raises Problem for what is understood and cannot be."""
        self.refuse_templates()
        if isinstance(self.thinking, dict) and self.thinking.get("type") not in _THINKING:
            raise unsupported("thinking", f"thinking.type: must be one of {', '.join(_THINKING)}")
        if self.tool_choice is not None and self.tool_choice.get("type") not in _CHOICES:
            raise unsupported("tool_choice", f"tool_choice.type: must be one of {', '.join(_CHOICES)}")
        if self.messages[-1].role == "assistant":
            raise unsupported(
                "messages", "an answer cannot be begun for the model: the last message must be the user's"
            )

    def effort(self) -> str | None:
        asked = self.output_config.effort if self.output_config else None
        return super().effort() if asked is None else asked

    @property
    def names(self) -> dict[str, str]:
        """Our names -> the client's."""
        return {"max_new_tokens": "max_tokens", "stop": "stop_sequences"}

    def calls(self) -> tuple[Sequence[Mapping[str, Any]] | None, ToolChoice | None, bool | None]:
        given = self.tool_choice or {"type": "auto"}
        choice: ToolChoice = _CHOICES[given["type"]]
        if choice == "named":
            choice = {"type": "function", "function": {"name": given.get("name")}}
        return self.functions(), choice, not given.get("disable_parallel_tool_use")

    def wishes(self) -> Iterator[Structure | None]:
        yield from super().wishes()
        yield format_wish(self.output_config.format if self.output_config else None, "output_config.format")
        yield format_wish(self.output_format, "output_format")

    @property
    def shows_thinking(self) -> bool:
        """Whether thoughts are part of the answer."""
        return not (isinstance(self.thinking, dict) and self.thinking.get("display") == "omitted")

    def functions(self) -> list[dict[str, Any]] | None:
        """The tools as chat templates have them. Raises Problem for kinds that Anthropic runs itself."""
        if not self.tools or (self.tool_choice or {}).get("type") == "none":
            return None
        return [_function(tool, f"tools.{i}") for i, tool in enumerate(self.tools)]

    def turns(self) -> Turns:
        """The conversation as chat messages. Raises Problem naming a block that cannot be read."""
        turns: Turns = []
        if self.system is not None:
            _put(turns, "system", _joined(_blocks(self.system), "system"))
        for i, turn in enumerate(self.messages):
            add = _add_assistant if turn.role == "assistant" else _add_other
            add(turns, turn.role, _blocks(turn.content), f"messages.{i}.content")
        _name_results(turns)
        _join_texts(turns)
        return turns


class MessagesRequest(Conversation):
    """POST /v1/messages"""

    max_tokens: Count
    stream: bool | None = None
    temperature: Temperature | None = None
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]],
            Field(fail_fast=True, max_length=MAX_STOPS),
        ]
        | None
    ) = None
    metadata: dict[str, Any] | None = Field(None, description="Accepted and ignored.")

    def params(self) -> dict[str, Any]:
        """Fields of `Params`."""
        given = {
            **self.sampling(),
            "temperature": self.temperature,
            "max_new_tokens": self.max_tokens,
        }
        return {name: value for name, value in given.items() if value is not None}

    def ignored(self) -> list[dict[str, str]]:
        return [told for told in super().ignored() if told["param"] not in _HARMLESS]


def _blocks(content: str | Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _put(turns: Turns, role: str, text: str) -> dict[str, Any]:
    """The turn that a text belongs to: the last one if it is of the same role. Its
    texts are a list until `_join_texts`."""
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"].append(text)
    else:
        turns.append({"role": role, "content": [text]})
    return turns[-1]


def _join_texts(turns: Turns) -> None:
    """Makes one text of what `_put` gathered: once, since thousands of turns may have become one."""
    for turn in turns:
        for name in ("content", "reasoning_content"):
            if isinstance(turn.get(name), list):
                turn[name] = "\n".join(filter(None, turn[name]))


def _add_other(turns: Turns, role: str, blocks: Sequence[dict[str, Any]], place: str) -> None:
    """A user's turn: results of tools first, since they belong to the calls before them."""
    texts: list[str] = []
    for i, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            turns.append(_result(block, f"{place}.{i}"))
        else:
            texts.append(_text(block, f"{place}.{i}"))
    if texts or not blocks:
        _put(turns, role, "\n".join(texts))


def _result(block: dict[str, Any], place: str) -> dict[str, Any]:
    content = block.get("content")
    if content is not None and not isinstance(content, str | list):
        raise _bad(place, "content must be a string or a list of blocks")
    text = "" if content is None else _joined(_blocks(content), f"{place}.content")
    if block.get("is_error") and not text.lower().startswith("error"):
        text = f"Error: {text}"
    return {"role": "tool", "content": text, "tool_call_id": _string(block, "tool_use_id", place)}


def _name_results(turns: Turns) -> None:
    """Says which function a result is of: clients give the call's id only, and some
    templates look at the name."""
    calls = {call["id"]: call["function"]["name"] for turn in turns for call in turn.get("tool_calls", ())}
    for turn in turns:
        if turn["role"] == "tool" and turn["tool_call_id"] in calls:
            turn["name"] = calls[turn["tool_call_id"]]


def _add_assistant(turns: Turns, role: str, blocks: Sequence[dict[str, Any]], place: str) -> None:
    """An earlier answer. Its thoughts go along: templates show them where the model expects them."""
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        at, kind = f"{place}.{i}", block.get("type")
        if kind == "thinking":
            thoughts.append(_string(block, "thinking", at))
        elif kind == "tool_use":
            calls.append(_call(block, at))
        elif kind != "redacted_thinking":
            texts.append(_text(block, at))
    turn = _put(turns, role, "\n".join(texts))
    if thoughts:
        turn.setdefault("reasoning_content", []).extend(thoughts)
    if calls:
        turn.setdefault("tool_calls", []).extend(calls)


def _call(block: dict[str, Any], place: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise _bad(place, "input must be an object")
    function = {"name": _string(block, "name", place), "arguments": arguments}
    return {"id": _string(block, "id", place), "type": "function", "function": function}


def _joined(blocks: Sequence[Any], place: str) -> str:
    return "\n".join(_text(block, f"{place}.{i}") for i, block in enumerate(blocks))


def _text(block: Any, place: str) -> str:
    """The text of a block that has one."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return _string(block, "text", place)
    if (
        kind == "document"
        and isinstance(source := block.get("source"), dict)
        and source.get("type") == "text"
    ):
        return _string(source, "data", f"{place}.source")
    if kind == "image":
        raise _bad(place, "images are not supported yet: send text only")
    raise _bad(place, f"blocks of type {str(kind)[:40]!r} are not supported here: send text only")


def _string(block: dict[str, Any], key: str, place: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise _bad(place, f"{key} must be a string")
    return value


def _function(tool: dict[str, Any], place: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise _bad(
            place,
            f"tools of type {str(tool.get('type'))[:40]!r} are not run here: declare your own, type custom",
        )
    function: dict[str, Any] = {"name": _string(tool, "name", place)}
    if tool.get("description") is not None:
        function["description"] = _string(tool, "description", place)
    if tool.get("strict") is not None:
        function["strict"] = bool(tool["strict"])
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise _bad(place, "input_schema must be an object")
    return {"type": "function", "function": {**function, "parameters": schema}}


def _bad(place: str, message: str) -> Problem:
    return Problem(400, f"{place}: {message}", param=place, code="invalid_value")


class MessageObject(AnswerSchema):
    """An answer that is not streamed: `content` holds blocks of type thinking, text and tool_use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ]
    stop_sequence: str | None
    usage: dict[str, Any]
    seed: int = Field(description="The same request with it gives the same answer.")
    timings: dict[str, Any]
    warnings: list[dict[str, str]] | None = None


class TokenCount(BaseModel):
    """Tokens of a prompt as the model gets it: template, tools and all."""

    input_tokens: int


class AnthropicDetail(BaseModel):
    """What went wrong; the message names the field at fault."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """Every error, also inside a stream."""

    type: Literal["error"]
    error: AnthropicDetail


__all__ = [
    "AnthropicDetail",
    "AnthropicError",
    "Conversation",
    "MessageObject",
    "MessagesRequest",
    "OutputConfig",
    "TokenCount",
    "Turn",
    "Turns",
]
