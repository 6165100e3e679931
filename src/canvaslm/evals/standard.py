"""Named sets of points that an eval compares: `--table NAME`. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..diffusion.params import PRESETS, nearest
from ..errors import UsageError
from .points import Point


def _verify() -> list[Point]:
    """What the causal reader is worth: the first is without it, the others with, the last it alone."""
    drafts: list[dict[str, Any]] = [
        {"verify": "threshold", "verify_threshold": share, "verify_steps": steps}
        for share in (0.1, 0.3)
        for steps in (1, 2, 4)
    ]
    judged = [{"verify": "checked"}, *drafts]
    judged += [{"verify": "greedy", "verify_steps": steps} for steps in (1, 2, 4)]
    return [
        Point("plain", {"verify": "off"}),
        *(Point(_label(params), params) for params in judged),
        Point("causal, likeliest", {"decoding": "causal", "temperature": 0.0}),
    ]


def _label(params: dict[str, Any]) -> str:
    """`threshold .1, 2 steps`."""
    share = params.get("verify_threshold")
    name = params["verify"] if share is None else f"{params['verify']} {share:g}".replace(" 0.", " .")
    steps = params.get("verify_steps")
    return name if steps is None else f"{name}, {steps} {'step' if steps == 1 else 'steps'}"


def _presets() -> list[Point]:
    """Every preset beside `quality`, which is the reference."""
    others = [name for name in PRESETS if name != "quality"]
    return [Point(name, PRESETS[name]) for name in ("quality", *others)]


_TABLES = {"verify": _verify, "presets": _presets}


def standard(name: str) -> Sequence[Point]:
    """The points; all others are compared with the first. Raises UsageError for a name that is none."""
    if name not in _TABLES:
        near = nearest(name, tuple(_TABLES))
        hint = f"did you mean {near}?" if near else f"there is {', '.join(_TABLES)}"
        raise UsageError(f"--table {name}: no table is called that: {hint}", "table")
    return _TABLES[name]()


__all__ = ["standard"]
