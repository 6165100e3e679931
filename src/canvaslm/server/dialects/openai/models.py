"""GET /v1/models: the model that is served, and its adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from ...bodies import BodyRoute
from ...problems import Problem
from ...responses import READ_ERRORS, errors
from ...service import Ready, Service

if TYPE_CHECKING:
    from ....session.adapters import ShelvedAdapter

router = APIRouter(route_class=BodyRoute, tags=["OpenAI"])


class ModelObject(BaseModel):
    """A model, or an adapter of one, which then is its `parent`; `root`: where its weights are from;
    `max_model_len`: the context in tokens, prompt and answer together."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None = None
    max_model_len: int
    meta: dict[str, Any]


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelObject]


@router.get("/v1/models", responses=READ_ERRORS)
async def list_models(service: Ready) -> ModelList:
    """The model that is served, and its adapters."""
    adapters = [describe(service, one) for one in service.adapters.shelf]
    return ModelList(object="list", data=[describe(service), *adapters])


@router.get("/v1/models/{model:path}", responses={**READ_ERRORS, **errors(404)})
async def get_model(model: str, service: Ready) -> ModelObject:
    """The model, or one of its adapters, by its name."""
    for one in service.adapters.shelf:
        if one.name == model:
            return describe(service, one)
    if model != service.session.name:
        raise Problem(
            404, f"the model {model[:100]!r} is not served here", param="model", code="model_not_found"
        )
    return describe(service)


def describe(service: Service, adapter: ShelvedAdapter | None = None) -> ModelObject:
    """What clients want to know of the model, or of one of its adapters."""
    session = service.session
    config = session.engine.config
    meta = {
        "n_vocab": config.vocab_size,
        "n_ctx_train": config.max_position_embeddings,
        "n_embd": config.hidden_size,
        "canvas_length": config.canvas_length,
    }
    return ModelObject(
        id=session.name if adapter is None else adapter.name,
        object="model",
        created=service.started,
        owned_by="canvaslm",
        root=session.name if adapter is None else service.adapters.place_of(adapter),
        parent=None if adapter is None else session.name,
        max_model_len=session.engine.max_context,
        meta=meta,
    )


__all__ = ["ModelList", "ModelObject", "describe", "router"]
