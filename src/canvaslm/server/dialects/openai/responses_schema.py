"""What OpenAI's clients send to /v1/responses, and how it becomes chat messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ....text.tool_choice import ToolChoice
from ....types import Structure
from ...fields import (
    AnswerSchema,
    Count,
    Effort,
    Open,
    Temperature,
    Tools,
    Truncated,
)
from ...limits import MAX_MESSAGES
from ...problems import Problem, unsupported
from ...structured import format_wish


class Reasoning(Open):
    """Whether to think."""

    effort: Effort | None = None
    summary: str | None = None


class TextOptions(Open):
    """How the answer is to look."""

    format: dict[str, Any] | None = Field(
        None,
        description='{"type": "json_schema", "schema": ...} or json_object: the answer is that for sure.',
    )


class ResponsesRequest(Truncated):
    """POST /v1/responses: stateless, so that `input` holds the whole conversation."""

    model: str | None = None
    input: str | Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_MESSAGES)] = Field(
        description="A text, or items: messages, function calls, their outputs."
    )
    instructions: str | None = Field(None, description="A system message.")
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    stream: bool | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most.")
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    previous_response_id: str | None = Field(None, description="Refused: nothing is stored.")
    conversation: Any = Field(None, description="Refused: nothing is stored.")
    background: bool | None = Field(None, description="Refused if true.")

    @property
    def names(self) -> dict[str, str]:
        """Our names -> the client's."""
        return {"max_new_tokens": "max_output_tokens", "messages": "input"}

    def params(self) -> dict[str, Any]:
        """Fields of `Params`."""
        given = {**self.sampling(), "temperature": self.temperature, "max_new_tokens": self.max_output_tokens}
        return {name: value for name, value in given.items() if value is not None}

    def effort(self) -> str | None:
        asked = self.reasoning.effort if self.reasoning else None
        return super().effort() if asked is None else asked

    def thinks(self) -> bool:
        asked = self.reasoning.effort if self.reasoning else None
        return super().thinks() if asked is None else asked not in ("none", "minimal")

    def refuse(self) -> None:
        """Raises Problem for what is understood and cannot be."""
        self.refuse_templates()
        for name in ("previous_response_id", "conversation"):
            if getattr(self, name) is not None:
                raise unsupported(
                    name, f"{name} is not supported: nothing is stored here; send the whole conversation"
                )
        if self.background:
            raise unsupported("background", "background is not supported: nothing is stored here")

    def calls(self) -> tuple[Sequence[Mapping[str, Any]] | None, ToolChoice | None, bool | None]:
        return self.functions(), self.tool_choice, self.parallel_tool_calls

    def wishes(self) -> Iterator[Structure | None]:
        yield from super().wishes()
        yield format_wish(self.text.format if self.text else None, "text.format")

    def functions(self) -> list[dict[str, Any]] | None:
        """The tools as chat completions have them. Raises Problem for kinds that OpenAI runs itself."""
        if self.tool_choice == "none" or not self.tools:
            return None
        made = []
        for tool in self.tools:
            if tool.get("type") != "function":
                raise unsupported(
                    "tools", f"tools of type {str(tool.get('type'))[:40]!r} are not run here: function only"
                )
            made.append({"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}})
        return made

    def turns(self) -> list[dict[str, Any]]:
        """The conversation as chat messages."""
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        turns: list[dict[str, Any]] = []
        if self.instructions:
            turns.append({"role": "system", "content": self.instructions})
        for item in items:
            _add(item, turns)
        return turns


def _add(item: dict[str, Any], turns: list[dict[str, Any]]) -> None:
    """Adds an item to the turns it follows. Function calls side by side are one turn of the assistant."""
    kind = item.get("type", "message")
    if kind == "message":
        turns.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        if not turns or turns[-1]["role"] != "assistant":
            turns.append({"role": "assistant", "content": None})
        turns[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
    elif kind == "function_call_output":
        turns.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
    elif kind != "reasoning":  # thoughts of earlier answers are not shown to the model again
        raise Problem(
            400, f"items of type {str(kind)[:40]!r} are not supported: text and functions only", param="input"
        )


class ResponseObject(AnswerSchema):
    """The answer: `output` holds items of type reasoning, message and function_call."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None = None
    seed: int
    warnings: list[dict[str, str]] | None = None


__all__ = ["Reasoning", "ResponseObject", "ResponsesRequest", "TextOptions"]
