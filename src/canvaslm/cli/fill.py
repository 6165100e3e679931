"""`canvaslm fill`: a text with its holes filled. What was given comes out byte for byte."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from ..types import CanvasReport, Committed, Draft, Filled, Finished
from .adapter_options import Adapting
from .given_text import argument_text, exact_text
from .options import Display, Loading, Sampling, Talk, grouped
from .output import figures, filled_json, log
from .run import notes

if TYPE_CHECKING:
    from ..session import Session


@grouped
def command(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A text with holes; - reads it from standard input.")
    ],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="What the text shall say.")
    ] = None,
    talk: Talk = Talk(),
    as_object: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, holes, steps, seed, timings ...")
    ] = False,
    loading: Loading = Loading(),
    adapting: Adapting = Adapting(),
    sampling: Sampling = Sampling(),
    display: Display = Display(),
) -> None:
    """Fill the holes of a text: <hole>, or <hole max=40> for at most 40 tokens.

    The text around them comes out byte for byte; \\\\<hole> is that text itself. Holes that stand near each
    other are filled together. -n limits the tokens of every hole. On a terminal the canvas is drawn while it
    denoises, with what was given in bold.

    Examples:
      canvaslm fill template.txt
      echo 'def triple(<hole>):' | canvaslm fill - -p "Write a function triple that multiplies x by 3."
      canvaslm fill letter.md -m model.gguf -p "A letter to the landlord" > whole.md
      canvaslm fill config.json --json | jq .holes
      canvaslm fill template.txt --adapter runs/terse
    """
    display.checked()
    chosen = sampling.chosen()
    asked = None if prompt is None else argument_text(prompt, "--prompt")
    template, system = exact_text(file, "file"), talk.message()
    session = loading.open(display.quiet, **adapting.loading())
    notes(session, display, chosen)
    options = {"system": system, "thinking": talk.thinking, **adapting.chosen(), **chosen}
    stream = session.stream_fill(template, instruction=asked, **options)
    filled = show(session, display, stream, silent=as_object)
    if as_object:
        print_object(filled_json(filled, session.name))
    conclude(filled, display, as_object)


def show(
    session: Session,
    display: Display,
    stream: Generator[Draft | Filled, None, None],
    *,
    silent: bool,
    writes: bool = True,
) -> Filled:
    """Draws the canvases on a terminal, and `writes` the whole text there, or unchanged into a pipe.
    `silent`: all that is printed is the caller's."""
    from .present import presenter

    piped = silent or not sys.stdout.isatty()
    filled: Filled | None = None
    with presenter(session, display, silent=piped) as view, closing(stream):
        for event in stream:
            if isinstance(event, Draft):
                view.feed(event)
                continue
            filled = event
            if not writes:
                continue
            view.feed(Committed(-1, 0, (), CanvasReport(0, "converged", 0.0), event.text))
            view.feed(
                Finished(-1, event.finish_reason, event.usage, event.timings, event.seed, event.canvases)
            )
    assert filled is not None, "a stream ends with what it fills"
    if piped and writes and not silent:
        write_exactly(filled.text)
    return filled


def write_exactly(text: str) -> None:
    """To standard output, line ends and all."""
    raw = getattr(sys.stdout, "buffer", None)
    if raw is None:
        sys.stdout.write(text)
    else:
        sys.stdout.flush()
        raw.write(text.encode())
    sys.stdout.flush()


def print_object(document: dict[str, object]) -> None:
    """One JSON object on standard output."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(document, ensure_ascii=not unicode))


def conclude(filled: Filled, display: Display, as_object: bool) -> None:
    """The figures, and which holes were cut, on standard error."""
    if not (as_object or display.quiet):
        log(figures(filled), faint=True)
    for note in filled.notes:
        log(f"note: {note.text}")


__all__ = ["command", "conclude", "print_object", "show", "write_exactly"]
