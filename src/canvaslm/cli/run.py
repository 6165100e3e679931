"""`canvaslm run`: one answer. On a terminal the canvas denoises live; piped, standard
output holds the answer alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..diffusion.params import old_names
from ..errors import CanvasError, UsageError
from ..text.doubt import doubt_level
from ..text.transcript import ReplyBuilder
from ..types import Reply
from .adapter_options import Adapting
from .doubt import legend, painted
from .given_text import argument_text, file_text, input_text
from .options import BestOf, Display, Doubt, Loading, RetryDoubtful, Sampling, Talk, grouped
from .output import as_json, figures, log, tokens_in
from .structure_options import AnswerForm
from .terminal import abilities

if TYPE_CHECKING:
    from ..demo.puzzle import Puzzle
    from ..session import Session

SHOW_PACE = 0.3  # seconds that a step of the Sudoku stays on the screen


@grouped
def command(
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt; - reads it from standard input."),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from a file.")
    ] = None,
    talk: Talk = Talk(),
    raw: Annotated[
        bool, typer.Option("--raw", help="Give the prompt to the model without the chat template.")
    ] = False,
    as_object: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, tokens, steps, seed, timings ...")
    ] = False,
    best_of: BestOf = None,
    retry_doubtful: RetryDoubtful = False,
    loading: Loading = Loading(),
    adapting: Adapting = Adapting(),
    form: AnswerForm = AnswerForm(),
    sampling: Sampling = Sampling(),
    display: Display = Display(),
    doubt: Doubt = False,
) -> None:
    """Write one answer. Without a model and a prompt, the demo model solves a Sudoku.

    On a terminal the canvas is drawn while it denoises: plain text is accepted, italic will be drawn anew,
    underlined has just changed, faint is uncertain. Piped, standard output holds the answer alone.

    Examples:
      canvaslm run
      canvaslm run -p "Reverse the word: canvas" --seed 7
      canvaslm run -m model.gguf -p "Why is the sky blue?" -n 512 --preset quality
      git diff | canvaslm run -m org/name -p - --system "Write a commit message." > message.txt
      canvaslm run -m model.gguf -p "Three primes?" --json | jq .steps
      canvaslm run -p "JSON: name=Ada, age=36" --schema person.json
    """
    display.checked()
    chosen, structure = sampling.chosen(), form.chosen()
    asked, system = read_prompt(prompt, file), talk.message()
    puzzle = None
    if asked is None:
        refuse_without_prompt(loading.model is not None or raw or bool(structure))
        puzzle = show_puzzle(chosen.get("seed"), display)
        asked, display = puzzle.prompt, paced(display)
    session = loading.open(display.quiet, **adapting.loading())
    notes(session, display, chosen)
    options = {"system": system, "thinking": talk.thinking, "raw": raw, **structure, **chosen}
    second = {"doubt": doubt, "best_of": best_of, "retry_doubtful": retry_doubtful, **adapting.chosen()}
    options |= {name: value for name, value in second.items() if value}
    reply = answer(session, asked, display, as_object, **options)
    if as_object:
        print_json(session, reply, chosen, puzzle)
    solved = puzzle is None or check(puzzle, reply)
    if not (as_object or display.quiet):
        log_figures(reply, display, doubt)
    if not solved:
        raise typer.Exit(1)
    if puzzle is None:
        conclude(reply)


def refuse_without_prompt(needed: bool) -> None:
    """Raises UsageError where there should be a prompt."""
    if needed:
        raise UsageError(
            "there is no prompt: give one with -p, - for standard input; `canvaslm chat` talks", "prompt"
        )


def read_prompt(prompt: str | None, file: str | None) -> str | None:
    """The prompt from -p, from standard input (`-p -`) or from a file; None where there is none.

    Raises UsageError for one that is empty or not UTF-8.
    """
    if prompt is not None and file is not None:
        raise UsageError("--prompt and --file cannot both give the prompt", "prompt")
    if prompt == "-" or file == "-":
        text = input_text("prompt")
        if not text.strip():
            raise UsageError("the prompt on standard input is empty", "prompt")
        return text
    if file is not None:
        return file_text(file, "--file")
    return None if prompt is None else argument_text(prompt, "--prompt")


def notes(session: Session, display: Display, chosen: Mapping[str, Any]) -> None:
    """What was remarkable about loading the model, and what of the parameters chosen has another name now."""
    if not display.quiet:
        for note in (*session.notes, *old_names(chosen).values()):
            log(f"note: {note}")


def answer(session: Session, prompt: Any, display: Display, silent: bool = False, **options: Any) -> Reply:
    """Streams one answer to the terminal or the pipe, and returns it whole. Raises what made it fail."""
    from .present import presenter

    if options.keys() & {"best_of", "retry_doubtful"}:
        return chosen_answer(session, prompt, display, silent, **options)
    collected = ReplyBuilder()
    with presenter(session, display, silent, bool(options.get("doubt"))) as show:
        wants_drafts = getattr(show, "wants_drafts", False)
        with closing(session.stream(prompt, drafts=wants_drafts, **options)) as events:
            for event in events:
                collected.add(event)
                show.feed(event)
    return collected.reply()


def chosen_answer(session: Session, prompt: Any, display: Display, silent: bool, **options: Any) -> Reply:
    """An answer that is known when all of it is: the best of several, or one whose doubtful parts were
    written once more. Printed whole."""
    reply = session.generate(prompt, **options)
    if not silent:
        able = abilities(sys.stdout, os.environ, display.color)
        marked = (painted(t.token, doubt_level(t.causal), able) for t in reply.logprobs)
        print("".join(marked) if options.get("doubt") else reply.text, flush=True)
        for place, one in enumerate(reply.ranking, 1):
            log(f"{place}. {one.mean_causal:.2f} nats a token, seed {one.seed}", faint=True)
    return reply


def log_figures(reply: Reply, display: Display, doubt: bool) -> None:
    """What is said of an answer behind it, on standard error; with `doubt`, what its marks mean."""
    if doubt:
        able = abilities(sys.stdout, os.environ, display.color)
        print(legend(reply, able), file=sys.stderr, flush=True)
    log(figures(reply), faint=True)


def paced(display: Display) -> Display:
    """For a show: the demo model takes milliseconds a step, too fast to be seen."""
    return display if display.pace is not None else replace(display, pace=SHOW_PACE)


def show_puzzle(seed: int | None, display: Display) -> Puzzle:
    """Draws a Sudoku and prints its prompt: on the terminal with the answer, otherwise with the log."""
    from ..demo.puzzle import random_puzzle

    puzzle = random_puzzle(None if seed == -1 else seed)
    stream = sys.stdout if sys.stdout.isatty() else sys.stderr
    if not display.quiet:
        print(f"A Sudoku that the demo model has not seen:\n\n{puzzle.pretty()}\n", file=stream, flush=True)
    return puzzle


def print_json(session: Session, reply: Reply, chosen: dict[str, Any], puzzle: Puzzle | None) -> None:
    """The reply as one JSON object on standard output."""
    given = {**chosen, "seed": reply.seed}
    params = session.merge(given.pop("preset", None), given)
    document = as_json(reply, session.name, asdict(params))
    if puzzle is not None:
        from ..demo.puzzle import verdict

        solved, says = verdict(puzzle, reply.text)
        document["puzzle"] = {"prompt": puzzle.prompt, "solved": solved, "verdict": says}
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(document, ensure_ascii=not unicode))


def check(puzzle: Puzzle, reply: Reply) -> bool:
    """Whether the puzzle is solved, and a line that says so, or what is wrong."""
    from ..demo.puzzle import verdict

    solved, says = verdict(puzzle, reply.text)
    log(says)
    return solved


def conclude(reply: Reply) -> None:
    """Says how the answer came to be, and if it was cut. Raises CanvasError if there is none."""
    if not (reply.text.strip() or reply.tool_calls):
        thought = "the model was still thinking" if reply.thinking else "the model gave an empty answer"
        raise CanvasError(f"{thought}; try a larger -n or another --seed")
    for note in reply.notes:
        log(f"note: {note.text}")
    if reply.finish_reason == "length":
        log(f"note: cut at {tokens_in(reply)}; -n allows more")


__all__ = [
    "SHOW_PACE",
    "answer",
    "chosen_answer",
    "command",
    "conclude",
    "log_figures",
    "notes",
    "paced",
    "print_json",
    "read_prompt",
    "show_puzzle",
]
