"""docs/python.md, made from docstrings, and diffusion/options.py, from the table of
parameters. Written by `docs`."""

from __future__ import annotations

import inspect
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..diffusion import PARAMETERS, Params

OPTIONS = Path("src/canvaslm/diffusion/options.py")
PAGE = Path("docs/python.md")
_HEAD = """\
# The Python interface

<!-- Written by `python -m canvaslm.cli.docs`. Edit the docstrings, not this page. -->

    import canvaslm

All names below are in `canvaslm`. The examples run as they stand, with
`session = canvaslm.load()`: the demo model.
"""


def options_module() -> str:
    """`SamplingOptions`, as type checkers want it: written out."""
    hints = get_type_hints(Params)
    lines = [f"    {name}: {_written(hints[name])} | None" for name in PARAMETERS]
    return "\n".join(
        [
            '"""The sampling parameters as keyword arguments.',
            "",
            "Written by `python -m canvaslm.cli.docs` from the table in params.py: edit that.",
            '"""',
            "",
            "from __future__ import annotations",
            "",
            "from typing import TypedDict",
            "",
            "",
            "class SamplingOptions(TypedDict, total=False):",
            '    """A field for each of `Params`; None takes the checkpoint\'s default."""',
            "",
            *lines,
            "",
            "",
            '__all__ = ["SamplingOptions"]',
            "",
        ]
    )


def _written(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).removesuffix(" | None")


def python_page() -> str:
    """The whole page."""
    parts = [_HEAD]
    canvaslm = sys.modules[__spec__.name.partition(".")[0]]
    names = [name for name in canvaslm.__all__ if not name.startswith("_")]
    functions = [name for name in names if inspect.isfunction(getattr(canvaslm, name))]
    errors = [name for name in names if _is_error(getattr(canvaslm, name))]
    classes = [name for name in names if name not in functions and name not in errors]
    for name in [*functions, *sorted(classes, key=lambda name: name != "Session")]:
        parts.append(_section(name, getattr(canvaslm, name)))
    parts.append("## Errors\n")
    parts += [f"- `{name}`: {_first(getattr(canvaslm, name))}" for name in errors]
    return "\n".join(parts).rstrip() + "\n"


def _is_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Exception)


def _first(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def _section(name: str, thing: Any) -> str:
    parts = [f"## {name}\n"]
    if inspect.isfunction(thing):
        parts.append(_code(f"{name}{_signature(thing)}"))
    parts.append(_text(thing))
    if is_dataclass(thing) and name not in ("Session", "Params"):
        parts.append(_fields(thing))
    if name == "Params":
        parts.append("The parameters are listed in [sampling.md](sampling.md).\n")
    if name == "Session":
        public = [m for m in vars(thing) if not m.startswith("_") and inspect.isfunction(vars(thing)[m])]
        for method in public:
            function = getattr(thing, method)
            parts += [f"### Session.{method}\n", _code(f"{method}{_signature(function)}"), _text(function)]
    return "\n".join(parts)


def _fields(thing: Any) -> str:
    rows = [f"| `{f.name}` | `{str(f.type).replace('|', chr(92) + '|')}` |" for f in fields(thing)]
    return "\n".join(["| field | type |", "|---|---|", *rows, ""])


def _signature(function: Any) -> str:
    return str(inspect.signature(function)).replace("'", "")


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _text(thing: Any) -> str:
    """A docstring as Markdown: its examples set as code."""
    text = inspect.getdoc(thing) or ""
    made, inside = [], False
    for line in text.splitlines():
        starts = line.startswith(">>>") and not inside
        if starts:
            made.append("```python")
        ends = inside and not line.strip()
        if ends:
            made.append("```")
        inside = (inside or starts) and not ends
        made.append(line)
    if inside:
        made.append("```")
    return "\n".join(made) + "\n"


__all__ = ["OPTIONS", "PAGE", "options_module", "python_page"]
