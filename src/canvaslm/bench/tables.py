"""A document as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from .answer_tables import answer_tables
from .document import Document

LABELS = {
    "projections": "attention projections",
    "dense_mlp": "dense MLP",
    "experts": "experts",
    "attention": "attention",
    "head_sampling": "head + sampling",
    "self_conditioning": "soft embedding + self-cond.",
    "glue": "norms, RoPE, router, glue",
    "rest": "rest",
}
# metric of a run -> heading, factor
METRICS = {
    "first_draft_s": ("first draft, ms", 1000),
    "first_commit_s": ("first committed text, ms", 1000),
    "between_commits_s": ("between commits, ms", 1000),
    "request_s": ("whole answer, ms", 1000),
    "queued_s": ("in the queue, ms", 1000),
    "ms_per_step": ("a step, ms", 1),
    "steps_per_canvas": ("steps a canvas", 1),
    "tokens_per_second": ("tokens/s of one answer", 1),
}


def number(value: float | None) -> str:
    """Two or three figures; - for what is not known."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.1:
        return f"{value:.2g}"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{decimals}f}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def plain(text: object) -> str:
    """Names come from files and servers: no control character reaches the terminal."""
    return str(text) if str(text).isprintable() else ascii(str(text))


def tables(content: Document) -> list[RenderableType]:
    """All that a person wants to see of a document."""
    results, shown = content["results"], list[RenderableType]()
    if content["kind"] == "answers":
        shown = answer_tables(results, plain(content["model"]["name"]))
    elif content["kind"] == "steps":
        shown = [_step_table(content, run) for run in results["contexts"]]
        if len(results["contexts"]) > 1:
            shown.append(_context_table(results["contexts"]))
        if results["rows"]:
            shown.append(_rows_table(results["rows"]))
    else:
        shown = [_load_table(content)]
    return [*shown, Text("\n".join(facts(content)))]


def _step_table(content: Document, run: Mapping[str, Any]) -> Table:
    ceilings = content["results"]["ceilings"] or {}
    low, high = min(run["steps_ms"]), max(run["steps_ms"])
    drawn = _table(
        f"{plain(content['model']['name'])}: denoise step, context {run['context']}: "
        f"{number(run['step_ms'])} ms ({number(low)} to {number(high)}), "
        f"first {number(run['first_step_ms'])} ms"
    )
    kind = ceilings.get("kind", "arithmetic")
    headings = ("ms", "share", "GMAC", "GMAC/s", f"of {kind}", "weights GB", "GB/s", "of bandwidth")
    drawn.add_column("part")
    for heading in headings:
        drawn.add_column(heading, justify="right")
    for name, part in run["parts"].items():
        drawn.add_row(LABELS.get(name, name), number(part["ms"]), share(part["share"]), *_work(part))
    watched = sum(part["ms"] for part in run["parts"].values())
    drawn.add_section()
    drawn.add_row("all parts, watched", number(watched), share(1.0), *[""] * 6)
    drawn.add_row("the step, unwatched", number(run["step_ms"]), "", *_work(run))
    if commit := run.get("commit"):
        drawn.add_section()
        drawn.add_row("commit of a canvas", number(commit["plain_ms"]), "", *[""] * 6)
        of_step = share(commit["reading_share_of_step"])
        drawn.add_row("commit, read by the causal reader", number(commit["read_ms"]), "", *[""] * 6)
        drawn.add_row("more, and of a step", number(commit["reading_ms"]), of_step, *[""] * 6)
    return drawn


def _work(part: Mapping[str, Any]) -> list[str]:
    gmac = number(part["gmac"]) if part["gmac"] else ""
    gb = number(part["weights_gb"]) if part["weights_gb"] else ""
    return [
        gmac, number(part["gmac_per_second"]) if gmac else "",
        share(part["arithmetic_share"]) if gmac else "",
        gb, number(part["gb_per_second"]) if gb else "", share(part["bandwidth_share"]) if gb else "",
    ]  # fmt: skip


def _context_table(runs: list[Mapping[str, Any]]) -> Table:
    drawn = _table("by context")
    for heading in (
        "context",
        "step, ms",
        "of that attention",
        "first step, ms",
        "prefill, s",
        "prefill, tokens/s",
    ):
        drawn.add_column(heading, justify="right")
    for run in runs:
        prefill = run["prefill"]
        drawn.add_row(
            f"{run['context']:,}", number(run["step_ms"]), number(run["parts"]["attention"]["ms"]),
            number(run["first_step_ms"]), number(prefill["seconds"]), number(prefill["tokens_per_second"]),
        )  # fmt: skip
    return drawn


def _rows_table(runs: list[Mapping[str, Any]]) -> Table:
    drawn = _table(f"by rows, context {runs[0]['context']}")
    base = runs[0]["step_ms"] / runs[0]["rows"]
    for heading in (
        "rows",
        "step, ms",
        "ms a row",
        f"cost a row against {runs[0]['rows']}",
        "GMAC/s",
        "GB/s",
    ):
        drawn.add_column(heading, justify="right")
    for run in runs:
        each = run["step_ms"] / run["rows"]
        drawn.add_row(
            str(run["rows"]), number(run["step_ms"]), number(each), f"{each / base:.2f}",
            number(run["gmac_per_second"]), number(run["gb_per_second"]),
        )  # fmt: skip
    return drawn


def _load_table(content: Document) -> Table:
    runs = content["results"]["runs"]
    drawn = _table(f"{plain(content['model']['name'])}: p50 / p95 / p99")
    drawn.add_column("requests in flight")
    for run in runs:
        drawn.add_column(str(run["concurrency"]), justify="right")
    for heading, name in (("committed tokens/s", "tokens_per_second"), ("requests/s", "requests_per_second")):
        drawn.add_row(heading, *(number(run[name]) for run in runs))
    drawn.add_row("requests (failed)", *(f"{run['requests']} ({run['failed']})" for run in runs))
    drawn.add_row("prompt tokens (remembered)", *(_prompts(run) for run in runs))
    drawn.add_section()
    for name, (heading, factor) in METRICS.items():
        drawn.add_row(heading, *(_percentiles(run["metrics"][name], factor) for run in runs))
    if all("work" in run for run in runs):
        drawn.add_section()
        drawn.add_row("rows a pass", *(number(run["work"]["rows_per_pass"]) for run in runs))
        for heading, name in (("of arithmetic", "arithmetic_share"), ("of bandwidth", "bandwidth_share")):
            drawn.add_row(heading, *(share(run["work"][name]) for run in runs))
    return drawn


def _prompts(run: Mapping[str, Any]) -> str:
    counts = (run["prompt_tokens"], run["cached_tokens"])
    return " ".join("-" if n is None else f"{n:,}" if i == 0 else f"({n:,})" for i, n in enumerate(counts))


def _percentiles(summary: Mapping[str, float] | None, factor: float) -> str:
    if summary is None:
        return "-"
    return " / ".join(number(factor * summary[name]) for name in ("p50", "p95", "p99"))


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left")


def facts(content: Document) -> list[str]:
    """Lines below the tables: readiness, memory, machine, what went wrong."""
    results, machine = content["results"], content["machine"]
    lines = [
        *_prefills(results),
        *_ready(results),
        *_memory(results.get("memory")),
        *_probes(results.get("probes")),
    ]
    lines.append(f"machine: {plain(machine['processor'])}, {_threads(machine)}")
    for run in results.get("runs", []):
        lines += [f"failed {count} times: {plain(error)}" for error, count in run["errors"].items()]
    return lines + [f"note: {plain(note)}" for note in results.get("notes", [])]


def _prefills(results: Mapping[str, Any]) -> list[str]:
    """Where the time of encoding goes, largest part first."""
    lines = []
    for run in results.get("contexts", []):
        prefill = run["prefill"]
        parts = sorted(prefill["parts"].items(), key=lambda item: -item[1]["ms"])
        said = [
            f"{LABELS.get(name, name)} {share(part['share'])}"
            for name, part in parts
            if part["share"] >= 0.005
        ]
        rate = number(prefill["tokens_per_second"])
        lines.append(f"prefill of {run['context']} tokens: {rate} tokens/s ({'; '.join(said)})")
    return lines


def _threads(machine: Mapping[str, Any]) -> str:
    threads = {"torch": machine.get("torch_threads"), "native kernels": machine.get("native_threads")}
    said = [f"{count} in {name}" for name, count in threads.items() if count]
    return f"{machine['processors']} processors" + (f", threads: {', '.join(said)}" if said else "")


def _ready(results: Mapping[str, Any]) -> list[str]:
    ready = {name: seconds for name, seconds in (results.get("ready") or {}).items() if seconds is not None}
    words = {"load_s": "to load", "process_s": "since the program's start", "server_s": "for the server"}
    said = [f"{number(seconds)} s {words[name]}" for name, seconds in ready.items()]
    return [f"ready: {', '.join(said)}"] if said else []


def _memory(memory: Mapping[str, Any] | None) -> list[str]:
    if memory is None:
        return []
    most = memory["most_seen"]
    named = {
        "peak RSS": most["peak_rss"],
        "anonymous": most["anonymous"],
        "of it beyond the weights": memory.get("anonymous_beyond_weights"),
    }
    said = [f"{name} {size / 2**30:.2f} GiB" for name, size in named.items() if size is not None]
    return [f"memory: {', '.join(said)}"] if said else []


def _probes(probes: Mapping[str, Any] | None) -> list[str]:
    if probes is None:
        return []
    before, after = (probes["gmac_per_second"][when] for when in ("before", "after"))
    products = [
        f"{kind} {number(before[kind])} then {number(after[kind])}" for kind in before if before[kind]
    ]
    return [
        f"measured ceilings: {', '.join(products)} GMAC/s; reading {number(probes['gb_per_second'])} GB/s"
    ]


__all__ = ["LABELS", "METRICS", "facts", "number", "plain", "share", "tables"]
