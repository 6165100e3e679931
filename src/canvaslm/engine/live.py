"""The canvases of one length that take a step together, and which of their places it computes.

A place that is kept (`Canvas.kept`) takes part in a step with the keys and values that it has, and with what
was last said of it. The others' states lie end to end, rows after each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..diffusion import Canvas
from ..ops.predict import Draw, Prediction
from .scheduler import Row

T = TypeVar("T")


@dataclass(frozen=True)
class LiveRows:
    """R rows with canvases of C places each, of which a step computes T in all."""

    rows: list[Row]
    canvas: Canvas  # of all rows
    places: list[Tensor | None]  # of each row, int64 ascending: those that are computed; None: all

    @classmethod
    def of(cls, rows: list[Row], fewest: int) -> LiveRows:
        """fewest: places that a step computes of a canvas at least (`Model.fewest`)."""
        canvases = [_canvas(row) for row in rows]
        kept = [row.sequence.progress.kept for row in rows]
        places = [_computed(*one, fewest) for one in zip(canvases, kept, strict=True)]
        return cls(rows, Canvas.join(canvases), places)

    @property
    def counts(self) -> list[int]:
        """How many places of each row are computed."""
        whole = self.canvas.tokens.shape[1]
        return [whole if places is None else len(places) for places in self.places]

    @property
    def is_whole(self) -> bool:
        """Whether all places of all rows are computed."""
        return all(places is None for places in self.places)

    def pick(self, column: Tensor) -> Tensor:
        """What a column [R, C, ...] has at the places that are computed: [T, ...]."""
        if self.is_whole:
            return column.flatten(0, 1)
        pairs = zip(column, self.places, strict=True)
        return torch.cat([one if places is None else one[places] for one, places in pairs])

    def each(self, values: Sequence[T]) -> list[T]:
        """Values of R rows, for each place that is computed."""
        pairs = zip(values, self.counts, strict=True)
        return [value for value, count in pairs for _ in range(count)]

    def place_by_place(self, how: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `ops.predict.predict` for R rows, as those for T rows of one place."""
        made: dict[str, Any] = {name: self.each(how[name]) for name in how.keys() & _OF_ROWS}
        if "draws" in how:
            columns = zip(*((draw.gumbel, draw.uniform) for draw in how["draws"]), strict=True)
            gumbel, uniform = (self.pick(torch.stack(column)) for column in columns)
            made["draws"] = [Draw(*one) for one in zip(gumbel[:, None], uniform[:, None], strict=True)]
        if "allowed" in how:
            made["allowed"] = self.pick(how["allowed"])[:, None]
        return how | made

    def merged(self, said: Prediction, named: Sequence[int]) -> Prediction:
        """A prediction [R, C] from that of the computed places [T, 1]; of kept ones what was said before.
        named: how many of the most probable tokens each row wants."""
        rows = []
        ends = [0]
        for count in self.counts:
            ends.append(ends[-1] + count)
        for row, places, start, stop in zip(self.rows, self.places, ends[:-1], ends[1:], strict=True):
            new = {name: column[start:stop, 0] for name, column in _columns(said)}
            rows.append(new if places is None else _over(new, places, _canvas(row)))
        columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return Prediction(**{"soft": None, **columns}, named=tuple(named))  # type: ignore[arg-type]


# What `predict` is told of each row.
_OF_ROWS = {"temperature", "top_k", "tail_correction", "top", "biases"}
# What is said of each place, and the column of a canvas that has it.
_SAID = {
    "sampled": "argmax", "argmax": "argmax", "entropy": "entropy", "logprob": "logprob", "soft": "soft",
    "top_tokens": "top_tokens", "top_logprobs": "top_logprobs",
}  # fmt: skip


def _computed(canvas: Canvas, kept: int, fewest: int) -> Tensor | None:
    """The places of one row that a step computes: those not kept, and of these the first ones besides, where
    that would be fewer than the model computes to the same bits as many. kept: how many are."""
    whole = canvas.tokens.shape[1]
    count = max(whole - kept, min(max(1, fewest), whole))
    if count == whole:
        return None
    return canvas.kept[0].long().argsort(stable=True)[:count].sort().values


def _columns(said: Prediction) -> Iterator[tuple[str, Tensor]]:
    for name in _SAID:
        column = getattr(said, name)
        if column is not None:
            yield name, column


def _over(new: dict[str, Tensor], places: Tensor, canvas: Canvas) -> dict[str, Tensor]:
    """Columns [C, ...] of one row: what is new at some places, else what the canvas has."""
    made, kept = {}, canvas.kept[0]
    for name, values in new.items():
        old = getattr(canvas, _SAID[name])
        old = values.new_zeros(len(kept), *values.shape[1:]) if old is None else old[0]
        if name in ("top_tokens", "top_logprobs"):  # as wide as the widest of the rows then and now
            old = F.pad(
                old, (0, values.shape[1] - old.shape[1]), value=-torch.inf if name == "top_logprobs" else 0
            )
        whole = old.index_copy(0, places, values)
        made[name] = torch.where(kept.view(-1, *[1] * (old.dim() - 1)), old, whole)
    return made


def _canvas(row: Row) -> Canvas:
    assert row.sequence.canvas is not None
    return row.sequence.canvas


__all__ = ["LiveRows"]
