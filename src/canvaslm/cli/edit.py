"""`canvaslm edit`: lines of a file written anew, shown as a diff."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..files import write_text
from ..types import Filled
from .adapter_options import Adapting
from .fill import conclude, print_object, show
from .given_text import argument_text, exact_text
from .glyphs import visible
from .options import Display, Loading, Sampling, grouped
from .output import filled_json, log
from .run import notes
from .terminal import abilities

_LINES = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?")
_COLORS = {"+": "32", "-": "31", "@": "36"}


@grouped
def command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A text; - reads it from standard input.")],
    lines: Annotated[
        list[str],
        typer.Option(
            "--lines",
            "-l",
            metavar="A:B",
            help="Lines to write anew, from 1 on, both ends included. Repeatable.",
        ),
    ],
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", metavar="TEXT", help="What the lines shall say instead.")
    ],
    write: Annotated[bool, typer.Option("--write", "-w", help="Change the file.")] = False,
    as_object: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, diff, holes, seed, timings ...")
    ] = False,
    loading: Loading = Loading(),
    adapting: Adapting = Adapting(),
    sampling: Sampling = Sampling(),
    display: Display = Display(),
) -> None:
    """Write lines of a file anew, and nothing else: prints a unified diff.

    All other lines stay byte for byte. Without --write the file is left as it is. -n limits the tokens that
    each group of lines may have.

    Examples:
      canvaslm edit app.py --lines 10:14 -p "Catch the timeout."
      canvaslm edit app.py -l 3 -l 20:22 -p "Rename user to account." --write
      canvaslm edit notes.md -l 1:2 -p "Shorter." --json | jq -r .diff
      echo "16 15 12 14" | canvaslm edit - -l 1 -p "Sort: 16 15 12 14"
    """
    display.checked()
    chosen = sampling.chosen()
    asked = argument_text(prompt, "--prompt")
    if write and file == "-":
        raise UsageError("--write needs a file: standard input cannot be changed", "write")
    text = exact_text(file, "file")
    spans = spans_of(text, lines)
    session = loading.open(display.quiet, **adapting.loading())
    notes(session, display, chosen)
    stream = session.stream_edit(text, spans, asked, **adapting.chosen(), **chosen)
    filled = show(session, display, stream, silent=as_object, writes=False)
    changes = diff(text, filled.text, file)
    if write and changes:
        _write(Path(file), filled.text)
    _report(filled, changes, file, session.name, write, as_object, display)


def _report(
    filled: Filled, changes: str, file: str, model: str, write: bool, as_object: bool, display: Display
) -> None:
    if as_object:
        document = filled_json(filled, model)
        print_object({**document, "file": file, "diff": changes, "written": write and bool(changes)})
    else:
        sys.stdout.write(_shown(changes, display))
        sys.stdout.flush()
        if not changes:
            log("note: nothing has changed")
    conclude(filled, display, as_object)


def spans_of(text: str, lines: Sequence[str]) -> list[tuple[int, int]]:
    """The characters of lines, without the last one's end. Raises UsageError for those that are not there."""
    edges = [0]
    for line in _lines(text):
        edges.append(edges[-1] + len(line))
    spans: list[tuple[int, int]] = []
    for first, last in sorted(_numbers(each) for each in lines):
        if last >= len(edges):
            raise UsageError(f"--lines {first}:{last}: the text has {len(edges) - 1} lines", "lines")
        if spans and edges[first - 1] < spans[-1][1]:
            raise UsageError(f"--lines {first}:{last} overlaps with the lines before it", "lines")
        end = edges[first - 1] + len(text[edges[first - 1] : edges[last]].rstrip("\r\n"))
        spans.append((edges[first - 1], max(edges[first - 1], end)))
    return spans


def _numbers(lines: str) -> tuple[int, int]:
    match = _LINES.fullmatch(lines)
    first = int(match[1]) if match else 0
    last = int(match[2] or first) if match else 0
    if not 1 <= first <= last:
        raise UsageError(f"--lines {lines}: should be a line, or two as in 10:14, from 1 on", "lines")
    return first, last


def diff(before: str, after: str, name: str) -> str:
    """A unified diff that `patch` takes; empty if nothing has changed."""
    shown = "stdin" if name == "-" else name.lstrip("/")
    made = difflib.unified_diff(
        _lines(before), _lines(after), f"a/{shown}", f"b/{shown}", lineterm="\n"
    )  # fmt: skip
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in made
    )


def _lines(text: str) -> list[str]:
    """As `patch` counts lines: by newlines alone."""
    parts = text.split("\n")
    return [*(part + "\n" for part in parts[:-1]), *([parts[-1]] if parts[-1] else [])]


def _shown(changes: str, display: Display) -> str:
    """The diff as standard output gets it: on a terminal in colours, and with control characters shown."""
    able = abilities(sys.stdout, os.environ, display.color)
    text = visible(changes) if able.live else changes
    if not able.colors:
        return text
    return "\n".join(_painted(line) for line in text.split("\n"))


def _painted(line: str) -> str:
    code = "1" if line.startswith(("---", "+++")) else _COLORS.get(line[:1])
    return f"\x1b[{code}m{line}\x1b[0m" if code else line


def _write(path: Path, text: str) -> None:
    """Puts the text into the file that a link leads to, which stays as executable and readable as it was."""
    target = path.resolve()
    mode = target.stat().st_mode
    write_text(target, text)
    target.chmod(mode & 0o7777)


__all__ = ["command", "diff", "spans_of"]
