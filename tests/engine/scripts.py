"""A tiny model whose canvases say what a test wants: the loop, its limits and its events are the engine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from canvaslm.engine import Engine
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.types import Committed, Event, Finished, Request, Settled

# What a canvas says, given how many are done. The last token fills its other places; what has no place is
# not said.
Script = Callable[[int], Sequence[int]]


def scripted_engine(model: DiffusionGemma, scripts: Sequence[Script], **options: Any) -> Engine:
    """Request number i follows script i, whatever is forbidden. What is given stands all the same."""
    engine = Engine(model, **options)
    run = engine.runner.run

    def scripted(rows: list[Any]) -> Any:
        made = run(rows)
        said = [replace(one, prediction=_said(one, scripts)) for one in made.denoised]
        return replace(made, denoised=said)

    engine.runner.run = scripted  # type: ignore[method-assign]
    return engine


def _said(said: Any, scripts: Sequence[Script]) -> Any:
    drafts = []
    for row in said.rows:
        sequence = row.sequence
        tokens = list(scripts[sequence.id](len(sequence.reports)))
        tokens += tokens[-1:] * (sequence.live_places - len(tokens))
        drafts.append(torch.tensor(tokens[: sequence.live_places]))
    sure = torch.zeros_like(said.prediction.entropy)
    return replace(said.prediction, argmax=torch.stack(drafts), entropy=sure)


def answer_of(engine: Engine, request: Request) -> tuple[list[list[int]], Finished]:
    """What each canvas commits, early or not, and the end."""
    engine.submit(request)
    events: list[Event] = []
    while engine.has_work:
        events += engine.step()
    end = events[-1]
    assert isinstance(end, Finished), end
    canvases: list[list[int]] = [[] for _ in end.canvases]
    for event in events:
        if isinstance(event, Settled | Committed):
            canvases[event.canvas] += event.tokens
    return canvases, end


__all__ = ["Script", "answer_of", "scripted_engine"]
