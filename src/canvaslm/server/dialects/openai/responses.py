"""POST /v1/responses: the stateless part of OpenAI's newer interface, with its typed events."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ....types import Finished
from ...bodies import BodyRoute
from ...choices import ChoiceEvent, count_tokens, finish_details, timings
from ...problems import Problem
from ...responses import ERRORS, streamed
from ...sending import JsonAnswer, Stream, sse, unless_gone, wording_errors
from ...service import Answers, GenerationRequest, Ready, Service
from .responses_schema import ResponseObject, ResponsesRequest

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])


@router.post("/v1/responses", responses={200: streamed(ResponseObject), **ERRORS})
async def responses(body: ResponsesRequest, http: Request, service: Ready) -> Response:
    """An answer to a text or a conversation: whole, or as typed events. Nothing is stored."""
    body.refuse()
    answers = await service.start(await service.work(generation_request, body))
    report = ResponseWriter(body, answers, service)
    if body.stream:
        return Stream(
            wording_errors(report.stream(), report.word_error), answers.close, limits=service.limits
        )
    return JsonAnswer(await unless_gone(http, report.whole()))


def generation_request(body: ResponsesRequest) -> GenerationRequest:
    """What the client wants, in our words."""
    return GenerationRequest(
        messages=body.turns(),
        tools=body.functions(),
        thinking=body.thinks(),
        params=body.params(),
        preset=body.preset,
        rules=body.rules(),
        structure=body.structure(),
        model=body.model,
        lora=body.loras(),
        no_calls=body.tool_choice == "none",
        names=body.names,
    )


class ResponseWriter:
    """Words one answer. The whole one is what the events add up to."""

    def __init__(self, body: ResponsesRequest, answers: Answers, service: Service) -> None:
        self._answers = answers
        self._number = 0
        self._items = Items()
        params = answers.requests[0].params
        self._response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": service.now(),
            "model": answers.model,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": params.max_new_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p if params.decoding == "causal" else None,
            "tools": body.tools or [],
            "tool_choice": body.tool_choice or "auto",
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "metadata": {},
            "output": [],
            "usage": None,
            "seed": answers.seed,
            "system_fingerprint": service.fingerprint_of(answers),
        }
        self._warnings = body.ignored()
        self._response |= answers.warnings(self._warnings)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        async for piece in self._answers:
            for _ in self._items.take(piece):
                pass
            if isinstance(piece.event, Finished):
                self._finish(piece.event)
        return self._response

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer as events."""
        yield self._event("response.created", {"response": self._response})
        yield self._event("response.in_progress", {"response": self._response})
        async for piece in self._answers:
            for name, data in self._items.take(piece):
                yield self._event(name, data)
            if isinstance(piece.event, Finished):
                self._finish(piece.event)
        yield self._event(f"response.{self._response['status']}", {"response": self._response})

    def word_error(self, problem: Problem) -> bytes:
        """An error in the middle of the stream."""
        code = str(problem.code or problem.type)
        return self._event("error", {"message": str(problem), "code": code, "param": problem.param})

    def _event(self, name: str, data: dict[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        return sse({"type": name, "sequence_number": number, **data}, name)

    def _finish(self, end: Finished) -> None:
        tokens = count_tokens([end], 1)
        cut = end.reason == "length"
        self._response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items.done,
            "usage": {
                "input_tokens": tokens.prompt,
                "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
                "output_tokens": tokens.answer,
                "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
                "total_tokens": tokens.prompt + tokens.answer,
            },
            "timings": timings([end]),
            **finish_details(end),
            **self._answers.warnings(self._warnings),
        }


Event = tuple[str, dict[str, Any]]


class Items:
    """The output items: one open at a time, reasoning or a message; function calls come whole."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text = ""

    def take(self, piece: ChoiceEvent) -> Iterator[Event]:
        """The events that a piece becomes."""
        if piece.thinking:
            yield from self._write("reasoning", piece.thinking)
        if piece.text:
            yield from self._write("message", piece.text)
        for call in piece.tool_calls:
            yield from self._close("completed")
            yield from self._call(call.name, json.dumps(call.arguments, ensure_ascii=False))
        if isinstance(piece.event, Finished):
            yield from self._close("incomplete" if piece.event.reason == "length" else "completed")

    def _write(self, kind: str, text: str) -> Iterator[Event]:
        if self._open is None or self._open["type"] != kind:
            yield from self._close("completed")
            yield from self._begin(kind)
        assert self._open is not None
        self._text += text
        name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
        more: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        yield name, {**self._place(self._open), "content_index": 0, "delta": text, **more}

    def _begin(self, kind: str) -> Iterator[Event]:
        item: dict[str, Any] = {"type": kind, "status": "in_progress"}
        if kind == "reasoning":
            item |= {"id": f"rs_{secrets.token_hex(12)}", "summary": [], "content": []}
        else:
            item |= {"id": f"msg_{secrets.token_hex(12)}", "role": "assistant", "content": []}
        self._open, self._text = item, ""
        yield "response.output_item.added", {"output_index": len(self.done), "item": dict(item)}
        yield "response.content_part.added", {**self._place(item), "content_index": 0, "part": self._part("")}

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        item, part = self._open, self._part(self._text)
        item |= {"status": status, "content": [part]}
        place = {**self._place(item), "content_index": 0}
        if item["type"] == "reasoning":
            yield "response.reasoning_text.done", {**place, "text": self._text}
        else:
            yield "response.output_text.done", {**place, "text": self._text, "logprobs": []}
        yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": len(self.done), "item": item}
        self.done.append(item)
        self._open = None

    def _call(self, name: str, arguments: str) -> Iterator[Event]:
        index = len(self.done)
        item: dict[str, Any] = {
            "type": "function_call",
            "id": f"fc_{secrets.token_hex(12)}",
            "call_id": f"call_{secrets.token_hex(8)}",
            "name": name,
            "arguments": "",
            "status": "in_progress",
        }
        place = {"item_id": item["id"], "output_index": index}
        yield "response.output_item.added", {"output_index": index, "item": dict(item)}
        yield "response.function_call_arguments.delta", {**place, "delta": arguments}
        yield "response.function_call_arguments.done", {**place, "arguments": arguments, "name": name}
        item |= {"arguments": arguments, "status": "completed"}
        self.done.append(item)
        yield "response.output_item.done", {"output_index": index, "item": item}

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self.done)}

    def _part(self, text: str) -> dict[str, Any]:
        assert self._open is not None
        if self._open["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


__all__ = ["Items", "ResponseWriter", "router"]
