"""POST /api/create and DELETE /api/delete, for adapters alone: what Ollama's Modelfile calls ADAPTER."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.responses import Response

from ...adapters import is_own
from ...bodies import BodyRoute
from ...fields import Open
from ...limits import MAX_STRINGS
from ...problems import Problem, unsupported
from ...responses import errors
from ...sending import JsonAnswer, json_bytes
from ...service import Ready
from .routes import NDJSON
from .schema import OllamaError

router = APIRouter(route_class=BodyRoute, tags=["Ollama"])
_ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 421, 429, 500, 503, model=OllamaError)
_TAG = ":latest"
# Clients may name the files of a folder, which here stands for them.
_FILES = ("adapter_config.json", "adapter_model.safetensors")
_MADE = ("reading adapter", "success")
_SHOWN = 100
_FEW = Field(max_length=MAX_STRINGS)


class CreateRequest(Open):
    """An adapter of the model that is served, and the name it gets."""

    model: str | None = Field(None, description="The adapter's name from now on.")
    name: str | None = Field(None, description="Older spelling of model.")
    base: str | None = Field(None, alias="from", description="The model that is served.")
    adapters: Annotated[dict[str, Any], _FEW] | Annotated[list[str], _FEW] | None = Field(
        None,
        description="One folder below that of --adapter-dir, or a table with it; digests are not looked at.",
    )
    modelfile: str | None = Field(
        None, description="Instead of both: a text with a FROM and an ADAPTER line."
    )
    stream: bool | None = Field(
        None, description="Lines of JSON, which is also the default; false: one object."
    )

    @property
    def called(self) -> str:
        """The adapter's name. Raises Problem without one."""
        name = (self.model or self.name or "").removesuffix(_TAG)
        if not name:
            raise Problem(400, "model is required", param="model")
        return name

    def wanted(self) -> tuple[str, str]:
        """The base, and the folder of the adapter. Raises Problem for whatever else is asked for."""
        for name, value in (self.model_extra or {}).items():
            if value not in (None, "", [], {}, False):
                raise unsupported(
                    name[:_SHOWN], f"{name[:_SHOWN]} is not supported: only adapters can be created here"
                )
        if self.modelfile is not None:
            if self.base is not None or self.adapters is not None:
                raise unsupported("modelfile", "send from and adapters, or a modelfile, not both")
            return read_modelfile(self.modelfile)
        if not self.base:
            raise Problem(400, "from is required: the name of the model that is served", param="from")
        return self.base, _only([_folder_of(path) for path in self.adapters or ()])


class CreateStatus(BaseModel):
    """How far it is; at last "success"."""

    status: str


class DeleteRequest(Open):
    """Which adapter; `name` is its older spelling."""

    model: str | None = None
    name: str | None = None


def read_modelfile(text: str) -> tuple[str, str]:
    """The base and the adapter that a Modelfile names. Raises Problem for all other lines but comments."""
    found: dict[str, list[str]] = {"FROM": [], "ADAPTER": []}
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        if word.upper() not in found:
            raise unsupported(
                "modelfile", f"modelfile: {word[:_SHOWN]} is not supported: only FROM and ADAPTER are"
            )
        found[word.upper()].append(rest.strip().strip('"'))
    if len(found["FROM"]) != 1 or not found["FROM"][0]:
        raise Problem(400, "modelfile: FROM is needed once: the model that is served", param="modelfile")
    return found["FROM"][0], _only([_folder_of(path) for path in found["ADAPTER"]])


def _folder_of(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return folder if name in _FILES and folder else path


def _only(folders: list[str]) -> str:
    """The one folder that is named. Raises Problem for none, and for several."""
    named = dict.fromkeys(folders)
    if len(named) != 1:
        told = "there is none: models are not made here" if not named else f"there are {len(named)}"
        raise Problem(400, f"adapters: name one adapter; {told}", param="adapters")
    return next(iter(named))


@router.post("/api/create", responses={200: {"model": CreateStatus}, **_ERRORS})
async def create(body: CreateRequest, service: Ready) -> Response:
    """Loads an adapter of the served model, in the place of one of that name. Only with `serve
    --adapter-dir`; whatever makes other models (`files`, `quantize`, `template`, `system` ...) is refused."""
    name, (base, folder) = body.called, body.wanted()
    if not is_own(base, service.session.name):
        known = service.session.name
        raise Problem(
            404, f"from: model {base[:_SHOWN]!r} not found: the model that is served is {known}",
            param="from", code="model_not_found",
        )  # fmt: skip
    await service.adapters.load(name, folder, replace=True, called="adapters")
    if body.stream is False:
        return JsonAnswer({"status": _MADE[-1]})
    lines = b"".join(json_bytes({"status": status}) + b"\n" for status in _MADE)
    return Response(lines, media_type=NDJSON)


@router.delete("/api/delete", responses=_ERRORS)
async def delete(body: DeleteRequest, service: Ready) -> Response:
    """Unloads an adapter; its files stay. Only with `serve --adapter-dir`."""
    asked = body.model or body.name or ""
    if not asked:
        raise Problem(400, "model is required", param="model")
    names = service.session.adapters.names
    name = asked if asked in names else asked.removesuffix(_TAG)
    if name not in names and is_own(asked, service.session.name):
        raise unsupported("model", "the model that is served cannot be deleted, only its adapters")
    if name not in names:
        raise Problem(404, f"model {asked[:_SHOWN]!r} not found", param="model", code="model_not_found")
    service.adapters.unload(name)
    return Response()


__all__ = ["CreateRequest", "DeleteRequest", "read_modelfile", "router"]
