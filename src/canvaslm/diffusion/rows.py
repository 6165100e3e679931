"""The sampling parameters of many rows, as tensors beside their canvases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from .params import Params

# All parameters that are numbers (or flags), in a fixed order. A seed needs 64 bits and lives in the canvas.
_NUMBERS = tuple(f.name for f in fields(Params) if isinstance(f.default, (bool, int, float)))
_COLUMN = {name: index for index, name in enumerate(_NUMBERS)}
_NO_TOKEN = -1


@dataclass(frozen=True)
class RowParams:
    """The parameters of R rows where their canvases are. Made once for a request and joined for each pass.

    float64 holds every one of them exactly: whole numbers stay below 2^53.
    """

    numbers: Tensor  # float64 [R, parameters]
    eos: Tensor  # int64 [R, E], each row's end-of-sequence tokens, filled up with -1
    samplers: tuple[str, ...]  # R names
    sends_early: bool  # whether any row has `settle_steps`
    eos_aware: bool  # whether any row has `eos_aware_stopping`
    grows: bool = False  # whether any row has `first_places`
    keeps: bool = False  # whether any row has `keep_steps`

    @classmethod
    def of(
        cls, params: Params, eos_token_ids: Sequence[int] = (), device: torch.device | str = "cpu"
    ) -> RowParams:
        """Those of one row."""
        values = [[float(getattr(params, name)) for name in _NUMBERS]]
        return cls(
            torch.tensor(values, dtype=torch.float64, device=device),
            torch.tensor([list(eos_token_ids)], dtype=torch.int64, device=device),
            (params.sampler,),
            params.settle_steps > 0,
            params.eos_aware_stopping,
            params.first_places > 0,
            params.keep_steps > 0,
        )

    @classmethod
    def join(cls, parts: Sequence[RowParams]) -> RowParams:
        """The rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        most = max(part.eos.shape[1] for part in parts)
        return cls(
            torch.cat([part.numbers for part in parts]),
            torch.cat([F.pad(p.eos, (0, most - p.eos.shape[1]), value=_NO_TOKEN) for p in parts]),
            tuple(name for part in parts for name in part.samplers),
            any(part.sends_early for part in parts),
            any(part.eos_aware for part in parts),
            any(part.grows for part in parts),
            any(part.keeps for part in parts),
        )

    def column(self, name: str, like: Tensor | None = None) -> Tensor:
        """One parameter [R, 1]: float64, or in the type of `like`, with which it shall be compared."""
        values = self.numbers[:, _COLUMN[name], None]
        return values if like is None else values.to(like.dtype)

    def using(self, sampler: str) -> Tensor:
        """Which rows have this sampler: bool [R, 1]."""
        uses = [[name == sampler] for name in self.samplers]
        return torch.tensor(uses, device=self.numbers.device)


__all__ = ["RowParams"]
