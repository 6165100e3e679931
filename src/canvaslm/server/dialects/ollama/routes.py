"""POST /api/generate and /api/chat: Ollama's interface. A stream is lines of JSON, each
of which adds to the text."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from ....text.transcript import ReplyBuilder
from ....types import Finished, TokenLogprob, ToolCall
from ...bodies import BodyRoute
from ...choices import ChoiceEvent, finish_details, gather
from ...logprobs import as_content
from ...problems import Problem
from ...responses import errors
from ...sending import JsonAnswer, Stream, json_bytes, unless_gone, wording_errors
from ...service import AnyAnswers, GenerationRequest, Ready, Service
from .models import named, now
from .schema import (
    ChatLine,
    GenerateLine,
    GenerateRequest,
    OllamaBody,
    OllamaChatRequest,
    OllamaError,
)

router = APIRouter(route_class=BodyRoute, tags=["Ollama"])
ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 421, 429, 500, 503, model=OllamaError)
NDJSON = "application/x-ndjson"
# (text, thinking, calls) -> the part of a line that holds them
Shape = Callable[[str, str, Sequence[dict[str, Any]]], dict[str, Any]]


def _lines(model: type[BaseModel]) -> dict[str, Any]:
    return {
        "model": model,
        "description": "The answer, or with `stream` its lines.",
        "content": {NDJSON: {"schema": {"type": "string"}}},
    }


@router.post("/api/generate", responses={200: _lines(GenerateLine), **ERRORS})
async def generate(body: GenerateRequest, http: Request, service: Ready) -> Response:
    """An answer to one prompt, by default as lines of JSON."""
    body.refuse()
    filling = await service.work(body.filling)
    if filling is not None:
        wanted = await service.work(_wanted, body, service, {})
        return await _worded(body, http, service, await service.fill(wanted, filling), as_response)
    if not body.prompt:
        return JsonAnswer(_loaded(body, service, as_response))
    if body.raw:
        wanted = await service.work(_wanted, body, service, {"prompts": [body.prompt]})
    else:
        prompt = {"messages": body.turns(), "thinking": body.thinks()}
        wanted = await service.work(_wanted, body, service, prompt)
    return await _answer(body, http, service, wanted, as_response)


@router.post("/api/chat", responses={200: _lines(ChatLine), **ERRORS})
async def chat(body: OllamaChatRequest, http: Request, service: Ready) -> Response:
    """An answer to a chat, by default as lines of JSON."""
    body.refuse()
    if not body.messages:
        return JsonAnswer(_loaded(body, service, as_message))
    turns = await service.work(body.turns)
    none = body.tool_choice == "none"
    prompt = {
        "messages": turns, "tools": None if none else body.tools, "thinking": body.thinks(), "no_calls": none,
    }  # fmt: skip
    wanted = await service.work(_wanted, body, service, prompt)
    return await _answer(body, http, service, wanted, as_message)


def _wanted(body: OllamaBody, service: Service, prompt: Mapping[str, Any]) -> GenerationRequest:
    """What the client wants, in our words."""
    options = body.given
    return GenerationRequest(
        **prompt,
        params=body.params(service.session.engine.max_context),
        preset=options.preset,
        stop=options.stop,
        top_logprobs=body.best,
        rules=options.rules(),
        structure=body.structure(),
        model=body.model,
        lora=options.loras(),
        names=body.names,
    )


async def _answer(
    body: OllamaBody, http: Request, service: Service, wanted: GenerationRequest, shape: Shape
) -> Response:
    return await _worded(body, http, service, await service.start(wanted), shape)


async def _worded(
    body: OllamaBody, http: Request, service: Service, answers: AnyAnswers, shape: Shape
) -> Response:
    words = LineWriter(body, answers, service, shape)
    if body.stream is not False:
        chunks = wording_errors(words.stream(), word_error)
        return Stream(chunks, answers.close, limits=service.limits, media_type=NDJSON, pulse=b"")
    (whole,) = await unless_gone(http, gather(answers, len(answers.requests)))
    return JsonAnswer(words.whole(whole))


def envelope(problem: Problem) -> dict[str, Any]:
    """An error as Ollama words it."""
    return {"error": str(problem)}


def word_error(problem: Problem) -> bytes:
    """An error in the middle of a stream."""
    return json_bytes(envelope(problem)) + b"\n"


def as_response(text: str, thinking: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where /api/generate has its text."""
    return {
        "response": text,
        **({"thinking": thinking} if thinking else {}),
        **({"tool_calls": list(calls)} if calls else {}),
    }


def as_message(text: str, thinking: str, calls: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where /api/chat has its text."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = list(calls)
    return {"message": message}


class LineWriter:
    """Words one answer."""

    def __init__(self, body: OllamaBody, answers: AnyAnswers, service: Service, shape: Shape) -> None:
        self._answers, self._shape = answers, shape
        self._model = named(body.model, answers.model)
        self._warnings = body.told()
        self._logprobs = bool(body.logprobs)
        self._calls = 0

    def whole(self, whole: ReplyBuilder) -> dict[str, Any]:
        """The answer in one piece."""
        text = self._shape(whole.text, whole.thinking, self._numbered(whole.tool_calls))
        return {**self._head(), **text, **self._probable(whole.logprobs), **self._ending(whole.finished)}

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer in lines: thoughts, text and calls, each by itself; at last the figures."""
        async for piece in self._answers:
            for part in self._parts(piece):
                yield self._line({**part, "done": False})
            if isinstance(piece.event, Finished):
                yield self._line({**self._shape("", "", ()), **self._ending(piece.event)})

    def _parts(self, piece: ChoiceEvent) -> list[dict[str, Any]]:
        parts = []
        if piece.thinking:
            parts.append(self._shape("", piece.thinking, ()))
        if piece.text or piece.logprobs:
            parts.append({**self._shape(piece.text, "", ()), **self._probable(piece.logprobs)})
        if piece.tool_calls:
            parts.append(self._shape("", "", self._numbered(piece.tool_calls)))
        return parts

    def _line(self, content: dict[str, Any]) -> bytes:
        return json_bytes({**self._head(), **content}) + b"\n"

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": now()}

    def _numbered(self, calls: Iterable[ToolCall]) -> list[dict[str, Any]]:
        made = []
        for call in calls:
            function = {"index": self._calls, "name": call.name, "arguments": call.arguments}
            made.append({"id": f"call_{secrets.token_hex(8)}", "function": function})
            self._calls += 1
        return made

    def _probable(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {"logprobs": as_content(tuple(tokens))["content"]} if self._logprobs and tokens else {}

    def _ending(self, end: Finished) -> dict[str, Any]:
        times = end.timings
        return {
            "done": True,
            "done_reason": "length" if end.reason == "length" else "stop",
            "total_duration": _nanoseconds(times.total),
            "load_duration": 0,
            "prompt_eval_count": end.usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(times.encode),
            "eval_count": end.usage.completion_tokens,
            "eval_duration": _nanoseconds(times.total - times.queued),
            "seed": end.seed,
            **finish_details(end),
            **self._answers.warnings(self._warnings),
        }


def _loaded(body: OllamaBody, service: Service, shape: Shape) -> dict[str, Any]:
    """An empty request loads the model, or drops it; here it is there all the time."""
    return {
        "model": named(body.model, service.adapters.name_of(body.model)),
        "created_at": now(),
        **shape("", "", ()),
        "done": True,
        "done_reason": "unload" if body.unloads else "load",
    }


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


__all__ = [
    "NDJSON",
    "LineWriter",
    "as_message",
    "as_response",
    "envelope",
    "router",
    "word_error",
]
