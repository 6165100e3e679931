"""A text with holes in tokens: what stands at the edges of its holes, and how long these may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..constrain.holes import TokenHole, TokenTemplate, check_holes, longest
from .rounds import FillTask, Machine
from .seams import GivenText


def token_template(machine: Machine, task: FillTask, given: Sequence[GivenText]) -> TokenTemplate:
    """All holes with text behind them have a limit. Raises UsageError for one that may not be so long."""
    holes = tuple(_hole(machine, task, given, i) for i in range(len(given) - 1))
    made = TokenTemplate(tuple(text.tokens for text in given), holes, open=not task.template.given[-1])
    check_holes(made, machine.places)
    bounded = (_bounded(made, i, machine.places, task.params.max_new_tokens) for i in range(len(holes)))
    return replace(made, holes=tuple(bounded))


def _bounded(template: TokenTemplate, index: int, places: int, most: int) -> TokenHole:
    hole = template.holes[index]
    if template.is_open(index):
        return hole
    wanted = most if hole.most is None else hole.most
    return replace(hole, most=min(wanted, longest(template, index, places)))


def _hole(machine: Machine, task: FillTask, given: Sequence[GivenText], index: int) -> TokenHole:
    seams, hole = machine.seams, task.template.holes[index]
    before, behind = given[index], given[index + 1]
    edges = seams.before(before), seams.behind(behind)
    most = task.most if hole.most is None else hole.most
    return TokenHole(
        most=most,
        wish=_wish(machine, task, index, most),
        between=seams.text,
        before=edges[0],
        behind=edges[1],
        joined=seams.joined(before, behind, edges),
    )


def _wish(machine: Machine, task: FillTask, index: int, most: int | None) -> int | None:
    """Places to keep free for a hole: as many as it is to have, or its guess has; of the limit of all
    holes no more than a quarter of the canvas."""
    hole = task.template.holes[index]
    if hole.draft is not None:
        return max(hole.most or 0, len(machine.tokenizer.encode(hole.draft)))
    if hole.most is not None:
        return hole.most
    return None if most is None else min(most, machine.canvas_length // 4)


__all__ = ["token_template"]
