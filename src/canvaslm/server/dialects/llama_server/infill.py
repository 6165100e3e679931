"""POST /infill: llama-server's way to ask for the text between two others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from ....session.template import infill_template
from ....text.transcript import ReplyBuilder
from ....types import Finished
from ...bodies import BodyRoute
from ...choices import finish_details, gather, timings
from ...fields import AnswerSchema, Count, Int, Open, Stop, Temperature, Truncated
from ...limits import MAX_MESSAGES
from ...responses import ERRORS, streamed
from ...sending import JsonAnswer, Stream, sse, unless_gone, wording_errors
from ...service import AnyAnswers, FillingRequest, GenerationRequest, Ready, Service
from ..openai.chat import word_error

router = APIRouter(route_class=BodyRoute, tags=["llama-server"])


class ExtraText(Open):
    """A piece of another file."""

    text: str
    filename: str = ""


class InfillRequest(Truncated):
    """POST /infill"""

    input_prefix: str = Field("", description="Text before the answer.")
    input_suffix: str = Field("", description="Text behind the answer.")
    input_extra: list[ExtraText] = Field(
        default_factory=list, max_length=MAX_MESSAGES, description="Other files that help."
    )
    prompt: str = Field("", description="More text, between input_prefix and the answer.")
    n_predict: Annotated[Count, Field(description="Tokens that the answer may have.")] | None = None
    temperature: Temperature | None = None
    stop: Stop | None = None
    stream: bool | None = None
    model: str | None = Field(None, description="The model, or one of its adapters.")
    id_slot: Int | None = Field(None, description="Accepted and ignored.")

    def params(self) -> dict[str, Any]:
        """Fields of `Params`."""
        given = {**self.sampling(), "temperature": self.temperature, "max_new_tokens": self.n_predict}
        return {name: value for name, value in given.items() if value is not None}

    def filling(self) -> FillingRequest:
        """The text with a hole; other files are told of beforehand."""
        told = "\n\n".join(f"{extra.filename}\n{extra.text}".strip("\n") for extra in self.input_extra)
        template = infill_template(self.input_prefix + self.prompt, self.input_suffix)
        return FillingRequest(template, system=told or None)


class Infilled(AnswerSchema):
    """The text between the others, or a piece of it; the last piece (`stop`) has the figures."""

    content: str
    stop: bool
    model: str | None = None
    seed: int | None = None
    tokens_predicted: int | None = None
    tokens_evaluated: int | None = None
    tokens_cached: int | None = None
    stop_type: str | None = Field(None, description="eos, or limit where the answer was cut.")
    truncated: bool | None = None
    timings: dict[str, Any] | None = None
    finish_details: list[dict[str, str]] | None = None
    warnings: list[dict[str, str]] | None = None


@router.post("/infill", responses={200: streamed(Infilled), **ERRORS})
async def infill(body: InfillRequest, http: Request, service: Ready) -> Response:
    """What belongs between two texts: whole, or as server-sent events."""
    body.refuse_templates()
    wanted = GenerationRequest(
        params=body.params(),
        preset=body.preset,
        stop=body.stop,
        rules=body.rules(),
        structure=body.structure(),
        model=body.model,
        lora=body.loras(),
        names={"max_new_tokens": "n_predict", "messages": "input_prefix", "template": "input_prefix"},
    )
    answers = await service.fill(wanted, await service.work(body.filling))
    if body.stream:
        chunks = wording_errors(_pieces(body, answers, service), word_error)
        return Stream(chunks, answers.close, limits=service.limits)
    (whole,) = await unless_gone(http, gather(answers, 1))
    return JsonAnswer({**_ending(body, answers, service, whole), "content": whole.text})


async def _pieces(body: InfillRequest, answers: AnyAnswers, service: Service) -> AsyncIterator[bytes]:
    whole = ReplyBuilder()
    async for piece in answers:
        whole.add(piece.event)
        if piece.text:
            yield sse({"content": piece.text, "stop": False})
        if isinstance(piece.event, Finished):
            yield sse(_ending(body, answers, service, whole))


def _ending(
    body: InfillRequest, answers: AnyAnswers, service: Service, whole: ReplyBuilder
) -> dict[str, Any]:
    end = whole.finished
    return {
        "index": 0,
        "content": "",
        "stop": True,
        "model": answers.model,
        "seed": end.seed,
        "tokens_predicted": end.usage.completion_tokens,
        "tokens_evaluated": end.usage.prompt_tokens,
        "tokens_cached": end.usage.cached_tokens,
        "stop_type": "limit" if end.reason == "length" else "eos",
        "truncated": False,
        "has_new_line": "\n" in whole.text,
        "timings": timings([end]),
        **finish_details(end),
        **answers.warnings(body.ignored()),
    }


__all__ = ["router"]
