"""Ollama's routes around the model: what there is, what it can do, what is loaded, which version."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from ....weights.description import count_parts
from ...bodies import BodyRoute
from ...fields import AnswerSchema, Open
from ...problems import Problem
from ...responses import errors
from ...service import Ready, Service
from .schema import OllamaError

if TYPE_CHECKING:
    from ....engine import Engine
    from ....session.adapters import ShelvedAdapter

router = APIRouter(route_class=BodyRoute, tags=["Ollama"])
# The version of Ollama whose interface this is. Clients ask, to know which fields they may use.
INTERFACE = "0.12.11"
NEVER = "9999-12-31T23:59:59Z"
_READ = errors(401, 403, 421, 500, 503, model=OllamaError)
_ALL = errors(400, 401, 403, 404, 408, 413, 415, 421, 429, 500, 503, model=OllamaError)


class ModelDetails(BaseModel):
    """What kind of model it is."""

    parent_model: str = ""
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(BaseModel):
    """A model. `size` in bytes."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails


class Tags(BaseModel):
    """The models that are there."""

    models: list[Tag]


class LoadedTag(Tag):
    """A model in memory."""

    expires_at: str
    size_vram: int
    context_length: int


class LoadedTags(BaseModel):
    """The models in memory."""

    models: list[LoadedTag]


class ShowRequest(Open):
    """Which model; `name` is its older spelling."""

    model: str | None = None
    name: str | None = None


class Shown(AnswerSchema):
    """All about a model."""

    modelfile: str
    parameters: str
    template: str
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Version(BaseModel):
    """`version` is that of Ollama's interface."""

    version: str
    canvaslm: str = Field(description="Our own version.")


@router.get("/", response_class=PlainTextResponse)
async def root() -> PlainTextResponse:
    """What Ollama's clients look for to know that something is there. Needs no key."""
    return PlainTextResponse("Ollama is running")


@router.get("/api/version", responses=_READ)
async def version(http: Request) -> Version:
    """The version of the interface."""
    return Version(version=INTERFACE, canvaslm=http.app.version)


@router.get("/api/tags", responses=_READ)
async def tags(service: Ready) -> Tags:
    """The model, and its adapters."""
    tag = await _tag(service)
    adapters = [Tag(**_of_adapter(tag, one)) for one in service.adapters.shelf]
    return Tags(models=[Tag(**tag), *adapters])


@router.get("/api/ps", responses=_READ)
async def loaded(service: Ready) -> LoadedTags:
    """The model in memory, which stays there."""
    tag = await _tag(service)
    on_gpu = service.session.engine.runner.device.type != "cpu"
    more: dict[str, Any] = {"expires_at": NEVER, "size_vram": tag["size"] if on_gpu else 0}
    return LoadedTags(models=[LoadedTag(**tag, **more, context_length=service.session.engine.max_context)])


@router.post("/api/show", responses=_ALL)
async def show(body: ShowRequest, service: Ready) -> Shown:
    """What a model is and can do."""
    session = service.session
    asked = body.model or body.name or ""
    if not asked:
        raise Problem(400, "model is required", param="model")
    name, tag = service.adapters.name_of(asked), await _tag(service)
    for one in service.adapters.shelf:
        tag = _of_adapter(tag, one) if one.name == name else tag
    template = session.template.sources["default"]
    return Shown(
        modelfile=f"# Served by canvaslm.\nFROM {session.name}\n"
        + ("" if name == session.name else f"ADAPTER {name}\n"),
        parameters="\n".join(f"{name} {value}" for name, value in _parameters(service).items()),
        template=template + _INSERTS,
        details=ModelDetails(**tag["details"]),
        model_info=_info(service),
        capabilities=_abilities("\n".join(session.template.sources.values())),
        modified_at=_moment(service.started),
    )


def _parameters(service: Service) -> dict[str, Any]:
    params = service.session.params
    return {"num_predict": params.max_new_tokens, "temperature": params.temperature}


# Clients look for these words to know that `suffix` works: nothing renders them.
_INSERTS = "\n{#- {{ .Prompt }} {{ .Suffix }} -#}"


def _abilities(template: str) -> list[str]:
    words = {"tools": "tools", "thinking": "enable_thinking"}
    return ["completion", "insert", *(ability for ability, word in words.items() if word in template)]


def _info(service: Service) -> dict[str, Any]:
    session = service.session
    config = session.engine.config
    active, experts = config.active_experts()
    kind = _architecture(service)
    own = {
        "context_length": session.engine.max_context,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "expert_count": experts,
        "expert_used_count": active,
        "canvas_length": config.canvas_length,
    }
    return {
        "general.architecture": kind,
        "general.basename": session.name,
        "general.parameter_count": sum(count_parts(config).values()),
        **{f"{kind}.{name}": value for name, value in own.items()},
    }


async def _tag(service: Service) -> dict[str, Any]:
    session = service.session
    size, kind = await service.bridge.on_engine_thread(_weights)
    name = tag_of(session.name)
    architecture = _architecture(service)
    return {
        "name": name,
        "model": name,
        "modified_at": _moment(service.started),
        "size": size,
        "digest": hashlib.sha256(service.fingerprint.encode()).hexdigest(),
        "details": {
            "format": "gguf" if session.name.endswith(".gguf") else "safetensors",
            "family": architecture,
            "families": [architecture],
            "parameter_size": _count(sum(count_parts(session.engine.config).values())),
            "quantization_level": session.format or kind,
        },
    }


def _of_adapter(tag: dict[str, Any], one: ShelvedAdapter) -> dict[str, Any]:
    """The model's entry made that of one of its adapters."""
    name = tag_of(one.name)
    digest = hashlib.sha256(f"{tag['digest']} {one.number} {one.name}".encode()).hexdigest()
    details = {**tag["details"], "parent_model": tag["name"]}
    return {**tag, "name": name, "model": name, "size": one.nbytes, "digest": digest, "details": details}


def _weights(engine: Engine) -> tuple[int, str]:
    """Bytes of the weights that torch holds, and their type where the session does not know
    it. On the engine's thread.

    Weights packed for our own kernels are no tensors: with such ones, the type has Ollama's word for none.
    """
    model = engine.runner.model
    tensors = [*model.parameters(), *model.buffers()]
    whole = sum(tensor.numel() for tensor in tensors) >= sum(count_parts(engine.config).values())
    names = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    kind = names.get(str(engine.runner.dtype).removeprefix("torch."), "unknown") if whole else "unknown"
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors), kind


def _architecture(service: Service) -> str:
    return str(service.session.engine.config.to_dict()["model_type"])


def _count(parameters: int) -> str:
    """As Ollama shortens it: 25.8B, 2.2M."""
    for unit, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= scale:
            return f"{parameters / scale:.1f}{unit}"
    return str(parameters)


def tag_of(name: str) -> str:
    """A model's name as Ollama lists it: with a tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def is_ours(asked: str, name: str) -> bool:
    """Whether a client's name for a model, with or without tag, is that of the model that is served."""
    return tag_of(asked) == tag_of(name)


def named(asked: str | None, name: str) -> str:
    """What an answer calls the model: by the client's spelling if that is right."""
    return asked if asked is not None and is_ours(asked, name) else name


def now() -> str:
    """The time, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


__all__ = ["INTERFACE", "NEVER", "is_ours", "named", "now", "router", "tag_of"]
