"""`canvaslm calibrate`: how right the probabilities of decisions are, and temperatures that make them so."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..decisions.calibration import Calibration
from ..decisions.fitting import HOTTEST, Calibrated, Estimate, LabelledAnswer, calibrated
from ..decisions.labelled import LabelledQuestion, labelled_questions
from ..decisions.questions import KINDS, QuestionKind
from ..errors import UsageError
from ..files import check_output, write_text
from .decide_options import QuestionReading
from .fill import print_object
from .given_text import exact_text
from .options import Loading, grouped
from .output import log

if TYPE_CHECKING:
    from ..session import Session

_FEWEST = 20  # answers of a kind from which a temperature is fitted
_AT_BOUND = 0.95  # share of the hottest temperature from which a fit has not found one
_AT_ONCE = 64  # questions that are planned together


@grouped
def command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Lines of JSON: state, question and answer; - reads standard input."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write the temperatures there: decision.json."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_object: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    reading: QuestionReading = QuestionReading(),
    loading: Loading = Loading(),
) -> None:
    """Fit a temperature for each kind of question to labelled answers.

    A line of the file: {"state": "...", "question": {"type": "predicate", "instructions": "..."}, "answer":
    true}, the question as for HTTP. Figures with a temperature are of answers that it was not fitted to:
    each half has that of the other. Intervals are of 95 %, by bootstrap. The file that is written belongs
    beside the model's weights, as decision.json; docs/decisions.md.

    Examples:
      canvaslm calibrate labelled.jsonl -m model.gguf
      canvaslm calibrate labelled.jsonl -m folder -o folder/decision.json --samples 4
    """
    if reading.joint:
        raise UsageError("calibrate asks each question for itself: leave out --joint", "joint")
    asked = labelled_questions(exact_text(file, "file"), "standard input" if file == "-" else file)
    if out is not None:
        check_output(out, force=force)
    session = loading.open(as_object)
    stored, session.calibration = session.calibration, replace(session.calibration, temperature={})
    found = fitted(answered(session, asked, reading))
    if not found:
        raise UsageError(f"{file}: no kind of question has {_FEWEST} answers: label more", "file")
    made = replace(stored, temperature={**stored.temperature, **{k: c.temperature for k, c in found.items()}})
    if reading.labels is not None:
        made = replace(made, labels=reading.labels)
    if as_object:
        print_object({"model": session.name, "decision": made.to_json(), **_plain(found)})
    else:
        for kind, one in found.items():
            print("\n".join(report_lines(kind, one)))
    for kind, one in found.items():
        if one.temperature > _AT_BOUND * HOTTEST:
            log(f"note: {kind}: the probabilities say nothing of what is right; flat ones are the best")
    if out is not None:
        write_text(out, json.dumps(rounded(made).to_json(), indent=2) + "\n")
        log(f"wrote {out}")


def answered(
    session: Session, asked: list[LabelledQuestion], reading: QuestionReading
) -> list[LabelledAnswer]:
    """What the model says of each question."""
    from ..session.deciding import run_plans

    made = []
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        plans = [session.plan_decide(one.state, one.question, reading.chosen()) for one in some]
        for one, (decision,) in zip(some, run_plans(session, plans), strict=True):
            made.append(LabelledAnswer(decision.kind, decision.probabilities, one.truth))
    return made


def fitted(answers: list[LabelledAnswer]) -> dict[QuestionKind, Calibrated]:
    """By kind; kinds with too few answers are left out."""
    kinds = {kind: [answer for answer in answers if answer.kind == kind] for kind in KINDS}
    return {kind: calibrated(of) for kind, of in kinds.items() if len(of) >= _FEWEST}


def rounded(made: Calibration) -> Calibration:
    """With temperatures as precise as any fit is."""
    return replace(made, temperature={kind: round(heat, 4) for kind, heat in made.temperature.items()})


def report_lines(kind: str, found: Calibrated) -> list[str]:
    """A table of one kind's figures."""
    lines = [f"{kind}: {found.count} answers, temperature {found.temperature:.3f}"]
    lines.append(f"  {'':18}{'before':26}{'after':26}after less before")
    for name, estimates in found.figures.items():
        lines.append(f"  {name:18}" + "".join(f"{_shown(one):26}" for one in estimates).rstrip())
    return lines


def _shown(one: Estimate) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def _plain(found: dict[QuestionKind, Calibrated]) -> dict[str, Any]:
    return {"kinds": {kind: asdict(one) for kind, one in found.items()}}


__all__ = ["answered", "command", "fitted", "report_lines", "rounded"]
