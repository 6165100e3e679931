"""Decisions for one caller: options checked, the state's prompt put together, a plan's rows run."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..decisions.answers import Decisions
from ..decisions.calibration import LETTERS, VALUES
from ..decisions.plan import (
    MOST_ORDERS,
    MOST_SAMPLES,
    MOST_STEPS,
    DecisionMachine,
    DecisionPlan,
    DecisionTask,
    RowOutcome,
    StatePrompt,
)
from ..decisions.prompt import BETWEEN, state_text
from ..decisions.questions import MOST_QUESTIONS, Question
from ..engine.canvases import SHORTEST
from ..errors import UsageError
from ..options import DecideOptions
from ..text.markers import Special
from ..text.turn_marks import answer_end
from .options import check_names, turns_of

if TYPE_CHECKING:
    from .session import Session

Questions = Question | Sequence[Question] | Mapping[str, Question]


def plan_decide(session: Session, state: Any, questions: Questions, options: DecideOptions) -> DecisionPlan:
    """Raises UsageError naming the option at fault."""
    check_names(options, DecideOptions.__annotations__)
    asked, names = _listed(questions)
    labels, text = _labels(session, options.get("labels")), _state(state, options.get("instructions"))
    if labels == VALUES and not text and not all(question.instructions for question in asked):
        raise UsageError("neither the state nor the instructions say anything: give one of them", "state")
    task = DecisionTask(
        _state_prompt(session, text),
        asked,
        names,
        samples=_within(options, "samples", MOST_SAMPLES),
        steps=_within(options, "steps", MOST_STEPS),
        orders=_orders(options.get("permute", False)),
        joint=_flag(options, "joint"),
        causal=_is_causal(options),
        labels=labels,
        calibration=session.calibration,
        has_state=bool(text),
        adapters=session.adapters.uses(options.get("adapter")),
    )
    return DecisionPlan(_machine_of(session), task)


def run_plans(session: Session, plans: Sequence[DecisionPlan]) -> list[Decisions]:
    """Runs the rows of plans together."""
    requests = [request for plan in plans for request in plan.requests]
    outcomes = [RowOutcome() for _ in requests]
    rows = session.engine.scheduler.max_rows
    with closing(session.driver.events_of_many(requests, rows)) as events:
        for index, event in events:
            outcomes[index].add(event)
    rest = iter(outcomes)
    return [plan.decisions(list(itertools.islice(rest, len(plan.requests)))) for plan in plans]


def _listed(questions: Any) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """The questions, and their names where they have some."""
    if isinstance(questions, Question):
        return (questions,), ()
    names: tuple[str, ...] = ()
    if isinstance(questions, Mapping):
        names = tuple(questions)
        questions = questions.values()
    if not isinstance(questions, Iterable) or isinstance(questions, str):
        raise UsageError(
            f"questions should be questions, or a table of them, found {type(questions).__name__}",
            "questions",
        )
    asked = tuple(questions)
    if not 1 <= len(asked) <= MOST_QUESTIONS:
        raise UsageError(f"there are {len(asked)} questions: ask 1 to {MOST_QUESTIONS}", "questions")
    for number, question in enumerate(asked):
        if not isinstance(question, Question):
            raise UsageError(
                f"question {number} should be made by predicate, choice or score, found "
                f"{type(question).__name__}",
                "questions",
            )
    return asked, names


def _state(state: Any, instructions: str | None) -> str:
    text = state_text(state)
    if instructions is None or instructions == "":
        return text
    if not isinstance(instructions, str):
        raise UsageError(
            f"instructions should be a text, found {type(instructions).__name__}", "instructions"
        )
    return instructions + BETWEEN + text if text else instructions


def _state_prompt(session: Session, text: str) -> StatePrompt:
    """The prompt with a state in the user's turn, cut where a question is to stand: so all questions have the
    same tokens before them, whatever they say."""
    # No text holds its own digest.
    mark = "Q" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
    pieces = session.template.render(list(turns_of(text + mark, None)))
    places = [i for i, piece in enumerate(pieces) if not isinstance(piece, Special) and mark in piece]
    if len(places) != 1 or pieces[places[0]].count(mark) != 1:
        raise UsageError("the model's chat template does not show a message once: nothing can be asked")
    before, behind = pieces[places[0]].split(mark)
    start = session.tokenizer.encode_pieces([*pieces[: places[0]], before])
    rest = session.tokenizer.encode_pieces([behind, *pieces[places[0] + 1 :]])
    return StatePrompt(tuple(start), tuple(rest))


def _machine_of(session: Session) -> DecisionMachine:
    config, tokenizer = session.engine.config, session.tokenizer
    ends = session.eos_token_ids or tokenizer.eos_ids
    if not ends:
        raise UsageError("this model has no token that ends a text: nothing can be decided")
    whole = config.canvas_length
    fixed = config.facts.commit_attention == "block" or config.facts.logit_shift > 0
    return DecisionMachine(
        tokenizer,
        lambda text: session.seams.read(text).tokens,
        whole if fixed else min(SHORTEST, whole),
        whole,
        session.engine.block,
        answer_end(tokenizer, ends),
        config.pad_token_id,
        session.merge(None, {}),
    )


def _labels(session: Session, given: Any) -> str | tuple[str, ...]:
    if given is None:
        return session.calibration.labels
    if isinstance(given, str):
        if given not in (LETTERS, VALUES):
            raise UsageError(
                f'labels = {given!r}: choose "{LETTERS}", "{VALUES}" or give a list of labels', "labels"
            )
        return given
    if not isinstance(given, Sequence) or not all(isinstance(label, str) and label for label in given):
        raise UsageError(f'labels should be "{LETTERS}", "{VALUES}" or a list of texts', "labels")
    if len(set(given)) < len(given):
        raise UsageError("labels has one twice: each must differ", "labels")
    return tuple(given)


def _within(options: DecideOptions, name: str, most: int) -> int:
    value: Any = options.get(name, 1)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} should be a whole number, found {value!r}", name)
    if not 1 <= value <= most:
        raise UsageError(f"{name} = {value} is out of range: 1 to {most}", name)
    return value


def _orders(given: Any) -> int:
    if isinstance(given, bool):
        return MOST_ORDERS if given else 1
    return _within({"permute": given}, "permute", MOST_ORDERS)


def _is_causal(options: DecideOptions) -> bool:
    """Whether the causal reader is asked, which has no noise, no steps and no canvas."""
    reader = options.get("reader", "canvas")
    if reader not in ("canvas", "causal"):
        raise UsageError(f"reader = {reader!r}: choose canvas or causal", "reader")
    if reader == "causal":
        for name in ("samples", "steps", "joint"):
            value = options.get(name)
            if value is True or value not in (None, False, 1):
                raise UsageError(f"{name} is of canvases, and the causal reader has none: leave it out", name)
    return reader == "causal"


def _flag(options: DecideOptions, name: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise UsageError(f"{name} should be true or false, found {value!r}", name)
    return value


__all__ = ["Questions", "plan_decide", "run_plans"]
