"""Measurements of a session in this process, as documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from ..errors import UsageError
from ..session import Session
from ..types import Params
from .answers import answer_report, costs_report, measure_costs
from .arithmetic import held, is_packed
from .document import Document, document
from .habits import Habit
from .load import measure_load
from .machine import Probes, describe_machine
from .memory import Memory
from .plan import LoadOptions, Tick
from .prompts import Prompt
from .steps import (
    StepTimes,
    Tell,
    contexts_that_fit,
    measure_steps,
    step_report,
    warm_up,
)

P = ParamSpec("P")


@dataclass(frozen=True)
class StepOptions:
    """`rows` empty: no sweep over rows; `contexts` None: as many of 128 and 512 tokens as fit the model."""

    contexts: tuple[int, ...] | None = None
    steps: int = 4
    rows: tuple[int, ...] = ()
    parts: bool = True  # False: the sweep over rows alone

    def chosen(self, session: Session) -> list[int]:
        """The context lengths to measure. Raises UsageError where none fits."""
        engine = session.engine
        fitting = contexts_that_fit(engine, self.contexts or (128, 512))
        if not fitting or (self.contexts and len(fitting) < len(self.contexts)):
            room = engine.max_context - engine.config.canvas_length
            raise UsageError(f"the model has room for contexts of at most {room} tokens", "context")
        return fitting


def _with_its_threads(
    make: Callable[Concatenate[Session, P], Document],
) -> Callable[Concatenate[Session, P], Document]:
    """Measures with as many threads as the session's own runs have."""

    @wraps(make)
    def made(session: Session, /, *rest: P.args, **options: P.kwargs) -> Document:
        with session.threads.in_use():
            return make(session, *rest, **options)

    return made


@_with_its_threads
def load_document(
    session: Session,
    prompts: Sequence[Prompt],
    options: LoadOptions,
    *,
    ready: dict[str, float | None],
    probes: Probes | None = None,
    tick: Tick = lambda count: None,
) -> Document:
    """Answers under load. `ready` is reported as it is; without `probes` no shares are."""
    after_loading = Memory.of()
    if probes is not None:
        probes.start()
    runs = measure_load(session, prompts, options, tick)
    memory = _memory(session, after_loading, Memory.of())
    ceilings = _finish(session, probes)
    results = {
        "runs": [{**summary, "work": work.report(summary["wall_s"], ceilings)} for summary, work in runs],
        "ready": ready,
        "memory": memory,
        **_ceilings(probes, ceilings),
    }
    return _document("load", session, options.to_dict(len(prompts)), results)


@_with_its_threads
def step_document(
    session: Session,
    options: StepOptions,
    *,
    ready: dict[str, float | None],
    params: Params | None = None,
    probes: Probes | None = None,
    tell: Tell = lambda text: None,
) -> Document:
    """A denoise step at each context length by part, and at each number of rows as a whole."""
    model = session.engine.runner.model
    contexts = options.chosen(session)
    after_loading = most = Memory.of()
    tell("warming up")
    warm_up(session.engine)
    if probes is not None:
        probes.start()

    def measure(context: int, rows: int, parts: bool) -> StepTimes:
        nonlocal most
        found = measure_steps(
            session.engine, context, rows=rows, steps=options.steps, params=params, parts=parts, tell=tell
        )
        most = _larger(most, Memory.of())
        return found

    by_context = [measure(context, 1, True) for context in contexts] if options.parts else []
    by_rows = [measure(contexts[0], rows, False) for rows in options.rows]
    memory = _memory(session, after_loading, most)
    if probes is not None:
        tell("measuring the machine")
    ceilings = _finish(session, probes)
    results = {
        "contexts": [step_report(model, times, ceilings) for times in by_context],
        "rows": [step_report(model, times, ceilings) for times in by_rows],
        "ready": ready,
        "memory": memory,
        "notes": sorted({note for times in by_context for note in times.notes}),
        **_ceilings(probes, ceilings),
    }
    settings = {**asdict(options), "contexts": contexts, "params": None if params is None else asdict(params)}
    return _document("steps", session, settings, results)


@_with_its_threads
def answers_document(
    session: Session,
    lengths: Sequence[int],
    habits: Sequence[Habit],
    *,
    ready: dict[str, float | None],
    context: int = 128,
    repeats: int = 3,
    tell: Tell = lambda text: None,
) -> Document:
    """Seconds for answers of these lengths in tokens, by preset: costs of passes times how many are taken."""
    engine = session.engine
    if not contexts_that_fit(engine, [context]):
        context = max(1, engine.max_context - engine.config.canvas_length)
    tell("warming up")
    warm_up(engine)
    costs = measure_costs(engine, context, repeats=repeats, tell=tell)
    results = {
        "answers": answer_report(costs, habits, lengths),
        "costs": costs_report(costs),
        "habits": [asdict(habit) for habit in habits],
        "ready": ready,
    }
    settings = {"answer": list(lengths), "context": context, "repeats": repeats}
    return _document("answers", session, settings, results)


def _finish(session: Session, probes: Probes | None) -> Any:
    if probes is None:
        return None
    probes.finish()
    model = session.engine.runner.model
    kind = "int8" if is_packed(model) else "bfloat16" if "bfloat16" in str(model.dtype) else "float32"
    return probes.ceilings(kind)


def _ceilings(probes: Probes | None, ceilings: Any) -> dict[str, Any]:
    return {
        "probes": None if probes is None else probes.to_dict(),
        "ceilings": None if ceilings is None else asdict(ceilings),
    }


def _larger(a: Memory, b: Memory) -> Memory:
    """Field by field the larger."""
    pick: Callable[[Any, Any], Any] = lambda x, y: y if x is None else x if y is None else max(x, y)  # noqa: E731
    return Memory(**{name: pick(value, getattr(b, name)) for name, value in asdict(a).items()})


def _memory(session: Session, after_loading: Memory, most: Memory) -> dict[str, Any]:
    """Of this process. `anonymous_beyond_weights`: what runs take, less the weights
    that are in memory for good."""
    weights = held(session.engine.runner.model)
    beyond = None if most.anonymous is None else most.anonymous - weights.memory
    return {
        "weights": asdict(weights),
        "after_loading": after_loading.to_dict(),
        "most_seen": most.to_dict(),
        "anonymous_beyond_weights": beyond,
    }


def _document(kind: str, session: Session, settings: dict[str, Any], results: dict[str, Any]) -> Document:
    runner, config = session.engine.runner, session.engine.config
    return document(
        kind,
        machine=describe_machine(runner.device),
        model={
            "name": session.name,
            "packed": is_packed(runner.model),
            "dtype": str(runner.dtype).removeprefix("torch."),
            "kv_type": str(runner.kv_type).removeprefix("torch."),
            "exact": runner.exact,
            "deterministic": runner.deterministic,
            "weight_bytes": held(runner.model).total,
            "layers": config.num_layers,
            "vocabulary": config.vocab_size,
            "canvas_length": config.canvas_length,
            "notes": list(session.notes),
        },
        settings=settings,
        results=results,
    )


__all__ = ["StepOptions", "answers_document", "load_document", "step_document"]
