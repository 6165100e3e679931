"""The table of sampling parameters in docs/sampling.md, made from `diffusion.params`."""

from __future__ import annotations

from collections.abc import Iterator

from ..diffusion.params import PARAMETERS, Parameter, plain
from ..errors import UsageError

BEGIN = "<!-- Written by `python -m canvaslm.cli.docs` from src/canvaslm/diffusion/params.py: edit that. -->"
END = "<!-- End of what is written. -->"


def table() -> str:
    """Each parameter with its default, its values and what it does."""
    rows = ["| parameter | default | values | meaning |", "|---|---|---|---|"]
    rows += [f"| {' | '.join(_cells(about))} |" for about in PARAMETERS.values()]
    return "\n".join(rows)


def with_table(page: str) -> str:
    """The page with the table between its two marks written anew. Raises UsageError if they are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UsageError("docs/sampling.md has lost the marks around its table of parameters")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def _cells(about: Parameter) -> Iterator[str]:
    yield f"`{about.name}`"
    yield "random" if about.default is None else f"`{_text(about.default)}`"
    if about.choices:
        yield ", ".join(f"`{choice}`" for choice in about.choices)
    else:
        yield "`true`, `false`" if about.kind is bool else f"{about.range} {about.unit}".rstrip()
    presets = ", ".join(f"`{name}` {_text(value)}" for name, value in about.presets.items())
    yield about.explained("`{}`".format) + (f" Presets: {presets}." if presets else "")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return plain(value) if isinstance(value, int | float) else str(value)


__all__ = ["BEGIN", "END", "table", "with_table"]
