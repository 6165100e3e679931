"""Decisions over the bridge, and what both of their dialects' bodies may say beside the questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..errors import CanvasError
from .batches import Batches
from .fields import WHOLE, Open
from .limits import MAX_STRINGS
from .problems import problem_of
from .service import GenerationRequest, Service

if TYPE_CHECKING:
    from ..decisions.answers import Decision, Decisions
    from ..decisions.plan import DecisionPlan, RowOutcome
    from ..decisions.questions import Question
    from ..options import DecideOptions
    from ..types import AdapterUse

_Labels = str | Annotated[list[str], Field(fail_fast=True, max_length=2 * MAX_STRINGS)]


class DecideFields(Open):
    """Options of `Session.decide`, all off by default."""

    samples: Annotated[int, Field(ge=1, le=16), WHOLE] | None = Field(
        None, description="Draws of noise that are averaged."
    )
    steps: Annotated[int, Field(ge=1, le=8), WHOLE] | None = Field(
        None, description="Denoise steps of each canvas."
    )
    permute: bool | Annotated[int, Field(ge=1, le=16), WHOLE] | None = Field(
        None, description="Orders of the options that are averaged; true: as many as there are."
    )
    joint: bool | None = Field(None, description="Questions stand on one canvas, and see each other.")
    labels: _Labels | None = Field(
        None, description='"letters", "values" (options are their own labels) or labels of one token each.'
    )
    reader: Literal["canvas", "causal"] | None = Field(
        None, description="Who answers: a canvas after a step, or the model as a causal language model."
    )

    def chosen(self) -> DecideOptions:
        """Those that the client set."""
        names = DecideFields.model_fields
        options: Any = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        made: DecideOptions = options
        return made


@dataclass(frozen=True)
class DecidingRequest:
    """Questions about a state, and options as in `Session.decide`. `state_name`: what the client calls the
    state."""

    state: str
    questions: Sequence[Question] | Mapping[str, Question]
    options: DecideOptions
    state_name: str = "state"
    model: str | None = None  # the name that the client has for it, of an adapter maybe


async def decide(service: Service, asked: DecidingRequest) -> Decisions:
    """The answers. Raises Problem."""
    batches: Batches | None = None
    try:
        served = await service.adapters.choose(asked.model)
        plan, outcomes = await service.work(_planned, service, asked, served.adapters)
        batches = Batches(service, plan.requests)
        await batches.start()
        async for index, event in batches:
            outcomes[index].add(event)
        decisions: Decisions = await service.work(plan.decisions, outcomes)
        return decisions
    except CanvasError as error:
        raise problem_of(error, {"state": asked.state_name, "messages": asked.state_name}) from error
    finally:
        if batches is not None:
            batches.close()


def _planned(
    service: Service, asked: DecidingRequest, adapters: tuple[AdapterUse, ...]
) -> tuple[DecisionPlan, list[RowOutcome]]:
    from ..decisions.plan import RowOutcome

    service.check_size(GenerationRequest(prompts=[asked.state]))
    options: Any = {**asked.options, "adapter": adapters}
    plan = service.session.plan_decide(asked.state, asked.questions, options)
    return plan, [RowOutcome() for _ in plan.requests]


def diagnosed(decision: Decision) -> dict[str, Any]:
    """What is to be known of an answer besides it."""
    return {"label_mass": decision.label_mass, "argmax_is_label": decision.argmax_is_label}


__all__ = ["DecideFields", "DecidingRequest", "decide", "diagnosed"]
