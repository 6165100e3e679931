"""Canvases on which each place takes only tokens that its constraint can have there: `Params.mask`."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import UsageError
from ..model import ModelConfig
from ..types import Masking, Params, Request
from .canvases import given
from .rules import RowRules, masked
from .sequence import Sequence


def check_mask(request: Request, params: Params) -> None:
    """Raises UsageError where masks are asked for of a constraint that has none."""
    if params.mask == "off" or request.constraint is None or isinstance(request.constraint, Masking):
        return
    raise UsageError(
        "mask = denoise is possible with patterns, choices, tools and most schemas; what this answer has to "
        "be is beyond an automaton, as grammars are: leave out mask",
        "mask",
    )


def canvas_rules(sequence: Sequence, config: ModelConfig, device: torch.device) -> RowRules | None:
    """The rules of the canvas that is laid out next: as they are, or with the masks of its places."""
    constraint, request = sequence.request.constraint, sequence.request
    if sequence.params.mask == "off" or not isinstance(constraint, Masking):
        return sequence.rules
    cpu, fixed, start = torch.device("cpu"), given(sequence), sequence.start
    # Made anew: what is there has the masks of the canvas before, and may be on a device.
    rules = RowRules.of(request, sequence.params.min_new_tokens, config, cpu) or RowRules((), None, 0)
    tokens = [fixed.get(place) for place in range(sequence.live_places)]
    masks = constraint.masks(sequence.constraint_state, tokens, sequence.room)
    rows = rules.places(len(sequence.output), sequence.first_place, sequence.live_places, start)
    found = {start + place: mask for place, mask in enumerate(masks) if mask is not None}
    made = masked(rules, request, found, {start + place: row for place, row in enumerate(rows)}, config)
    return made if made.bits is None else replace(made, bits=made.bits.to(device))


__all__ = ["canvas_rules", "check_mask"]
