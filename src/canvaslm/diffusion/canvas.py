"""Canvases: all state of rows while they are denoised, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..ops import noise
from ..types import CanvasStop

# What `Canvas.stop` counts: why a canvas is finished.
STOPS: tuple[CanvasStop | None, ...] = (None, "converged", "max_steps", "outgrown")


@dataclass(frozen=True)
class Canvas:
    """R canvases of C places, each after a number of denoise steps of its own. Advancing makes a new Canvas.

    Rows never meet: what becomes of one depends on no other. Everything is where the model is, and nothing
    but `progress` needs to be read from there.
    """

    key: Tensor  # int64 [R], of `noise.canvas_key`: the seed and the number of the canvas within its answer
    step: Tensor  # int64 [R], denoise steps taken
    stop: Tensor  # int64 [R], an index into STOPS: not 0 once the canvas is finished
    settled: Tensor  # int64 [R], places at the start that were frozen because they had been certain for long
    tokens: Tensor  # int64 [R, C], what the model reads next: accepted tokens and fresh noise
    argmax: Tensor  # int64 [R, C], the draft: the model's best guess of every place
    frozen: Tensor  # bool [R, C], places whose token is given and never changes
    unchanged: (
        Tensor  # int64 [R, C], how many of the last steps in a row had the argmax that the place has now
    )
    held: Tensor  # int64 [R, C], steps for which a place kept its argmax and was certain
    sure: Tensor  # int64 [R, C], the same by the measure of `keep_entropy`
    kept: Tensor  # bool [R, C], places that no further step need compute: their argmax stands
    soft: Tensor | None = None  # [R, C, H], soft embedding of the last prediction; None before the first step
    entropy: Tensor | None = None  # nats, fp32 [R, C]
    accepted: Tensor | None = None  # bool [R, C]
    changed: Tensor | None = None  # bool [R, C], argmax differs from the step before
    logprob: Tensor | None = None  # fp32 [R, C], of the argmax token
    top_tokens: Tensor | None = None  # int64 [R, C, k], the most probable tokens, best first
    top_logprobs: Tensor | None = None  # fp32 [R, C, k]

    @classmethod
    def join(cls, parts: Sequence[Canvas]) -> Canvas:
        """The rows of all parts, in order, ready to be advanced: without what the last step said of them.

        `soft` is kept, with zeros for rows before their first step; None if all are.
        """
        if len(parts) == 1:
            return parts[0]
        state = {name: torch.cat([getattr(part, name) for part in parts]) for name in _STATE}
        return cls(**state, soft=_join_soft(parts))

    def row(self, index: int) -> Canvas:
        """One row, as a Canvas of one."""
        columns = (getattr(self, f.name) for f in fields(self))
        return Canvas(*(None if x is None else x[index : index + 1] for x in columns))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.tokens)


_STATE = ("key", "step", "stop", "settled", "tokens", "argmax", "frozen", "unchanged", "held", "sure", "kept")


@dataclass(frozen=True)
class Progress:
    """What the host knows of one row's canvas."""

    step: int = 0  # denoise steps taken
    stop: CanvasStop | None = None  # why it is finished
    mean_entropy: float = float("inf")  # nats, over all places
    settled: int = 0  # places at the start that were frozen early
    kept: int = 0  # places that no further step need compute


def progress(*canvases: Canvas) -> list[Progress]:
    """Each row's, after a step at least: one read from the device for the rows of all canvases together."""
    tables = []
    for canvas in canvases:
        assert canvas.entropy is not None
        numbers = (canvas.step, canvas.stop, canvas.entropy.mean(-1), canvas.settled, canvas.kept.sum(-1))
        tables.append(torch.stack([column.double() for column in numbers], dim=-1))
    table = torch.cat(tables).tolist()
    return [Progress(int(step), STOPS[int(stop)], mean, int(x), int(y)) for step, stop, mean, x, y in table]


def start_canvas(
    seed: int,
    index: int,
    length: int,
    vocab_size: int,
    device: torch.device | str = "cpu",
    given: Mapping[int, int] | None = None,
    mask_token: int | None = None,
    draft: Mapping[int, int] | None = None,
    draft_noise: float = 0.0,
) -> Canvas:
    """One row of noise: uniform random tokens over the whole vocabulary, or `mask_token`s
    where the model has one.

    `given` fixes places: {place: token id}. `draft` has tokens that places begin with, but for a share of
    `draft_noise` of all places. index: the 0-based number of the canvas within its answer.
    """
    if mask_token is None:
        tokens = noise.tokens(noise.stream(seed, index, 0, noise.START), length, vocab_size)
    else:
        tokens = torch.full((length,), mask_token)
    if draft:
        coins = noise.uniforms(noise.stream(seed, index, 0, noise.DRAFT), length).tolist()
        for place, token in draft.items():
            tokens[place] = tokens[place] if coins[place] < draft_noise else token
    frozen = torch.zeros(length, dtype=torch.bool)
    for place, token in (given or {}).items():
        tokens[place], frozen[place] = token, True
    tokens, frozen = tokens[None].to(device), frozen[None].to(device)
    zero, zeros = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros_like(tokens)
    key = torch.tensor([noise.canvas_key(seed, index)], device=device)
    none = torch.zeros_like(frozen)
    return Canvas(key, zero, zero, zero, tokens, tokens, frozen, zeros, zeros, zeros, none)


def _join_soft(parts: Sequence[Canvas]) -> Tensor | None:
    known = next((part.soft for part in parts if part.soft is not None), None)
    if known is None:
        return None
    rows = (p.soft if p.soft is not None else known.new_zeros(len(p), *known.shape[1:]) for p in parts)
    return torch.cat(list(rows))


__all__ = ["STOPS", "Canvas", "Progress", "progress", "start_canvas"]
