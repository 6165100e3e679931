"""When a canvas may end before its last step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..types import Params


def stable_and_confident(
    history: tuple[Tensor, ...],
    argmax: Tensor,
    entropy: Tensor,
    params: Params,
    eos_token_ids: Sequence[int] = (),
) -> bool:
    """The argmax canvas equals that of each of the last `stability_threshold` steps, and its mean entropy is below
    `confidence_threshold` (reference: `StableAndConfidentStoppingCriteria`).

    history: argmax canvases [C] of earlier steps, latest last; argmax, entropy [C]: this step's. With
    `eos_aware_stopping` both rules look at the places up to and including the draft's first EOS alone: what follows
    is never read.
    """
    wanted = params.stability_threshold
    places = slice(None)
    if params.eos_aware_stopping:
        places = slice(first_end(argmax, eos_token_ids))
    if len(history) < wanted or not float(entropy[places].mean()) < params.confidence_threshold:
        return False
    recent = history[len(history) - wanted :]
    return all(bool((argmax[places] == earlier[places]).all()) for earlier in recent)


def first_end(tokens: Tensor, eos_token_ids: Sequence[int]) -> int:
    """How many places [C] there are up to and including the first EOS; all, if there is none."""
    ends = torch.isin(tokens, torch.tensor(list(eos_token_ids), device=tokens.device)).nonzero()
    return int(ends[0]) + 1 if len(ends) else len(tokens)


__all__ = ["first_end", "stable_and_confident"]
