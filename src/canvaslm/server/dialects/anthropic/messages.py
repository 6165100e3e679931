"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's interface.

A stream's events come in the order its clients build a message from: message_start, ping; for each block
content_block_start, content_block_delta ..., content_block_stop; message_delta with the reason and the usage,
message_stop. Blocks never interleave.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ....types import Finished, ToolCall
from ...bodies import BodyRoute
from ...choices import ChoiceEvent, count_tokens, finish_details, timings
from ...problems import Problem
from ...responses import errors, streamed
from ...sending import JsonAnswer, Stream, sse, unless_gone, wording_errors
from ...service import Answers, GenerationRequest, Ready, Service
from .schema import AnthropicError, Conversation, MessageObject, MessagesRequest, TokenCount

router = APIRouter(route_class=BodyRoute, tags=["Anthropic"])
ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 421, 429, 500, 503, model=AnthropicError)
PING = sse({"type": "ping"}, "ping")
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
Event = tuple[str, dict[str, Any]]


@router.post("/v1/messages", responses={200: streamed(MessageObject), **ERRORS})
async def messages(body: MessagesRequest, http: Request, service: Ready) -> Response:
    """An answer to a conversation: whole, or as named events. Any anthropic-version is accepted."""
    body.refuse()
    answers = await service.start(await service.work(generation_request, body))
    report = MessageWriter(body, answers, service)
    headers = {"request-id": f"req_{secrets.token_hex(12)}"}
    if body.stream:
        chunks = wording_errors(report.stream(), word_error)
        return Stream(chunks, answers.close, limits=service.limits, pulse=PING, headers=headers)
    return JsonAnswer(await unless_gone(http, report.whole()), headers=headers)


@router.post("/v1/messages/count_tokens", responses=ERRORS)
async def count(body: Conversation, service: Ready) -> TokenCount:
    """Tokens of a prompt, without answering it."""
    body.refuse()
    (tokens,) = await service.encode(await service.work(_prompt, body))
    return TokenCount(input_tokens=len(tokens))


def _prompt(body: Conversation) -> GenerationRequest:
    return GenerationRequest(
        messages=body.turns(),
        tools=body.functions(),
        thinking=body.thinks(),
        names=body.names,
        model=body.model,
        lora=body.loras(),
    )


def generation_request(body: MessagesRequest) -> GenerationRequest:
    """What the client wants, in our words."""
    return replace(
        _prompt(body),
        params=body.params(),
        preset=body.preset,
        stop=body.stop_sequences,
        rules=body.rules(),
        structure=body.structure(),
        no_calls=body.tool_choice is not None and body.tool_choice.get("type") == "none",
    )


def envelope(problem: Problem) -> dict[str, Any]:
    """An error as Anthropic words it. Agents shorten the conversation when they read of a
    prompt that is too long."""
    message = str(problem)
    if problem.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"
    kind = _TYPES.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def word_error(problem: Problem) -> bytes:
    """An error in the middle of a stream."""
    return sse(envelope(problem), "error")


class MessageWriter:
    """Words one answer. The whole one is what the events add up to."""

    def __init__(self, body: MessagesRequest, answers: Answers, service: Service) -> None:
        self._answers = answers
        self._blocks = Blocks(thoughts=body.shows_thinking)
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": answers.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": len(answers.requests[0].tokens), "output_tokens": 0},
            "seed": answers.seed,
        }
        self._warnings = body.ignored()
        self._message |= answers.warnings(self._warnings)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        ending: dict[str, Any] = {}
        async for piece in self._answers:
            for _ in self._blocks.take(piece):
                pass
            if isinstance(piece.event, Finished):
                ending = self._ending(piece.event)
        delta = ending.pop("delta")
        told = self._answers.warnings(self._warnings)
        return {**self._message, "content": self._blocks.done, **delta, **ending, **told}

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer as events."""
        yield _event("message_start", {"message": self._message})
        yield PING
        async for piece in self._answers:
            for name, data in self._blocks.take(piece):
                yield _event(name, data)
            if isinstance(piece.event, Finished):
                yield _event("message_delta", self._ending(piece.event))
        yield _event("message_stop", {})

    def _ending(self, end: Finished) -> dict[str, Any]:
        tokens = count_tokens([end], 1)
        return {
            "delta": self._why(end),
            "usage": {
                "input_tokens": tokens.prompt - tokens.cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": tokens.cached,
                "output_tokens": tokens.answer,
                "output_tokens_details": {"thinking_tokens": tokens.reasoning},
            },
            "timings": timings([end]),
            **finish_details(end),
            **self._answers.warnings(()),
        }

    def _why(self, end: Finished) -> dict[str, Any]:
        """Why the answer ended. Cut with fewer tokens than were asked for, it had filled the context."""
        stop = self._answers.stop_string()
        wanted = self._answers.requests[0].params.max_new_tokens
        reason = "end_turn"
        if stop is not None:
            reason = "stop_sequence"
        elif end.reason == "tool_calls":
            reason = "tool_use"
        elif end.reason == "length":
            stops = self._answers.requests[0].params.stop_on_repetition
            stuck = stops and any(note.kind == "repetition" for note in end.notes)
            full = end.usage.completion_tokens < wanted and not stuck
            reason = "model_context_window_exceeded" if full else "max_tokens"
        return {"stop_reason": reason, "stop_sequence": stop}


class Blocks:
    """The content blocks: one open at a time, thinking or text; tool calls come whole."""

    def __init__(self, *, thoughts: bool = True) -> None:
        self.done: list[dict[str, Any]] = []
        self._thoughts = thoughts
        self._open: dict[str, Any] | None = None

    def take(self, piece: ChoiceEvent) -> Iterator[Event]:
        """The events that a piece becomes."""
        if piece.thinking and self._thoughts:
            yield from self._write("thinking", piece.thinking)
        if piece.text:
            yield from self._write("text", piece.text)
        for call in piece.tool_calls:
            yield from self._close()
            yield from self._call(call)
        if isinstance(piece.event, Finished):
            yield from self._close()

    def _write(self, kind: str, text: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            # Nobody signs thoughts here; clients' types want the field all the same.
            self._open = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            yield self._start(self._open)
        self._open[kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _call(self, call: ToolCall) -> Iterator[Event]:
        block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": call.name, "input": {}}
        yield self._start(block)
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        yield self._delta({"type": "input_json_delta", "partial_json": arguments})
        self._open = {**block, "input": call.arguments}
        yield from self._close()

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if self._open["type"] == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield "content_block_stop", {"index": len(self.done)}
        self.done.append(self._open)
        self._open = None

    def _start(self, block: dict[str, Any]) -> Event:
        return "content_block_start", {"index": len(self.done), "content_block": dict(block)}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return "content_block_delta", {"index": len(self.done), "delta": delta}


def _event(name: str, data: dict[str, Any]) -> bytes:
    return sse({"type": name, **data}, name)


__all__ = ["PING", "Blocks", "MessageWriter", "envelope", "generation_request", "router", "word_error"]
