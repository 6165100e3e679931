"""POST /v1/fim/completions, /v1/edit/completions and /v1/apply/completions: what editors ask for.

Mistral's clients read `message` and `delta`, Inception's `text`: choices have both.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ....text.transcript import ReplyBuilder
from ....types import Finished
from ...bodies import BodyRoute
from ...choices import ChoiceEvent, count_tokens, finish_details, gather, openai_usage, timings
from ...responses import ERRORS, streamed
from ...sending import JsonAnswer, Stream, sse, unless_gone, wording_errors
from ...service import AnyAnswers, GenerationRequest, Ready, Service
from ..openai.chat import DONE, word_error
from .schema import ApplyRequest, EditorAnswer, EditorRequest, EditRequest, FimRequest

router = APIRouter(route_class=BodyRoute, tags=["Editors"])


@router.post("/v1/fim/completions", responses={200: streamed(EditorAnswer), **ERRORS})
async def fill_in_the_middle(body: FimRequest, http: Request, service: Ready) -> Response:
    """What belongs between `prompt` and `suffix`: whole, or as server-sent events."""
    return await _answer(body, http, service)


@router.post("/v1/edit/completions", responses={200: streamed(EditorAnswer), **ERRORS})
async def edit(body: EditRequest, http: Request, service: Ready) -> Response:
    """A part of a file written anew; the rest is given. The answer is the part, in a fence of backticks."""
    return await _answer(body, http, service, "```\n", "\n\n```")


@router.post("/v1/apply/completions", responses={200: streamed(EditorAnswer), **ERRORS})
async def apply(body: ApplyRequest, http: Request, service: Ready) -> Response:
    """Code with a change applied: all of it."""
    return await _answer(body, http, service)


async def _answer(
    body: EditorRequest, http: Request, service: Service, before: str = "", behind: str = ""
) -> Response:
    body.refuse()
    wanted = GenerationRequest(
        params=body.params(),
        preset=body.preset,
        n=body.n or 1,
        stop=body.stop,
        drafts=bool(body.stream and body.diffusing),
        rules=body.rules(),
        structure=body.structure(),
        model=body.model,
        lora=body.loras(),
        names=body.names,
    )
    answers = await service.fill(wanted, await service.work(body.filling))
    words = EditorWriter(body, answers, service, before, behind)
    if body.stream:
        return Stream(wording_errors(words.stream(), word_error), answers.close, limits=service.limits)
    (whole,) = await unless_gone(http, gather(answers, 1))
    return JsonAnswer(words.whole(whole))


class EditorWriter:
    """Words one answer, between two texts that clients cut off."""

    def __init__(
        self, body: EditorRequest, answers: AnyAnswers, service: Service, before: str, behind: str
    ) -> None:
        self._body, self._answers, self._fence = body, answers, (before, behind)
        self._head = {
            "id": f"fim-{secrets.token_hex(12)}",
            "created": service.now(),
            "model": answers.model,
            "system_fingerprint": service.fingerprint_of(answers),
            "seed": answers.seed,
        }

    def whole(self, whole: ReplyBuilder) -> dict[str, Any]:
        """The answer in one piece."""
        text, end = self._fenced(whole.text), whole.finished
        message = {"role": "assistant", "content": text, "tool_calls": None}
        choice = {"index": 0, "message": message, "text": text, "finish_reason": end.reason}
        choice |= finish_details(end)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": openai_usage(count_tokens([end], 1)),
            "timings": timings([end]),
            **self._answers.warnings(self._body.ignored()),
        }

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer in chunks; the last has the reason of its end, and the usage."""
        told = self._answers.warnings(self._body.ignored())
        yield self._chunk("", {"role": "assistant"}, **told)
        async for piece in self._answers:
            text = self._said(piece)
            if text is not None:
                yield self._chunk(text, {})
            if isinstance(piece.event, Finished):
                usage = openai_usage(count_tokens([piece.event], 1))
                yield self._chunk(
                    "", {}, piece.event, usage=usage, timings=timings([piece.event]),
                    **self._answers.warnings(()),
                )  # fmt: skip
        yield DONE

    def _said(self, piece: ChoiceEvent) -> str | None:
        if piece.draft is not None:
            return self._fenced(piece.draft)
        return None if isinstance(piece.event, Finished) else self._fenced(piece.text)

    def _fenced(self, text: str) -> str:
        before, behind = self._fence
        return before + text + behind

    def _chunk(self, text: str, delta: dict[str, Any], end: Finished | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": {**delta, "content": text}, "text": text, "finish_reason": None}
        if end is not None:
            choice |= {"finish_reason": end.reason, **finish_details(end)}
        return sse({**self._head, "object": "chat.completion.chunk", "choices": [choice], **more})


__all__ = ["EditorWriter", "router"]
