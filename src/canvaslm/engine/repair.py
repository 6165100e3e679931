"""Canvases that a constraint had to change are denoised again, the start of what it made of them given.

Up to the first token that it changed, and with that: behind it the model decides anew, knowing the change.
The next readout keeps what is given. Whether it helps is measured in docs/log.md.
"""

from __future__ import annotations

from ..types import Projection
from .sequence import Sequence


def to_repair(sequence: Sequence, draft: list[int], made: Projection) -> dict[int, int]:
    """{place: token} to denoise the canvas again with; nothing where it stands as it is made.

    That is where the constraint changed nothing, where the change lies behind the canvas's last place, and
    where the canvas was repaired often enough. Places of requests with given text are not ours to give.
    """
    request = sequence.request
    if request.given or request.draft or sequence.repaired >= sequence.params.repair:
        return {}
    pairs = enumerate(zip(made.tokens, draft, strict=False))
    changed = next((place for place, (token, drawn) in pairs if token != drawn), None)
    if changed is None:
        return {}
    return dict(enumerate(made.tokens[: changed + 1], sequence.first_place))


__all__ = ["to_repair"]
