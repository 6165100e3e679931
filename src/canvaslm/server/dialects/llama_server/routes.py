"""llama-server's routes around the model: health, properties, slots, metrics, and the text tools."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from ...bodies import BodyRoute
from ...fields import AnswerSchema, Diffusion, Open, Tokens, Tools
from ...limits import MAX_MESSAGES, MAX_TEXT
from ...metrics import CONTENT_TYPE
from ...problems import Problem
from ...responses import ERRORS, READ_ERRORS
from ...sending import json_bytes
from ...service import Anytime, Ready
from ..openai.schema import ChatMessage

if TYPE_CHECKING:
    from ....engine import Engine
    from ....session import Session
    from ....text.tokenizer import Tokenizer

router = APIRouter(route_class=BodyRoute, tags=["llama-server"])


class Health(BaseModel):
    """Ready to answer."""

    status: Literal["ok"]


@router.get("/health", responses=READ_ERRORS)
@router.get("/v1/health", include_in_schema=False)
async def health(service: Ready) -> Health:
    """200 once the model is loaded, 503 until then. Needs no key."""
    return Health(status="ok")


@router.get(
    "/metrics", responses={200: {"content": {"text/plain": {}}, "description": "The metrics."}, **READ_ERRORS}
)
async def metrics(service: Anytime) -> Response:
    """Prometheus metrics.

    Of adapters: `canvaslm_adapters_known` and `canvaslm_adapters_loaded`, `canvaslm_adapter_bytes` held and
    `canvaslm_adapter_bytes_limit`, `canvaslm_adapter_loads_total` from files,
    `canvaslm_adapter_evictions_total` for memory, and `canvaslm_adapter_requests_total` for each name.
    """
    return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})


class Props(AnswerSchema):
    """What is served, and its sampling defaults."""

    default_generation_settings: dict[str, Any]
    total_slots: int
    model_alias: str
    chat_template: str
    modalities: dict[str, bool]
    bos_token: str
    eos_token: str
    build_info: str
    canvas_length: int


@router.get("/props", responses=READ_ERRORS)
async def props(service: Ready) -> Props:
    """Properties of the server and its model."""
    session = service.session
    token = session.token_text
    return Props(
        default_generation_settings={"n_ctx": session.engine.max_context, "params": asdict(session.params)},
        total_slots=session.engine.scheduler.max_rows,
        model_alias=session.name,
        chat_template=session.template.sources["default"],
        modalities={"vision": False, "audio": False},
        bos_token="" if session.tokenizer.bos_id is None else token(session.tokenizer.bos_id),
        eos_token="" if session.tokenizer.eos_id is None else token(session.tokenizer.eos_id),
        build_info=service.fingerprint,
        canvas_length=session.engine.config.canvas_length,
    )


class Slot(AnswerSchema):
    """A row of the engine. Prompts are not shown."""

    id: int
    is_processing: bool
    n_ctx: int
    id_task: int | None = None
    state: str = "idle"
    canvas: int = 0
    step: int = 0
    n_prompt_tokens: int = 0
    n_decoded: int = 0


@router.get("/slots", responses=READ_ERRORS)
async def slots(service: Ready) -> list[Slot]:
    """What the engine's rows do."""
    rows = await service.bridge.on_engine_thread(_rows)
    idle = range(len(rows), service.session.engine.scheduler.max_rows)
    context = service.session.engine.max_context
    return [*rows, *(Slot(id=i, is_processing=False, n_ctx=context) for i in idle)]


def _rows(engine: Engine) -> list[Slot]:
    """On the engine's thread."""
    return [
        Slot(
            id=i,
            is_processing=True,
            n_ctx=engine.max_context,
            id_task=sequence.id,
            state=sequence.state.value,
            canvas=len(sequence.reports),
            step=sequence.progress.step,
            n_prompt_tokens=len(sequence.request.tokens),
            n_decoded=len(sequence.output),
        )
        for i, sequence in enumerate(engine.scheduler.running)
    ]


def _bounded(text: str) -> str:
    """pydantic's own bound reads a text as UTF-8: it would refuse lone surrogates, which JSON may carry."""
    if len(text) > MAX_TEXT:
        bound = {"max_length": MAX_TEXT}
        raise PydanticCustomError("string_too_long", "at most {max_length} characters", bound)
    return text


class TokenizeRequest(Open):
    """A text. Markers in it stay text."""

    content: Annotated[
        str, AfterValidator(_bounded), WithJsonSchema({"type": "string", "maxLength": MAX_TEXT})
    ]
    add_special: bool = Field(False, description="Put BOS in front.")
    with_pieces: bool = False


@router.post("/tokenize", responses=ERRORS)
async def tokenize(body: TokenizeRequest, service: Ready) -> Response:
    """Token ids of a text."""
    return Response(
        await service.work(_tokens, body, service.session.tokenizer), media_type="application/json"
    )


def _tokens(body: TokenizeRequest, tokenizer: Tokenizer) -> bytes:
    """The answer. A million tokens are written one by one, so that other threads run meanwhile."""
    ids = tokenizer.encode(body.content)
    if body.add_special and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    if body.with_pieces:
        known = {i: json_bytes({"id": i, "piece": _piece(tokenizer.token_bytes(i))}) for i in set(ids)}
        written = [known[i] for i in ids]
    else:
        written = [b"%d" % i for i in ids]
    return b'{"tokens":[' + b",".join(written) + b"]}"


def _piece(data: bytes) -> str | list[int]:
    """A token's text; its bytes where they are no text by themselves."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


class DetokenizeRequest(Open):
    """Token ids."""

    tokens: Tokens


@router.post("/detokenize", responses=ERRORS)
async def detokenize(body: DetokenizeRequest, service: Ready) -> Response:
    """The text of token ids; control tokens are written out."""
    written = await service.work(_text, body, service.session.tokenizer)
    return Response(written, media_type="application/json")


def _text(body: DetokenizeRequest, tokenizer: Tokenizer) -> bytes:
    if any(token >= tokenizer.vocab_size for token in body.tokens):
        raise Problem(400, f"a token id is outside the vocabulary of {tokenizer.vocab_size}", param="tokens")
    return json_bytes({"content": tokenizer.decode(body.tokens, skip_special=False)})


class ApplyTemplateRequest(Diffusion):
    """A chat."""

    messages: list[ChatMessage] = Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)
    tools: Tools | None = None


@router.post("/apply-template", responses=ERRORS)
async def apply_template(body: ApplyTemplateRequest, service: Ready) -> Response:
    """The prompt that a chat becomes. Markers in it that came with the messages would
    reach the model as text."""
    body.refuse_templates()
    written = await service.work(_rendered, body, service.session)
    return Response(written, media_type="application/json")


def _rendered(body: ApplyTemplateRequest, session: Session) -> bytes:
    turns = [message.model_dump(exclude_none=True) for message in body.messages]
    return json_bytes({"prompt": "".join(session.template.render(turns, body.tools, body.thinks()))})


__all__ = ["router"]
