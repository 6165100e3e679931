"""`canvaslm bench`: answers under load, in process or of a server; a denoise step part by
part; two runs compared."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..files import check_output
from .bench_options import Output, Remote, Requests, StepFlags, numbers
from .options import Loading, Sampling, grouped
from .output import log
from .progress import progress_bar

if TYPE_CHECKING:
    from ..bench.machine import Probes
    from ..bench.plan import LoadOptions
    from ..bench.prompts import Prompt
    from ..client import Endpoint
    from ..session import Session

_STEPS = 4  # measured where --steps does not say


@grouped
def command(
    requests: Requests = Requests(),
    steps: StepFlags = StepFlags(),
    remote: Remote = Remote(),
    output: Output = Output(),
    loading: Loading = Loading(),
    sampling: Sampling = Sampling(),
) -> None:
    """Measure how fast a model answers: first draft, first committed text, steps, committed tokens a second.

    Rates are committed tokens over wall time. With --step, the time of one denoise step is split into parts
    and set against what the machine can do. docs/bench.md says how to read the figures.

    Examples:
      canvaslm bench -c 1,4,16 --json a.json
      canvaslm bench -m model.gguf --prompts questions.txt -n 256
      canvaslm bench -m model.gguf --step --context 128,512 --steps 4
      canvaslm bench --rows 1,4,16
      canvaslm bench -m model.gguf --answer 5,20,60,250
      canvaslm bench --url http://127.0.0.1:8080 --ready
      canvaslm bench --url http://127.0.0.1:8080 --start "canvaslm serve model.gguf --port 8080"
      canvaslm bench --compare a.json b.json
    """  # fmt: skip
    _check_modes(steps, remote, output)
    if output.compare is not None:
        _compare(output.compare)
        return
    if output.json not in (None, "-"):
        check_output(Path(output.json), force=True, param="json")  # before anything slow is done
    options = _load_options(requests, sampling)
    asked = _asked(requests.prompts)
    if (endpoint := remote.endpoint()) is not None:
        document = _server(endpoint, loading.model, asked, options, remote)
    elif steps.answer is not None:
        document = _answers(loading, sampling, steps)
    elif steps.wanted:
        document = _steps(loading, sampling, steps, output.probes)
    else:
        document = _load(loading, asked, options, output.probes)
    _emit(document, output.json)


def _check_modes(steps: StepFlags, remote: Remote, output: Output) -> None:
    """Raises UsageError for flags that cannot go together."""
    named = (
        ("--url", remote.url), ("--step", steps.step), ("--answer", steps.answer),
        ("--compare", output.compare),
    )  # fmt: skip
    modes = [name for name, given in named if given]
    if len(modes) > 1:
        raise UsageError(f"{modes[0]} and {modes[1]} are different measurements: choose one")
    if steps.rows is not None and modes not in ([], ["--step"]):
        raise UsageError(f"--rows measures in process: leave out {modes[0]}", "rows")
    if steps.context is not None and not steps.wanted and steps.answer is None:
        raise UsageError("--context goes with --step, --rows or --answer", "context")
    if steps.habits is not None and steps.answer is None:
        raise UsageError("--habits goes with --answer", "habits")
    if remote.url is None and (remote.start or remote.ready):
        flag = "--start" if remote.start else "--ready"
        raise UsageError(f"{flag} needs --url: where the server is", "url")


def _load_options(requests: Requests, sampling: Sampling) -> LoadOptions:
    from ..bench.plan import LoadOptions

    return LoadOptions(
        numbers("--concurrency", requests.concurrency),
        requests.repeats,
        requests.warmup,
        requests.max_rows,
        requests.prefix_cache,
        sampling.chosen(),
    )


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
    with progress_bar(options.total(len(prompts)), "requests") as tick:
        return load_document(
            session, prompts, options, ready=ready, probes=_probes(session, probing), tick=tick
        )


def _steps(loading: Loading, sampling: Sampling, flags: StepFlags, probing: bool) -> dict[str, Any]:
    """`--steps` is how many are measured; the other sampling flags hold for them."""
    contexts = None if flags.context is None else numbers("--context", flags.context)
    counts = () if flags.rows is None else numbers("--rows", flags.rows)
    params = sampling.chosen()
    steps = params.pop("max_denoising_steps", _STEPS)
    preset = params.pop("preset", None)
    session, ready = _open(loading)
    from ..bench.inprocess import StepOptions, step_document

    options = StepOptions(contexts, steps, counts, parts=flags.step)
    merged = session.merge(preset, params)
    with _status() as tell:
        return step_document(
            session, options, ready=ready, params=merged, probes=_probes(session, probing), tell=tell
        )


def _answers(loading: Loading, sampling: Sampling, flags: StepFlags) -> dict[str, Any]:
    """`--context`: what stands before the answer; `--steps` is how often each pass is measured."""
    from ..bench.habits import read_habits

    params = sampling.chosen()
    repeats, preset = params.pop("max_denoising_steps", _STEPS), params.pop("preset", None)
    if params:
        raise UsageError(f"--answer compares presets as they are: leave out {next(iter(params))}")
    lengths = numbers("--answer", flags.answer or "")
    contexts = numbers("--context", flags.context or "128")
    if len(contexts) > 1:
        raise UsageError("--answer is measured at one --context", "context")
    habits = read_habits(flags.habits)
    if preset is not None:
        habits = [habit for habit in habits if habit.preset in (preset, "quality")]
    session, ready = _open(loading)
    from ..bench.inprocess import answers_document

    with _status() as tell:
        return answers_document(
            session, lengths, habits, ready=ready, context=contexts[0], repeats=repeats, tell=tell
        )


def _open(loading: Loading) -> tuple[Session, dict[str, float | None]]:
    """The session, and how long it took: loading alone, and since this program was started."""
    begin = time.perf_counter()
    session = loading.open()
    for note in session.notes:
        log(f"note: {note}")
    from ..bench.memory import running_seconds

    return session, {"load_s": time.perf_counter() - begin, "process_s": running_seconds()}


def _probes(session: Session, wanted: bool) -> Probes | None:
    from ..bench.machine import Probes

    return Probes(session.engine.runner.device) if wanted else None


def _server(
    endpoint: Endpoint,
    model: str | None,
    asked: list[Prompt] | None,
    options: LoadOptions,
    remote: Remote,
) -> dict[str, Any]:
    from ..bench.client import Client
    from ..bench.remote import server_document, started, wait_ready
    from ..client import served_model

    with ExitStack() as stack:
        server = ready = None
        with _status() as tell:
            tell(f"waiting for {endpoint}")
            if remote.start is not None:
                server = stack.enter_context(started(remote.start, endpoint, remote.ready_timeout))
                ready = server.ready
            elif remote.ready:
                ready = wait_ready(endpoint, remote.ready_timeout)
            name = model or served_model(endpoint)
        prompts = asked or _default_prompts(name == "demo")
        tick = stack.enter_context(progress_bar(options.total(len(prompts)), "requests"))
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
def _status() -> Iterator[Callable[[str], None]]:
    """One line on standard error that says what is being done; on a terminal only."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    # No spinner of its own thread's pace: it would take part in what is measured.
    with console.status(Text("starting"), refresh_per_second=1) as status:
        yield lambda text: status.update(Text(text))


__all__ = ["command"]
