"""POST /v1/chat/completions"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ....text.transcript import ReplyBuilder
from ....types import Committed, Draft, Finished, TokenLogprob, ToolCall
from ...bodies import BodyRoute
from ...choices import ChoiceEvent, count_tokens, finish_details, gather, openai_usage, timings
from ...diffusion_view import after_canvas, after_step
from ...logprobs import as_content, prompt_tables
from ...problems import Problem, openai_envelope
from ...responses import ERRORS, streamed
from ...sending import JsonAnswer, Stream, sse, unless_gone, wording_errors
from ...service import Answers, GenerationRequest, Ready, Service
from .schema import ChatRequest, Completion

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])
DONE = b"data: [DONE]\n\n"


@router.post("/v1/chat/completions", responses={200: streamed(Completion), **ERRORS})
async def chat_completions(body: ChatRequest, http: Request, service: Ready) -> Response:
    """An answer to a chat: whole, or as server-sent events.

    A stream is append-only unless `diffusing` is set; it ends with `data: [DONE]`, or with an error object.
    """
    body.refuse()
    answers = await service.start(await service.work(generation_request, body))
    chat = ChatWriter(body, answers, service)
    if body.stream:
        chunks = wording_errors(chat.stream(), word_error)
        return Stream(chunks, answers.close, limits=service.limits)
    choices = await unless_gone(http, gather(answers, len(answers.requests)))
    if body.reads is None:
        return JsonAnswer(chat.whole(choices))
    return JsonAnswer(await service.work(chat.whole, choices))  # long prompts take their time


def generation_request(body: ChatRequest) -> GenerationRequest:
    """What the client wants, in our words."""
    return GenerationRequest(
        messages=body.turns(),
        tools=None if body.tool_choice == "none" else body.tools,
        thinking=body.thinks(),
        params=body.params(),
        preset=body.preset,
        n=body.n or 1,
        stop=body.stop,
        drafts=bool(body.stream and (body.diffusing or body.wants_diffusion)),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs or body.doubt else None,
        doubt=bool(body.doubt),
        prompt_logprobs=body.reads,
        prompt_only=body.only_reads,
        rules=body.rules(),
        structure=body.structure(),
        model=body.model,
        lora=body.loras(),
        draft=body.draft(),
        no_calls=body.tool_choice == "none",
        names=body.names,
    )


def word_error(problem: Problem) -> bytes:
    """An error in the middle of a stream."""
    return sse(openai_envelope(problem))


class ChatWriter:
    """Words one answer."""

    def __init__(self, body: ChatRequest, answers: Answers, service: Service) -> None:
        self._body, self._answers = body, answers
        self._tokenizer = service.session.tokenizer
        self._warnings = body.ignored()
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": service.now(),
            "model": answers.model,
            "system_fingerprint": service.fingerprint_of(answers),
            "seed": answers.seed,
        }

    def whole(self, choices: Sequence[ReplyBuilder]) -> dict[str, Any]:
        """The answer in one piece."""
        ends = [choice.finished for choice in choices]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(i, choice) for i, choice in enumerate(choices)],
            "usage": openai_usage(count_tokens(ends, len(ends))),
            "timings": timings(ends),
            **self._read(ends[0]),
            **self._answers.warnings(self._warnings),
        }

    def _read(self, end: Finished) -> dict[str, Any]:
        """What is said of the prompt, if the client wants it."""
        if self._body.prompt_logprobs is None:
            return {}
        tokens, best = self._answers.requests[0].tokens, self._body.prompt_logprobs
        return {"prompt_logprobs": prompt_tables(self._tokenizer, tokens, end.prompt_reads, best)}

    def _choice(self, index: int, choice: ReplyBuilder) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.thinking:
            message |= {"reasoning_content": choice.thinking, "reasoning": choice.thinking}
        if choice.tool_calls:
            message["tool_calls"] = [tool_call(call) for call in choice.tool_calls]
            message["content"] = choice.text or None
        return {
            "index": index, "message": message, "logprobs": self._probable(tuple(choice.logprobs)),
            "finish_reason": choice.finished.reason,
            **finish_details(choice.finished),
        }  # fmt: skip

    def _probable(self, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any] | None:
        wanted = self._body.logprobs or self._body.doubt
        return as_content(tokens, bool(self._body.doubt)) if wanted else None

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer in chunks: roles; reasoning, content and tool calls; why each
        choice ended; usage; `[DONE]`."""
        extra: dict[str, Any] = {"warnings": self._warnings} if self._warnings else {}
        for index in range(len(self._answers.requests)):
            yield self._chunk(index, {"role": "assistant", "content": ""}, **extra)
        wholes = [ReplyBuilder() for _ in self._answers.requests]
        async for piece in self._answers:
            whole = wholes[piece.choice]
            calls_before = len(whole.tool_calls)
            whole.add(piece.event)
            for chunk in self._chunks(piece, whole, calls_before):
                yield chunk
        if self._body.wants_usage:
            usage = openai_usage(count_tokens([w.finished for w in wholes], len(wholes)))
            yield sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield DONE

    def _chunks(self, piece: ChoiceEvent, whole: ReplyBuilder, calls_before: int) -> list[bytes]:
        """The chunks that one piece becomes."""
        made, at = [], piece.choice
        if piece.thinking:
            made.append(self._chunk(at, {"reasoning_content": piece.thinking, "reasoning": piece.thinking}))
        made += self._content(piece, whole)
        for number, call in enumerate(piece.tool_calls, calls_before):
            made.append(self._chunk(at, {"tool_calls": [{"index": number, **tool_call(call)}]}))
        made += self._diffusion(piece)
        if isinstance(piece.event, Finished):
            figures = timings([piece.event])
            told = self._answers.warnings((), at)
            why, more = piece.event.reason, finish_details(piece.event)
            made.append(self._chunk(at, {}, finish_reason=why, details=more, timings=figures, **told))
        return made

    def _content(self, piece: ChoiceEvent, whole: ReplyBuilder) -> list[bytes]:
        """Appended text, or with `diffusing` the whole text so far, which replaces what was there."""
        if self._body.diffusing:
            settled = piece.text or isinstance(piece.event, Committed | Finished)
            text = piece.draft if piece.draft is not None else whole.text if settled else None
        else:
            text = piece.text or None
        if text is None and not piece.logprobs:
            return []
        logprobs = self._probable(piece.logprobs)
        return [self._chunk(piece.choice, {"content": text or ""}, logprobs=logprobs)]

    def _diffusion(self, piece: ChoiceEvent) -> list[bytes]:
        if not self._body.wants_diffusion:
            return []
        if isinstance(piece.event, Draft):
            ends = self._answers.requests[piece.choice].eos_token_ids
            return [self._chunk(piece.choice, {}, diffusion=after_step(piece.event, self._tokenizer, ends))]
        if isinstance(piece.event, Committed):
            return [self._chunk(piece.choice, {}, diffusion=after_canvas(piece.event))]
        return []

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> bytes:
        choice = {
            "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason,
            **(details or {}),
        }  # fmt: skip
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [choice], **extra})


def tool_call(call: ToolCall) -> dict[str, Any]:
    """A call as OpenAI words it: its arguments are JSON text."""
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {
        "id": f"call_{secrets.token_hex(8)}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


__all__ = ["DONE", "ChatWriter", "generation_request", "router", "tool_call", "word_error"]
