"""The points of a sweep: which sampling parameters an eval's items are answered with. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from ..diffusion.params import PARAMETERS, nearest, plain
from ..errors import UsageError

REFINED, ONE_SHOT = "refined", "one shot"
SAID = ", schema"  # of a point's label: the answer has to have the form that the task says
MAX_POINTS = 64


@dataclass(frozen=True)
class Point:
    """`params`: fields of `Params` over those that hold everywhere. `said`: answers have to have the form
    that the task says. `curve` names the curve that the point is on, `at` its value there."""

    label: str
    params: Mapping[str, Any] = field(default_factory=dict)
    said: bool = False
    curve: str = ""
    at: str = ""

    def with_form(self) -> Point:
        """The same, with the form of answers asked for."""
        curve = f"{self.curve}{SAID}".removeprefix(", ")
        return replace(self, label=self.label + SAID, said=True, curve=curve)


@dataclass(frozen=True)
class Sweep:
    """A parameter and the values it takes, `name` as it was `spelt`."""

    name: str
    values: tuple[Any, ...]
    spelt: str

    def labels(self) -> list[str]:
        """`steps=4` for each value."""
        return [f"{self.spelt}={_text(value)}" for value in self.values]


def _spellings() -> dict[str, str]:
    """Every long name of a parameter, with underscores -> its name in the table."""
    return {
        spelling.removeprefix("--").replace("-", "_"): name
        for name, about in PARAMETERS.items()
        for spelling in (name, *about.flags)
        if spelling == name or spelling.startswith("--")
    }


def read_sweep(text: str) -> Sweep:
    """From `steps=1,2,4`. Raises UsageError for a parameter that does not exist, and for values it cannot
    have."""
    spelt, equals, values = text.partition("=")
    spelt = spelt.strip().replace("-", "_")
    if not equals or not spelt:
        raise UsageError(f"--sweep {text}: should look like steps=1,2,4", "sweep")
    known = _spellings()
    if spelt not in known:
        near = nearest(spelt, known)
        hint = f"did you mean {near}?" if near else "docs/sampling.md has the table of them"
        raise UsageError(f"--sweep {text}: there is no parameter {spelt}: {hint}", "sweep")
    about = PARAMETERS[known[spelt]]
    if about.name == "seed":
        raise UsageError("--sweep seed: --seeds N answers every item under N seeds", "sweep")
    found = []
    for value in values.split(","):
        try:
            found.append(about.read(value.strip()))
        except UsageError as error:
            raise UsageError(f"--sweep {text}: {value.strip()!r}: {error}", "sweep") from error
    if len(set(found)) < len(found):
        raise UsageError(f"--sweep {text}: a value stands there twice", "sweep")
    return Sweep(about.name, tuple(found), spelt)


def grid(sweeps: Sequence[Sweep]) -> list[Point]:
    """Every combination. The first sweep's values make a curve, the others' tell curves apart.

    Raises UsageError for two sweeps of one parameter and for more than MAX_POINTS.
    """
    names = [sweep.name for sweep in sweeps]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"--sweep: {min(twice)} is swept twice: give all its values in one", "sweep")
    count = math.prod(len(sweep.values) for sweep in sweeps)
    if count > MAX_POINTS:
        sizes = " x ".join(str(len(sweep.values)) for sweep in sweeps)
        raise UsageError(
            f"--sweep: {sizes} makes {count} points, and {MAX_POINTS} are the most: give fewer values",
            "sweep",
        )
    along, *others = sweeps
    return [
        Point(
            label=", ".join((first, *labels)),
            params=dict(zip(names, (value, *values), strict=True)),
            curve=", ".join(labels),
            at=first,
        )
        for labels, values in zip(
            product(*(sweep.labels() for sweep in others)), product(*(s.values for s in others)), strict=True
        )
        for first, value in zip(along.labels(), along.values, strict=True)
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return plain(value) if isinstance(value, int | float) else str(value)


__all__ = ["MAX_POINTS", "ONE_SHOT", "REFINED", "SAID", "Point", "Sweep", "grid", "read_sweep"]
