"""When a canvas may end before its last step."""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import RowParams


def stable_and_confident(argmax: Tensor, unchanged: Tensor, entropy: Tensor, params: RowParams) -> Tensor:
    """Which rows may end: bool [R]. The argmax canvas equals that of each of the last `stability_threshold`
    steps, and its mean entropy is below `confidence_threshold` (reference:
    `StableAndConfidentStoppingCriteria`).

    argmax, unchanged, entropy [R, C]: this step's; see Canvas. With `eos_aware_stopping` both rules look at
    the places up to and including the draft's first EOS alone: what follows is never read.
    """
    limit = params.column("confidence_threshold")[:, 0]
    if not params.eos_aware:
        return (unchanged >= params.column("stability_threshold")).all(-1) & (
            entropy.mean(-1).double() < limit
        )
    within = ~params.column("eos_aware_stopping").bool() | up_to_first_end(argmax, params.eos)
    stable = ((unchanged >= params.column("stability_threshold")) | ~within).all(-1)
    # Of all places in the order in which the reference sums; of some in float64, where
    # the order hardly matters.
    some = torch.where(within, entropy.double(), 0.0).sum(-1) / within.sum(-1)
    mean = torch.where(within.all(-1), entropy.mean(-1).double(), some)
    return stable & (mean < limit)


def all_accepted(argmax: Tensor, accepted: Tensor, params: RowParams) -> Tensor:
    """Which rows may end where accepted places stay: bool [R]. Every place is accepted, or, with
    `eos_aware_stopping`, every one up to and including the draft's first EOS.
    """
    if not params.eos_aware:
        return accepted.all(-1)
    within = ~params.column("eos_aware_stopping").bool() | up_to_first_end(argmax, params.eos)
    return (accepted | ~within).all(-1)


def ends_early(argmax: Tensor, params: RowParams) -> Tensor:
    """Whether the drafts [R, C] end before the last quarter of their canvas: bool [R]."""
    places = argmax.shape[-1]
    within = argmax[:, : places - places // 4]
    return (within[..., None] == params.eos[:, None]).any(-1).any(-1)


def up_to_first_end(tokens: Tensor, eos: Tensor) -> Tensor:
    """Which places [R, C] come before a row's first EOS, or are it: all, where there is none.
    eos [R, E]: see RowParams."""
    ends = (tokens[..., None] == eos[:, None]).any(-1)
    return ends.cumsum(-1) - ends.long() == 0


__all__ = ["all_accepted", "ends_early", "stable_and_confident", "up_to_first_end"]
