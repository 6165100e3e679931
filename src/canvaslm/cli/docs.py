"""What is made from the program, the pages of docs/ and diffusion/options.py: `python -m canvaslm.cli.docs`
writes all, from the root.

Of files that are named, only those are written. `--check` writes nothing and fails if one is not what would
be written; tests do the same. docs/cli.md is made here, from the commands themselves.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CanvasError
from ..files import write_text
from .chat import COMMANDS as CHAT_COMMANDS
from .main import COMMANDS, app, load_command
from .options import LLAMA_CPP, LLAMA_CPP_NOTHING
from .parameter_table import with_table
from .python_docs import OPTIONS, options_module, python_page

_HEAD = """\
# The command line

<!-- Written by `python -m canvaslm.cli.docs docs/cli.md`. Edit the commands' docstrings and
flags, not this page. -->

Standard output holds results, standard error all else. Colours and drawing appear on a terminal only;
`NO_COLOR` and `TERM=dumb` are honoured. Text that a model wrote reaches a terminal with its control
characters shown, not sent; into a pipe or a file it goes unchanged. `CANVASLM_DEBUG=1` adds
tracebacks to unexpected errors.

Every flag has an environment variable: `CANVASLM_` and the flag's name in capitals, as in
`CANVASLM_MAX_NEW_TOKENS=64`. A flag beats the variable, the variable beats the checkpoint's
`generation_config.json`, and that beats the default.
"""

_VIEW = """\
## The canvas on the terminal

| look | meaning |
|---|---|
| plain text | a place whose token is accepted |
| italic (dim where there is no colour) | a place that will be drawn anew |
| underlined | a place whose token changed in the last step |
| bold | a place whose token was given: the text around holes |
| fainter grey | higher entropy |
| `·` | a place after the end of the answer |

A line break that wrapping made is kept while its line still fits and is at least half full, so a change
moves the places to its right and nothing else if it can. The region does not shrink while a canvas lasts. A
canvas taller than the terminal is cut around its first unsettled line. Settled canvases become plain text
that scrolls and can be copied. There are at most 20 redraws a second, and the last state is always among
them. `--live` with standard output piped draws on standard error. An answer stopped with Ctrl-C leaves its
last draft on the screen.
"""


def page() -> str:
    """The whole page."""
    names = app_names()
    parts = [_HEAD, _exit_codes(), "## Commands\n", *(_command(name) for name in names)]
    return "\n".join([*parts, _VIEW, _chat_commands(), _llama_cpp()])


def app_names() -> list[str]:
    """Names of the commands that exist, in the order of the table."""
    import typer

    group: Any = typer.main.get_command(app)
    return list(group.list_commands(None))


def _exit_codes() -> str:
    """From the classes in `errors`: code, and what it means."""
    from .. import errors

    codes: dict[int, str] = {
        0: "all went well",
        1: "a failure not listed below",
        2: "a wrong flag or parameter",
    }
    for value in vars(errors).values():
        if inspect.isclass(value) and issubclass(value, CanvasError) and value.exit_code not in codes:
            codes[value.exit_code] = (value.__doc__ or "").strip().split(";")[0].rstrip(".")
    codes[130] = "stopped with Ctrl-C"
    rows = [f"| {code} | {codes[code][0].lower()}{codes[code][1:]} |" for code in sorted(codes)]
    return "\n".join(["| exit code | meaning |", "|---|---|", *rows, ""])


def _command(name: str) -> str:
    command = load_command(name)
    rows = [row for param in command.params if not param.hidden if (row := _row(param))]
    text = (command.help or COMMANDS[name].help).strip()
    lines = [f"### canvaslm {name}\n", *_prose(text)]
    if rows:
        lines += ["| flag | environment | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _prose(text: str) -> list[str]:
    """A docstring; its examples as a block of code."""
    words, marker, examples = text.partition("Examples:\n")
    block = ["```sh", inspect.cleandoc(examples), "```\n"] if marker else []
    return [words.strip() + "\n", *block]


def _row(param: Any) -> str:
    if "--help" in param.opts:
        return ""
    names = [f"`{name}`" for name in (*param.opts, *param.secondary_opts)]
    if param.param_type_name == "argument":
        names = [f"`{(param.metavar or param.name).upper()}`"]
    metavar = f" {param.metavar}" if param.metavar and param.param_type_name == "option" else ""
    variable = f"`{param.envvar}`" if getattr(param, "envvar", None) else ""
    meaning = " ".join((getattr(param, "help", "") or "").split())
    return f"| {', '.join(names)}{metavar} | {variable} | {meaning}{_default(param)} |".replace("  ", " ")


def _default(param: Any) -> str:
    value = param.default
    if value is None or isinstance(value, bool) or callable(value) or value in ("", ()) or value is Ellipsis:
        return ""
    plain = isinstance(value, str | int | float)
    return f" Default: `{value}`." if plain else ""


def _chat_commands() -> str:
    rows = [
        f"| `/{name}{' ' + one.arguments if one.arguments else ''}` | {one.help} |"
        for name, one in CHAT_COMMANDS.items()
    ]
    rows = [row.replace("on|off", "on\\|off") for row in rows]
    return "\n".join(["## What can be typed in a chat\n", "| entry | effect |", "|---|---|", *rows, ""])


def _llama_cpp() -> str:
    rows = [f"| `{theirs}` | `{ours}` |" for theirs, ours in LLAMA_CPP.items()]
    rows += ["| `run -cnv` | `chat` |", f"| `{LLAMA_CPP_NOTHING[0]}` | always on; accepted, no effect |"]
    head = ["## Flags of llama.cpp\n", "| there | here |", "|---|---|"]
    return "\n".join([*head, *rows, ""])


def http_page() -> str:
    """docs/http.md. Needs the packages of the server."""
    from ..server.openapi import schema_of_server
    from ..server.reference import markdown

    return markdown(schema_of_server())


# File name -> the whole page, from what stands there now.
PAGES: dict[str, Callable[[str], str]] = {
    "cli.md": lambda _: page(),
    "http.md": lambda _: http_page(),
    "sampling.md": with_table,
    "python.md": lambda _: python_page(),
    "options.py": lambda _: options_module(),
}


def main(arguments: list[str]) -> int:
    """Writes the files named, or all, or with --check compares."""
    named = [Path(argument) for argument in arguments if argument != "--check"]
    stale = 0
    for path in named or [OPTIONS if name == OPTIONS.name else Path("docs") / name for name in PAGES]:
        if path.name not in PAGES:
            print(f"{path}: nothing is known of a page {path.name}: {', '.join(PAGES)}", file=sys.stderr)
            return 2
        old = path.read_text(encoding="utf-8") if path.is_file() else ""
        new = PAGES[path.name](old)
        if "--check" not in arguments:
            write_text(path, new)
        elif new != old:
            print(f"{path} is out of date: python -m canvaslm.cli.docs {path}", file=sys.stderr)
            stale = 1
    return stale


__all__ = ["PAGES", "app_names", "http_page", "main", "page"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
