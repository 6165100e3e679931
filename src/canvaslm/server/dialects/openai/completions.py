"""POST /v1/completions"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ....text.doubt import mean_causal
from ....text.transcript import ReplyBuilder
from ....types import Committed, Draft, Finished, TokenLogprob
from ...bodies import BodyRoute
from ...choices import ChoiceEvent, count_tokens, finish_details, gather, openai_usage, timings
from ...diffusion_view import after_canvas, after_step
from ...logprobs import as_columns, prompt_columns, prompt_tables
from ...responses import ERRORS, streamed
from ...sending import JsonAnswer, Stream, sse, unless_gone, wording_errors
from ...service import AnyAnswers, GenerationRequest, Ready, Service
from .chat import DONE, word_error
from .schema import Completion, CompletionRequest

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])


@router.post("/v1/completions", responses={200: streamed(Completion), **ERRORS})
async def completions(body: CompletionRequest, http: Request, service: Ready) -> Response:
    """Goes on from texts or token ids, without a chat template: whole, or as server-sent events."""
    body.refuse()
    wanted, filling = await service.work(generation_request, body), await service.work(body.filling)
    answers = await (service.start(wanted) if filling is None else service.fill(wanted, filling))
    words = CompletionWriter(body, answers, service)
    if body.stream:
        return Stream(wording_errors(words.stream(), word_error), answers.close, limits=service.limits)
    choices = await unless_gone(http, gather(answers, len(answers.requests)))
    if body.reads is None and not body.chooses:
        return JsonAnswer(words.whole(choices))
    return JsonAnswer(await service.work(words.whole, choices))  # long prompts take their time


def generation_request(body: CompletionRequest) -> GenerationRequest:
    """What the client wants, in our words."""
    return GenerationRequest(
        prompts=body.prompts(),
        params=body.params(),
        preset=body.preset,
        n=body.candidates,
        stop=body.stop,
        drafts=bool(body.stream and (body.diffusing or body.wants_diffusion)),
        top_logprobs=body.best,
        doubt=bool(body.doubt) or body.chooses,
        prompt_logprobs=body.reads,
        prompt_only=body.only_reads,
        controls=body.echoes_logprobs,
        rules=body.rules(),
        structure=body.structure(),
        model=body.model,
        lora=body.loras(),
        names=body.names,
    )


class CompletionWriter:
    """Words one answer."""

    def __init__(self, body: CompletionRequest, answers: AnyAnswers, service: Service) -> None:
        self._body, self._answers = body, answers
        self._tokenizer = service.session.tokenizer
        self._echoes = self._echoed()
        self._warnings = body.ignored()
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
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
            "choices": [self._whole(i, choice) for i, choice in enumerate(self._chosen(choices))],
            "usage": openai_usage(count_tokens(ends, self._body.candidates)),
            "timings": timings(ends),
            **self._answers.warnings(self._warnings),
        }

    def _chosen(self, choices: Sequence[ReplyBuilder]) -> list[ReplyBuilder]:
        """Of each prompt's answers the n of which the causal reader thinks best, the best first."""
        if not self._body.chooses:
            return list(choices)
        each = self._body.candidates
        groups = [choices[i : i + each] for i in range(0, len(choices), each)]
        ranked = [sorted(group, key=lambda choice: -mean_causal(choice.reads)) for group in groups]
        return [choice for group in ranked for choice in group[: self._body.n or 1]]

    def _whole(self, index: int, choice: ReplyBuilder) -> dict[str, Any]:
        columns = self._columns(tuple(choice.logprobs), len(self._echoes[index]))
        first = index // (self._body.n or 1) * self._body.candidates  # of its prompt's answers
        tokens, reads = self._answers.requests[first].tokens, choice.finished.prompt_reads
        if columns is not None and self._body.echo:
            before = prompt_columns(self._tokenizer, tokens, reads, self._body.logprobs or 0)
            columns = {name: before[name] + columns[name] for name in columns}
        made = self._choice(index, self._echoes[index] + choice.text, choice.finished.reason, columns)
        if self._body.prompt_logprobs is not None:
            tables = prompt_tables(self._tokenizer, tokens, reads, self._body.prompt_logprobs)
            made["prompt_logprobs"] = tables
        return made | finish_details(choice.finished)

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer in chunks; the last with choices of each one says why it ended."""
        wholes = [ReplyBuilder() for _ in self._answers.requests]
        extra: dict[str, Any] = {"warnings": self._warnings} if self._warnings else {}
        for i, echo in enumerate(self._echoes):
            if echo and not self._body.diffusing:
                yield sse({**self._head, "choices": [self._choice(i, echo, None, None)], **extra})
                extra = {}
        async for piece in self._answers:
            whole = wholes[piece.choice]
            before = len(whole.text)
            whole.add(piece.event)
            for chunk in self._chunks(piece, whole, before):
                yield sse({**self._head, **chunk, **_joined(extra, chunk)})
                extra = {}
        if self._body.wants_usage:
            usage = openai_usage(count_tokens([w.finished for w in wholes], self._body.n or 1))
            yield sse({**self._head, "choices": [], "usage": usage})
        yield DONE

    def _echoed(self) -> list[str]:
        """What stands before each choice: its prompt, if the client wants it back."""
        if not self._body.echo:
            return [""] * len(self._answers.requests)
        texts = [p if isinstance(p, str) else self._tokenizer.decode(p) for p in self._body.prompts()]
        return [text for text in texts for _ in range(self._body.n or 1)]

    def _chunks(self, piece: ChoiceEvent, whole: ReplyBuilder, before: int) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        text = piece.text or None
        if self._body.diffusing:
            text = self._echoes[piece.choice] + (piece.draft if piece.draft is not None else whole.text)
        if text is not None or piece.logprobs:
            columns = self._columns(piece.logprobs, before)
            made.append({"choices": [self._choice(piece.choice, text or "", None, columns)]})
        made += self._diffusion(piece)
        if isinstance(piece.event, Finished):
            text = self._echoes[piece.choice] + whole.text if self._body.diffusing else ""
            ending = self._choice(piece.choice, text, piece.event.reason, None) | finish_details(piece.event)
            figures = timings([piece.event])
            made.append({"choices": [ending], "timings": figures, **self._answers.warnings((), piece.choice)})
        return made

    def _diffusion(self, piece: ChoiceEvent) -> list[dict[str, Any]]:
        if not self._body.wants_diffusion or self._body.diffusing:
            return []
        empty = {"choices": [self._choice(piece.choice, "", None, None)]}
        if isinstance(piece.event, Draft):
            ends = self._answers.requests[piece.choice].eos_token_ids
            return [{**empty, "diffusion": after_step(piece.event, self._tokenizer, ends)}]
        return (
            [{**empty, "diffusion": after_canvas(piece.event)}] if isinstance(piece.event, Committed) else []
        )

    def _columns(self, tokens: tuple[TokenLogprob, ...], offset: int) -> dict[str, Any] | None:
        return None if self._body.best is None else as_columns(tokens, offset, bool(self._body.doubt))

    def _choice(
        self, index: int, text: str, reason: str | None, columns: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": columns, "finish_reason": reason}


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The field `warnings` of two, if they have one."""
    told = [*first.get("warnings", ()), *second.get("warnings", ())]
    return {"warnings": told} if told else {}


__all__ = ["CompletionWriter", "generation_request", "router"]
