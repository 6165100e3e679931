"""Two documents side by side: ratios of what both have measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .document import Document
from .tables import LABELS, METRICS, number, plain

_PERCENTILES = ("p50", "p95")
# Those of the tables in which less is better, so that a ratio reads the same way everywhere.
_TIMES = {name: heading for name, heading in METRICS.items() if name != "tokens_per_second"}


@dataclass(frozen=True)
class Figure:
    """One number of a document, and which way is better."""

    name: str
    value: float
    higher_is_better: bool = False


@dataclass(frozen=True)
class Ratio:
    """A number of both documents; `gain` above 1: the second is better by that
    factor. None: one of them is 0."""

    name: str
    a: float
    b: float
    ratio: float | None  # b / a
    gain: float | None


def figures(content: Document) -> list[Figure]:
    """The numbers of a document that can be compared, with names that say under which conditions."""
    results = content["results"]
    found = [*_ready(results), *_peak(results)]
    for run in results.get("contexts", []):
        found += _step_figures(run)
    found += [Figure(f"step at {run['rows']} rows, ms", run["step_ms"]) for run in results.get("rows", [])]
    for run in results.get("runs", []):
        found += _run_figures(run)
    if "costs" in results:
        found += _answer_figures(results)
    return [figure for figure in found if figure.value is not None]


def _ready(results: dict[str, Any]) -> Iterator[Figure]:
    """A server's time to be ready, or this process's since its start."""
    ready = results.get("ready") or {}
    seconds = ready.get("server_s", ready.get("process_s"))
    if seconds is not None:
        yield Figure("ready, s", seconds)


def _peak(results: dict[str, Any]) -> Iterator[Figure]:
    most = (results.get("memory") or {}).get("most_seen") or {}
    for name, label in (("peak_rss", "peak RSS"), ("anonymous", "anonymous memory")):
        if most.get(name) is not None:
            yield Figure(f"{label}, GiB", most[name] / 2**30)


def _step_figures(run: dict[str, Any]) -> Iterator[Figure]:
    where = f"context {run['context']}"
    yield Figure(f"{where}: step, ms", run["step_ms"])
    yield Figure(f"{where}: first step, ms", run["first_step_ms"])
    for name, part in run["parts"].items():
        yield Figure(f"{where}: {LABELS.get(name, name)}, ms", part["ms"])
    yield Figure(f"{where}: prefill, tokens/s", run["prefill"]["tokens_per_second"], True)


def _run_figures(run: dict[str, Any]) -> Iterator[Figure]:
    where = f"{run['concurrency']} in flight"
    yield Figure(f"{where}: committed tokens/s", run["tokens_per_second"], True)
    yield Figure(f"{where}: requests/s", run["requests_per_second"], True)
    for name, (label, factor) in _TIMES.items():
        summary = run["metrics"].get(name)
        for percent in _PERCENTILES if summary else ():
            yield Figure(f"{where}: {label}, {percent}", factor * summary[percent])


def _answer_figures(results: dict[str, Any]) -> Iterator[Figure]:
    costs, named = results["costs"], {"token": "a causal token", "commit": "a commit", "read": "a reading"}
    where = f"context {costs['context']}"
    for step in costs["steps"]:
        yield Figure(f"{where}: step of {step['places']} places, ms", 1000 * step["seconds"])
    for key, label in named.items():
        if costs[key] is not None:
            yield Figure(f"{where}: {label}, ms", 1000 * costs[key])
    for one in results["answers"]:
        if one["seconds"] is not None:
            yield Figure(f"{one['preset']}: {one['tokens']} tokens, s", one["seconds"])


def compare(a: Document, b: Document) -> tuple[list[Ratio], list[str]]:
    """Ratios of the figures that both have, in a's order, and the names of those that only one has."""
    mine, theirs = ({figure.name: figure for figure in figures(content)} for content in (a, b))
    rows = [_ratio(figure, theirs[name]) for name, figure in mine.items() if name in theirs]
    return rows, [name for name in (*mine, *theirs) if name not in mine or name not in theirs]


def _ratio(a: Figure, b: Figure) -> Ratio:
    ratio = b.value / a.value if a.value else None
    gain = ratio if a.higher_is_better else (a.value / b.value if b.value else None)
    return Ratio(a.name, a.value, b.value, ratio, gain)


def comparison(a: Document, b: Document, names: tuple[str, str] = ("A", "B")) -> list[RenderableType]:
    """The ratios as a table; below it what differs between the conditions."""
    rows, single = compare(a, b)
    drawn = Table(title=Text(f"A = {plain(names[0])}, B = {plain(names[1])}"), title_justify="left")
    drawn.add_column("")
    for heading in ("A", "B", "B / A", "B is"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(row.name, number(row.a), number(row.b), _times(row.ratio), _verdict(row.gain))
    notes = [*_differences(a, b), *(f"only in one: {plain(name)}" for name in single)]
    return [drawn, Text("\n".join(notes))]


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _verdict(gain: float | None) -> str:
    """As `1.25 times better`, `1.25 times worse`, `equal` within 1 %."""
    if gain is None or gain <= 0:
        return "-"
    if 0.99 < gain < 1.01:
        return "equal"
    return f"{gain:.2f} times better" if gain > 1 else f"{1 / gain:.2f} times worse"


def _differences(a: Document, b: Document) -> list[str]:
    """What both tell of machine, model and settings, and is not the same."""
    found = []
    for part in ("machine", "model", "settings"):
        for name, left in a[part].items():
            right = b[part].get(name, left)
            if left != right:
                found.append(f"different {part} {name}: {plain(left)} | {plain(right)}")
    return found


__all__ = ["Figure", "Ratio", "compare", "comparison", "figures"]
