"""`decision.json` beside a checkpoint: how it is best asked, and by which temperatures its probabilities are
right.

    {"labels": "letters", "temperature": {"predicate": 1.7, "choice": 1.2}, "noul_options": ["true", "false"]}

All fields may be missing. `labels`: "letters", "values" (options are their own labels) or a list of labels of
one token each. `temperature`: by kind of question, or one number for all; "noul" is another word for
"predicate". `noul_options`: how a predicate's true and false read. Other fields are kept out of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BadModelFile
from .questions import KINDS, QuestionKind

FILE_NAME = "decision.json"
LETTERS, VALUES = "letters", "values"
_MOST_BYTES = 1 << 20
_TRUTH = ("true", "false")


@dataclass(frozen=True)
class Calibration:
    """What `decision.json` says; the defaults are what holds without one."""

    labels: str | tuple[str, ...] = LETTERS
    temperature: Mapping[QuestionKind, float] = field(default_factory=dict)
    noul_options: tuple[str, str] = _TRUTH

    def heat(self, kind: QuestionKind) -> float:
        """The temperature of a kind of question: 1 where none was fitted."""
        return self.temperature.get(kind, 1.0)

    def to_json(self) -> dict[str, Any]:
        labels = self.labels if isinstance(self.labels, str) else list(self.labels)
        return {
            "labels": labels,
            "temperature": dict(self.temperature),
            "noul_options": list(self.noul_options),
        }


def read_calibration(path: Path | None) -> Calibration:
    """That of a file; the defaults without one. Raises BadModelFile."""
    if path is None:
        return Calibration()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES} bytes")
        return parsed_calibration(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise BadModelFile(f"{path}: {error}. Correct the file, or take it away.") from error


def parsed_calibration(data: Any) -> Calibration:
    """Raises ValueError that says what is wrong."""
    if not isinstance(data, dict):
        raise ValueError("it should hold an object")
    return Calibration(
        _labels(data.get("labels", LETTERS)),
        _temperatures(data.get("temperature", {})),
        _truth(data.get("noul_options", list(_TRUTH))),
    )


def _labels(given: Any) -> str | tuple[str, ...]:
    if given in (LETTERS, VALUES):
        return str(given)
    if not isinstance(given, list) or not given or not all(isinstance(x, str) and x for x in given):
        raise ValueError(f'labels should be "{LETTERS}", "{VALUES}" or a list of texts')
    if len(set(given)) < len(given):
        raise ValueError("labels has one twice")
    return tuple(given)


def _temperatures(given: Any) -> dict[QuestionKind, float]:
    if isinstance(given, int | float):
        given = dict.fromkeys(KINDS, given)
    if not isinstance(given, dict):
        raise ValueError("temperature should be a number, or an object of numbers by kind of question")
    made: dict[QuestionKind, float] = {}
    for name, value in given.items():
        kind = next((kind for kind in KINDS if kind == ("predicate" if name == "noul" else name)), None)
        if kind is None:
            raise ValueError(f"temperature: {name!r} is no kind of question ({', '.join(KINDS)})")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"temperature of {name} should be a number above 0")
        made[kind] = float(value)
    return made


def _truth(given: Any) -> tuple[str, str]:
    if not (isinstance(given, list) and len(given) == 2 and all(isinstance(x, str) and x for x in given)):
        raise ValueError("noul_options should be two texts, for true and for false")
    return given[0], given[1]


__all__ = ["FILE_NAME", "LETTERS", "VALUES", "Calibration", "parsed_calibration", "read_calibration"]
