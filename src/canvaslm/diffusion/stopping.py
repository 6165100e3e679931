"""When a canvas may end before its last step."""

from __future__ import annotations

from torch import Tensor

from ..types import Params


def stable_and_confident(
    history: tuple[Tensor, ...], argmax: Tensor, mean_entropy: float, params: Params
) -> bool:
    """The argmax canvas equals that of each of the last `stability_threshold` steps, and its mean entropy is below
    `confidence_threshold` (reference: `StableAndConfidentStoppingCriteria`).

    history: argmax canvases [C] of earlier steps, latest last; argmax [C]: this step's.
    """
    wanted = params.stability_threshold
    if len(history) < wanted or not mean_entropy < params.confidence_threshold:
        return False
    return all(bool((argmax == earlier).all()) for earlier in history[len(history) - wanted :])


__all__ = ["stable_and_confident"]
