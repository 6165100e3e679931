"""vLLM's way to load and unload adapters while the server runs."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from ...bodies import BodyRoute
from ...fields import Open
from ...responses import ERRORS
from ...service import Ready

router = APIRouter(route_class=BodyRoute, tags=["vLLM"])
_DONE = {200: {"content": {"text/plain": {}}, "description": "It was done."}, **ERRORS}


class LoadAdapterRequest(Open):
    """An adapter, and the name by which requests ask for it in `model`."""

    lora_name: str
    lora_path: str = Field(description="A folder as PEFT writes it, below that of --adapter-dir.")
    load_inplace: bool | None = Field(None, description="An adapter of that name is replaced.")


class UnloadAdapterRequest(Open):
    """The adapter that is not needed any more."""

    lora_name: str


@router.post("/v1/load_lora_adapter", responses=_DONE)
async def load_adapter(body: LoadAdapterRequest, service: Ready) -> Response:
    """Loads an adapter. Only with `serve --adapter-dir`."""
    await service.adapters.load(body.lora_name, body.lora_path, replace=bool(body.load_inplace))
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", responses=_DONE)
async def unload_adapter(body: UnloadAdapterRequest, service: Ready) -> Response:
    """Unloads an adapter; what is being written with it is finished. Only with `serve --adapter-dir`."""
    service.adapters.unload(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


__all__ = ["router"]
