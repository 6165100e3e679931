"""`canvaslm bench`: answers under load, in process or of a server; a denoise step part by part; two runs compared."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import NotFound, UsageError
from .options import Loading, Sampling, grouped

if TYPE_CHECKING:
    from ..bench.client import Endpoint
    from ..bench.machine import Probes
    from ..bench.plan import LoadOptions
    from ..bench.prompts import Prompt
    from ..session import Session

_LOAD, _STEP, _SERVER = "Load", "Steps", "Server"
_STEPS = 4  # measured where --steps does not say


@grouped
def command(
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            rich_help_panel=_LOAD,
            help="Text with one prompt a line, or JSONL with prompt or messages; may be repeated. "
            "Without it: tasks of the demo model, or a few general prompts.",
        ),
    ] = None,
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency",
            "-c",
            metavar="N,...",
            rich_help_panel=_LOAD,
            help="Requests in flight; several numbers with commas between for one run each.",
        ),
    ] = "1",
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            min=1,
            metavar="N",
            rich_help_panel=_LOAD,
            help="Times each prompt is asked, always with another seed.",
        ),
    ] = 1,
    warmup: Annotated[
        int,
        typer.Option(
            "--warmup",
            min=0,
            metavar="N",
            rich_help_panel=_LOAD,
            help="Requests before each run that do not count.",
        ),
    ] = 2,
    max_rows: Annotated[
        int,
        typer.Option(
            "--max-rows",
            min=1,
            metavar="N",
            rich_help_panel=_LOAD,
            help="Answers worked on at once (in process); the others queue.",
        ),
    ] = 16,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            rich_help_panel=_LOAD,
            help="Remember prompts between requests (in process). Off, so that a repeat costs what it costs.",
        ),
    ] = False,
    step: Annotated[
        bool,
        typer.Option(
            "--step",
            rich_help_panel=_STEP,
            help="Measure denoise steps part by part instead; --steps says how many.",
        ),
    ] = False,
    context: Annotated[
        str | None,
        typer.Option(
            "--context",
            metavar="N,...",
            rich_help_panel=_STEP,
            help="Context lengths in tokens. Without it: 128,512.",
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows",
            metavar="N,...",
            rich_help_panel=_STEP,
            help="Measure a step at these numbers of rows, at the first context length.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            rich_help_panel=_SERVER,
            help="Measure an OpenAI-compatible server; -m is then the model's name there.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            rich_help_panel=_SERVER,
            help="The key to send is its first line. Or the variable CANVASLM_API_KEY.",
        ),
    ] = None,
    ready: Annotated[
        bool,
        typer.Option(
            "--ready", rich_help_panel=_SERVER, help="Wait until the server is ready, and report the seconds."
        ),
    ] = False,
    start: Annotated[
        str | None,
        typer.Option(
            "--start",
            metavar="COMMAND",
            rich_help_panel=_SERVER,
            help="Start the server with this command, and stop it in the end; reports its time to be ready and its memory.",
        ),
    ] = None,
    ready_timeout: Annotated[
        float,
        typer.Option(
            "--ready-timeout",
            min=0.1,
            metavar="SECONDS",
            rich_help_panel=_SERVER,
            help="How long to wait for a server.",
        ),
    ] = 600.0,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="A.json B.json",
            help="Print the ratios of two documents, and measure nothing.",
        ),
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Also write a JSON document; - is standard output, without the table then.",
        ),
    ] = None,
    probes: Annotated[
        bool,
        typer.Option(
            "--probes/--no-probes", help="Measure what the machine can do, and report shares of it."
        ),
    ] = True,
    loading: Loading = Loading(),
    sampling: Sampling = Sampling(),
) -> None:
    """Measure how fast a model answers: first draft, first committed text, steps, committed tokens a second.

    Rates are committed tokens over wall time. With --step, the time of one denoise step is split into parts and set
    against what the machine can do. docs/bench.md says how to read the figures.

    Examples:
      canvaslm bench -c 1,4,16 --json a.json
      canvaslm bench -m model.gguf --prompts questions.txt -n 256
      canvaslm bench -m model.gguf --step --context 128,512 --steps 4
      canvaslm bench --rows 1,4,16
      canvaslm bench --url http://127.0.0.1:8080 --ready
      canvaslm bench --url http://127.0.0.1:8080 --start "canvaslm serve model.gguf --port 8080"
      canvaslm bench --compare a.json b.json
    """  # fmt: skip
    _check_modes(url, step, rows, context, compare, start, ready)
    if compare is not None:
        _compare(compare)
        return
    from ..bench.plan import LoadOptions

    options = LoadOptions(
        numbers("--concurrency", concurrency), repeats, warmup, max_rows, prefix_cache, sampling.chosen()
    )
    asked = _asked(prompts)
    if url is not None:
        endpoint = _endpoint(url, api_key_file)
        _emit(
            _server(
                endpoint,
                loading.model,
                asked,
                options,
                start,
                ready_timeout if ready else None,
                ready_timeout,
            ),
            json,
        )
    elif step or rows is not None:
        _emit(_steps(loading, sampling, step, context, rows, probes), json)
    else:
        _emit(_load(loading, asked, options, probes), json)


def _check_modes(
    url: str | None,
    step: bool,
    rows: str | None,
    context: str | None,
    compare: object,
    start: str | None,
    ready: bool,
) -> None:
    """Raises UsageError for flags that cannot go together."""
    modes = [name for name, given in (("--url", url), ("--step", step), ("--compare", compare)) if given]
    if len(modes) > 1:
        raise UsageError(f"{modes[0]} and {modes[1]} are different measurements: choose one")
    if rows is not None and modes not in ([], ["--step"]):
        raise UsageError(f"--rows measures in process: leave out {modes[0]}", "rows")
    if context is not None and not (step or rows is not None):
        raise UsageError("--context goes with --step or --rows", "context")
    if url is None and (start or ready):
        raise UsageError(f"{'--start' if start else '--ready'} needs --url: where the server is", "url")


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """`1,4,16` as numbers from 1 on. Raises UsageError naming the flag."""
    try:
        found = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UsageError(
            f"{flag} {text}: should be whole numbers from 1 on, with commas between", flag.strip("-")
        )
    return found


def _asked(paths: list[Path] | None) -> list[Prompt] | None:
    """The prompts of the files, read before anything slow is done."""
    from ..bench.prompts import read_prompts

    return read_prompts(paths) if paths else None


def _default_prompts(is_demo: bool) -> list[Prompt]:
    from ..bench.prompts import demo_prompts, general_prompts

    return demo_prompts() if is_demo else general_prompts()


def _load(
    loading: Loading, asked: list[Prompt] | None, options: LoadOptions, probing: bool
) -> dict[str, Any]:
    session, ready = _open(loading)
    from ..bench.inprocess import load_document

    prompts = asked or _default_prompts(session.is_demo)
    with _bar(options.total(len(prompts))) as tick:
        return load_document(
            session, prompts, options, ready=ready, probes=_probes(session, probing), tick=tick
        )


def _steps(
    loading: Loading, sampling: Sampling, step: bool, context: str | None, rows: str | None, probing: bool
) -> dict[str, Any]:
    """`--steps` is how many are measured; the other sampling flags hold for them."""
    contexts = None if context is None else numbers("--context", context)
    counts = () if rows is None else numbers("--rows", rows)
    params = sampling.chosen()
    steps = params.pop("max_denoising_steps", _STEPS)
    preset = params.pop("preset", None)
    session, ready = _open(loading)
    from ..bench.inprocess import StepOptions, step_document

    options = StepOptions(contexts, steps, counts, parts=step)
    merged = session.merge(preset, params)
    with _status() as tell:
        return step_document(
            session, options, ready=ready, params=merged, probes=_probes(session, probing), tell=tell
        )


def _open(loading: Loading) -> tuple[Session, dict[str, float | None]]:
    """The session, and how long it took: loading alone, and since this program was started."""
    begin = time.perf_counter()
    session = loading.open()
    from ..bench.memory import running_seconds

    return session, {"load_s": time.perf_counter() - begin, "process_s": running_seconds()}


def _probes(session: Session, wanted: bool) -> Probes | None:
    from ..bench.machine import Probes

    return Probes(session.engine.runner.device) if wanted else None


def _endpoint(url: str, api_key_file: Path | None) -> Endpoint:
    from ..bench.client import Endpoint

    return Endpoint.parse(url, _key(api_key_file))


def _key(path: Path | None) -> str | None:
    """The first line of the file, or the one in the environment."""
    if path is None:
        return os.environ.get("CANVASLM_API_KEY") or None
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError as error:
        raise NotFound(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})", "api_key_file") from error
    if not lines:
        raise UsageError(f"{path}: holds no key", "api_key_file")
    return lines[0]


def _server(
    endpoint: Endpoint,
    model: str | None,
    asked: list[Prompt] | None,
    options: LoadOptions,
    start: str | None,
    wait: float | None,
    timeout: float,
) -> dict[str, Any]:
    from ..bench.client import Client, served_model
    from ..bench.remote import server_document, started, wait_ready

    with ExitStack() as stack:
        server = ready = None
        with _status() as tell:
            tell(f"waiting for {endpoint}")
            if start is not None:
                server = stack.enter_context(started(start, endpoint, timeout))
                ready = server.ready
            elif wait is not None:
                ready = wait_ready(endpoint, wait)
            name = model or served_model(endpoint)
        prompts = asked or _default_prompts(name == "demo")
        tick = stack.enter_context(_bar(options.total(len(prompts))))
        return server_document(
            Client(endpoint, name), prompts, options, ready=ready, server=server, tick=tick
        )


def _compare(paths: tuple[Path, Path]) -> None:
    from ..bench.compare import comparison
    from ..bench.document import read

    a, b = (read(path) for path in paths)
    _show(comparison(a, b, (str(paths[0]), str(paths[1]))))


def _emit(content: dict[str, Any], json: str | None) -> None:
    """The tables on standard output; the document where it is wanted."""
    from ..bench.document import as_json, write
    from ..bench.tables import tables

    if json == "-":
        print(as_json(content))
        return
    _show(tables(content))
    if json is not None:
        write(Path(json), content)
        print(f"written to {json}", file=sys.stderr)


def _show(parts: list[Any]) -> None:
    from rich.console import Console

    # Piped, a table is not squeezed to the 80 columns that rich assumes.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for part in parts:
        console.print(part)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of requests on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total)
        yield lambda count: progress.update(bar, advance=count)


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """One line on standard error that says what is being done; on a terminal only."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    # No spinner of its own thread's pace: it would take part in what is measured.
    with console.status(Text("starting"), refresh_per_second=1) as status:
        yield lambda text: status.update(Text(text))


__all__ = ["command", "numbers"]
