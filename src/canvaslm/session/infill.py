"""Filling holes for one caller: options checked, the prompt put together, a plan's rounds run by a driver."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..diffusion import PARAMETERS
from ..errors import UsageError
from ..options import FillOptions
from ..text.turn_marks import answer_end
from ..types import Draft, Filled, Params
from .filling import FillPlan
from .options import check_names, share_of_noise
from .rounds import FillTask, Machine, Outcome, Round
from .template import Hole, Template, check_text

if TYPE_CHECKING:
    from .session import Session

Spans = Sequence[tuple[int, int]]
ASKED = (
    "Write this text with what is missing at <hole>, as it is but for that. "
    "Answer with the whole text and nothing else.\n\n"
)
EDITED = (
    "Change only what stands between <edit> and </edit>. Answer with the whole text, without these marks."
)


def edit_template(text: str, spans: Spans) -> Template:
    """Holes where a text is to be written anew. Raises UsageError for spans that overlap, or lie outside."""
    check_text(text, "text")
    edges = [0]
    for start, end in spans:
        if not edges[-1] <= start <= end <= len(text):
            raise UsageError(
                f"the span {start} to {end} is not in order, or outside the {len(text)} characters of the "
                "text: give spans (start, end) from left to right that do not overlap",
                "spans",
            )
        edges += [start, end]
    given = tuple(text[a:b] for a, b in zip(edges[::2], [*edges[1::2], len(text)], strict=True))
    return Template(given, (Hole(),) * len(spans))


def edit_prompt(text: str, spans: Spans, instruction: str, *, demo: bool) -> str:
    """The user's turn of an edit: what is wanted, and the text with what may change marked.

    The demo model knows its own tasks alone: it gets what is wanted and nothing else.
    """
    if demo:
        return instruction
    marked, at = "", 0
    for start, end in spans:
        marked += text[at:start] + "<edit>" + text[start:end] + "</edit>"
        at = end
    return f"{instruction}\n{EDITED}\n\n{marked}{text[at:]}"


def plan_fill(
    session: Session, template: Template, options: FillOptions, *, drafts: bool = False
) -> FillPlan:
    """Raises UsageError naming the option at fault."""
    check_names(options, FillOptions.__annotations__)
    template = _with_drafts(template, options.get("draft"))
    template.check()
    params = session.merge(options.get("preset"), {name: options.get(name) for name in PARAMETERS})
    if params.seed is None:
        params = replace(params, seed=secrets.randbits(32))
    prompt = session.encode(
        _prompt(session, template, options.get("instruction")),
        system=options.get("system"),
        thinking=options.get("thinking", False),
    )
    task = FillTask(
        tuple(prompt),
        template,
        params,
        most=params.max_new_tokens if options.get("max_new_tokens") is not None else None,
        stop=options.get("stop"),
        draft_noise=share_of_noise(options.get("draft_noise")),
        drafts=drafts,
        adapters=session.adapters.uses(options.get("adapter")),
    )
    return FillPlan(machine_of(session, params), task)


def run_fill(session: Session, plan: FillPlan) -> Generator[Draft, None, Filled]:
    """Runs a plan; yields drafts with the whole text, if the plan was made with `drafts`."""
    rounds = plan.rounds()
    asked = next(rounds)
    while True:
        outcomes = [Outcome() for _ in asked.requests]
        yield from _run_round(session, plan, asked, outcomes)
        try:
            asked = rounds.send(outcomes)
        except StopIteration as end:
            filled: Filled = end.value
            return filled


def filled_by(running: Generator[Draft, None, Filled]) -> Filled:
    """What `run_fill` comes to, its drafts passed over."""
    while True:
        try:
            next(running)
        except StopIteration as end:
            filled: Filled = end.value
            return filled


def machine_of(session: Session, params: Params) -> Machine:
    """The facts that plans need."""
    config, tokenizer = session.engine.config, session.tokenizer
    ends = session.eos_token_ids or tokenizer.eos_ids
    if not ends:
        raise UsageError("this model has no token that ends a text: nothing can be filled in", "template")
    return Machine(
        tokenizer, session.seams, params.canvas_length or config.canvas_length, session.engine.block,
        config.vocab_size, answer_end(tokenizer, ends), ends,
    )  # fmt: skip


def _run_round(
    session: Session, plan: FillPlan, asked: Round, outcomes: list[Outcome]
) -> Generator[Draft, None, None]:
    """All requests of a round together; drafts of the first are shown."""
    with closing(session.driver.events_of_many(asked.requests, len(asked.requests))) as events:
        for index, event in events:
            if isinstance(event, Draft):
                if index == 0:
                    yield replace(event, text=plan.whole(plan.draft_holes(event)))
                continue
            outcomes[index].add(event)


def _prompt(session: Session, template: Template, instruction: str | None) -> str:
    """The user's turn. Without an instruction the demo model, which was trained so, gets the text before the
    first hole; others are asked for the whole text, of which a canvas may show less."""
    if instruction is not None:
        check_text(instruction, "instruction")
        return instruction
    if session.is_demo:
        return template.given[0]
    return ASKED + template.whole(("<hole>",) * len(template.holes))


def _with_drafts(template: Template, draft: str | Sequence[str | None] | None) -> Template:
    if draft is None:
        return template
    drafts: Sequence[Any] = [draft] if isinstance(draft, str) else list(draft)
    if len(drafts) != len(template.holes):
        raise UsageError(
            f"draft has {len(drafts)} texts for {len(template.holes)} holes: give one for each, or None",
            "draft",
        )
    for each in drafts:
        if each is not None:
            check_text(each, "draft")
    holes = tuple(replace(hole, draft=each) for hole, each in zip(template.holes, drafts, strict=True))
    return replace(template, holes=holes)


__all__ = [
    "Spans",
    "edit_prompt",
    "edit_template",
    "filled_by",
    "machine_of",
    "plan_fill",
    "run_fill",
]
