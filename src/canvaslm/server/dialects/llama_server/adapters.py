"""llama-server's view of adapters: numbers, and the scales that requests get which say nothing of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, Field

from ...bodies import BodyRoute
from ...fields import LoraScale
from ...limits import MAX_STRINGS
from ...responses import ERRORS, READ_ERRORS
from ...service import Ready

router = APIRouter(route_class=BodyRoute, tags=["llama-server"])


class AdapterObject(BaseModel):
    """An adapter. `scale` holds for requests without `lora` that do not name an adapter in `model`."""

    id: int
    name: str
    path: str
    scale: float


class Done(BaseModel):
    """It was done."""

    success: Literal[True]


_Scales = Annotated[list[LoraScale], Body(), Field(fail_fast=True, max_length=MAX_STRINGS)]


@router.get("/lora-adapters", responses=READ_ERRORS)
async def list_adapters(service: Ready) -> list[AdapterObject]:
    """The adapters that there are, by number."""
    adapters = service.adapters
    return [
        AdapterObject(
            id=one.number, name=one.name, path=adapters.place_of(one), scale=adapters.scale_of(one.number)
        )
        for one in adapters.shelf
    ]


@router.post("/lora-adapters", responses=ERRORS)
async def set_scales(body: _Scales, service: Ready) -> Done:
    """Takes a list: scales for requests that say nothing of adapters. Those not named get 0, which is what
    all have at first."""
    service.adapters.set_scales([(one.id, one.scale) for one in body])
    return Done(success=True)


__all__ = ["router"]
