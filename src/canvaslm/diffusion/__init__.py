"""The sampling mathematics: schedules, accept rules, stopping. Never sees the
vocabulary axis, keeps no state.

Importing this package imports no torch, so that the table of parameters is there without it: what needs torch
arrives on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .params import PARAMETERS, PRESETS, Params, check_params

if TYPE_CHECKING:
    from .canvas import Canvas, Progress, progress, start_canvas
    from .rows import RowParams
    from .samplers import SAMPLERS, Sampler
    from .schedule import temperature, top_k
    from .step import advance, settle

# Public names that need torch: name -> module that has it. No module may be called as one of them: Python
# would put it in the name's place.
_LAZY = {
    "SAMPLERS": "samplers",
    "Canvas": "canvas",
    "Progress": "canvas",
    "RowParams": "rows",
    "Sampler": "samplers",
    "advance": "step",
    "progress": "canvas",
    "settle": "step",
    "start_canvas": "canvas",
    "temperature": "schedule",
    "top_k": "schedule",
}

__all__ = [
    "PARAMETERS",
    "PRESETS",
    "SAMPLERS",
    "Canvas",
    "Params",
    "Progress",
    "RowParams",
    "Sampler",
    "advance",
    "check_params",
    "progress",
    "settle",
    "start_canvas",
    "temperature",
    "top_k",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module 'canvaslm.diffusion' has no attribute {name!r}")
