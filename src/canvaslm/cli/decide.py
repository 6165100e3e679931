"""`canvaslm decide`: questions about a text, and a probability for every answer that is allowed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..decisions.json_form import question_of, questions_of
from ..decisions.questions import Question, choice, predicate, score
from ..errors import UsageError
from .adapter_options import Adapting
from .decide_options import QuestionReading
from .fill import print_object
from .given_text import argument_text, exact_text
from .options import Loading, grouped
from .output import log

if TYPE_CHECKING:
    from ..decisions.answers import Decision, Decisions

_OPTIONS = "::"


@grouped
def command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The state; - reads it from standard input.")],
    question: Annotated[
        list[str] | None,
        typer.Option(
            "--question",
            "-q",
            metavar="TEXT",
            help="A predicate; with options behind :: a choice (a | b) or a score (low < high); or an object "
            "in JSON, as for HTTP. Several are asked together.",
        ),
    ] = None,
    questions: Annotated[
        str | None,
        typer.Option("--questions", metavar="FILE", help="A file with a list of such objects."),
    ] = None,
    as_object: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: answers, label mass, usage.")
    ] = False,
    reading: QuestionReading = QuestionReading(),
    loading: Loading = Loading(),
    adapting: Adapting = Adapting(),
) -> None:
    """Answer questions about a text with probabilities, from one denoise step each.

    Each question is answered for itself: what else is asked, and in which order, changes no answer.
    docs/decisions.md says how a question is read.

    Examples:
      canvaslm decide mail.txt -m model.gguf -q "The customer asks for a refund."
      canvaslm decide mail.txt -m model.gguf -q "Tone? :: angry | calm" -q "How urgent? :: can wait < today"
      canvaslm decide - -q "Name the capital of Peru. :: Lima | Quito" --json < /dev/null
    """  # fmt: skip
    asked = [short_question(argument_text(text, "--question")) for text in question or ()]
    if questions is not None:
        asked += _from_file(questions)
    if not asked:
        raise UsageError("there is no question: ask with --question or --questions", "question")
    state, options = exact_text(file, "file"), {**reading.chosen(), **adapting.chosen()}
    session = loading.open(as_object, **adapting.loading())
    found = session.decide(state.removesuffix("\n"), [one for _, one in asked], **options)
    if as_object:
        print_object(decided_object(session.name, [name for name, _ in asked], found))
        return
    for (name, one), answer in zip(asked, found, strict=True):
        print(f"{name or one.instructions}: {answer_line(answer)}")
    weak = sum(not answer.argmax_is_label for answer in found)
    if weak:
        log(f"note: for {weak} of {len(found)} the model would have said something else than an answer")


def short_question(text: str) -> tuple[str | None, Question]:
    """(name, question) of how one is written on the command line. Raises UsageError.

    >>> short_question("How urgent? :: can wait < today")[1].kind
    'score'
    """
    if text.lstrip().startswith("{"):
        try:
            return question_of(json.loads(text))
        except ValueError as error:
            raise UsageError(f"--question is no valid JSON: {error}", "question") from error
    instructions, given, listed = text.partition(_OPTIONS)
    if not given:
        return None, predicate(text.strip())
    if "|" not in listed and "<" in listed:
        return None, score(instructions.strip(), [level.strip() for level in listed.split("<")])
    return None, choice(instructions.strip(), [one.strip() for one in listed.split("|")])


def _from_file(path: str) -> list[tuple[str | None, Question]]:
    try:
        data = json.loads(exact_text(path, "questions"))
    except ValueError as error:
        raise UsageError(f"{path}: is no valid JSON: {error}", "questions") from error
    return list(zip(*questions_of(data), strict=True))


def answer_line(answer: Decision) -> str:
    """One answer in a line, the likeliest option first."""
    if answer.kind == "predicate":
        return f"{answer.probability:.3f}"
    shares = sorted(zip(answer.probabilities, answer.texts, strict=True), key=lambda pair: -pair[0])
    named = ", ".join(f"{text} {share:.3f}" for share, text in shares[:8])
    more = f", {len(shares) - 8} more" if len(shares) > 8 else ""
    return f"{answer.score:.2f} ({named}{more})" if answer.kind == "score" else named + more


def decided_object(model: str, names: list[str | None], found: Decisions) -> dict[str, Any]:
    """All of it, as plain data."""
    return {
        "model": model,
        "answers": [
            {
                "type": answer.kind,
                "name": name,
                "best": answer.best,
                **({"score": answer.score} if answer.kind == "score" else {}),
                "probabilities": [
                    {"value": value, "text": text, "probability": share}
                    for value, text, share in zip(
                        answer.values, answer.texts, answer.probabilities, strict=True
                    )
                ],
                "confidence": answer.confidence,
                "label_mass": answer.label_mass,
                "argmax_is_label": answer.argmax_is_label,
            }
            for name, answer in zip(names, found, strict=True)
        ],
        "usage": {"input_tokens": found.usage.prompt_tokens, "cached_tokens": found.usage.cached_tokens},
        "rows": found.rows,
    }


__all__ = ["answer_line", "command", "decided_object", "short_question"]
