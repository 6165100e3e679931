"""The same measurement against a server, and how long one takes to be ready."""

from __future__ import annotations

import contextlib
import http.client
import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..client import Endpoint, fields_of
from ..errors import CanvasError, NotFound, UsageError
from .client import Client
from .document import Document, document
from .host import describe_host
from .memory import Memory
from .plan import LoadOptions, Tick
from .prompts import Prompt
from .samples import Sample, summarise

_POLL = 0.05  # seconds between two looks at a server that is starting
_STOP_SECONDS = 20.0


def measure_server(
    client: Client, prompts: Sequence[Prompt], options: LoadOptions, tick: Tick = lambda count: None
) -> list[dict[str, Any]]:
    """One summary for each concurrency. Failed requests are counted, not raised."""
    bodies = request_bodies(prompts, options)
    found = []
    for concurrency in options.concurrency:
        drive(client, [bodies[i % len(bodies)] for i in range(options.warmup)], concurrency, tick)
        samples, wall = drive(client, bodies, concurrency, tick)
        found.append({"concurrency": concurrency, **summarise(samples, wall)})
    return found


def drive(
    client: Client, bodies: Sequence[Mapping[str, Any]], concurrency: int, tick: Tick
) -> tuple[list[Sample], float]:
    """Keeps `concurrency` requests in flight until all are answered: (samples, wall seconds)."""

    def one(body: Mapping[str, Any]) -> Sample:
        sample = client.ask(body)
        tick(1)
        return sample

    begin = time.perf_counter()
    pool = ThreadPoolExecutor(concurrency)
    try:
        samples = list(pool.map(one, bodies))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C drops what has not been sent
    return samples, time.perf_counter() - begin


def request_bodies(prompts: Sequence[Prompt], options: LoadOptions) -> list[dict[str, Any]]:
    """What is posted, less the model and the stream's options."""
    return [
        {"messages": list(prompt.messages), **fields_of(params)} for prompt, params in options.rounds(prompts)
    ]


def is_ready(endpoint: Endpoint) -> bool:
    """Whether a server can answer: `/health` says so, or where there is no such page, `/v1/models`.

    Raises UsageError where it is there and does not let us in.
    """
    with contextlib.suppress(OSError, http.client.HTTPException):
        status, _ = endpoint.get("/health", timeout=5.0)
        if status == 200:
            return True
        if status in (404, 405, 501):
            status, _ = endpoint.get("/v1/models", timeout=5.0)
        if status in (401, 403):
            raise UsageError(f"{endpoint} wants another key: see --api-key-file", "api_key_file")
        return status == 200
    return False


def wait_ready(endpoint: Endpoint, timeout: float, alive: Callable[[], None] = lambda: None) -> float:
    """Seconds until the server is ready. `alive` raises if it no longer can be. Raises
    NotFound after `timeout`."""
    begin = time.perf_counter()
    while not is_ready(endpoint):
        alive()
        if time.perf_counter() - begin > timeout:
            raise NotFound(f"{endpoint} was not ready after {timeout:g} s")
        time.sleep(_POLL)
    return time.perf_counter() - begin


@dataclass
class Started:
    """A server that was started here: `ready` is seconds from its start until it could answer."""

    process: subprocess.Popen[bytes]
    ready: float

    def memory(self) -> Memory:
        """Of the process itself, not of children."""
        return Memory.of(self.process.pid)


@contextmanager
def started(command: str, endpoint: Endpoint, timeout: float) -> Iterator[Started]:
    """Runs a server's command line until the block ends. Raises NotFound, CanvasError
    with the end of its log."""
    if is_ready(endpoint):
        raise UsageError(f"a server answers at {endpoint} already: --start needs a free port", "start")
    with tempfile.TemporaryFile() as log:
        process = _launch(command, log)

        def alive() -> None:
            if process.poll() is not None:
                raise CanvasError(f"the server ended with code {process.returncode}: {_tail(log)}")

        try:
            yield Started(process, wait_ready(endpoint, timeout, alive))
        finally:
            _stop(process)


def _launch(command: str, log: BinaryIO) -> subprocess.Popen[bytes]:
    """Starts the command in a session of its own, so that Ctrl-C reaches us alone."""
    try:
        words = shlex.split(command)
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    except FileNotFoundError as error:
        raise NotFound(f"--start: there is no program {words[0]}") from error
    except (ValueError, IndexError, OSError) as error:
        raise UsageError(f"--start {command!r}: {error}", "start") from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
            return


def _tail(log: BinaryIO, lines: int = 5) -> str:
    log.seek(0)
    text = log.read()[-4000:].decode("utf-8", "replace")
    return " / ".join(line.strip() for line in text.splitlines()[-lines:] if line.strip()) or "no log"


def server_document(
    client: Client,
    prompts: Sequence[Prompt],
    options: LoadOptions,
    *,
    ready: float | None = None,
    server: Started | None = None,
    tick: Tick = lambda count: None,
) -> Document:
    """Answers of a server under load. `ready`: seconds it was waited for; `server`: if it was started here.

    Raises CanvasError if not even one short request is answered.
    """
    client = client.negotiated(list(prompts[0].messages))
    runs = measure_server(client, prompts, options, tick)
    results = {
        "runs": runs,
        "ready": {"server_s": ready},
        "memory": None if server is None else {"most_seen": server.memory().to_dict()},
    }
    settings = options.to_dict(len(prompts))
    del settings["max_rows"], settings["prefix_cache"]
    return document(
        "server",
        machine=describe_host(),
        model={"name": client.model, "url": str(client.endpoint)},
        settings={**settings, "stream_options": dict(client.stream_options)},
        results=results,
    )


__all__ = [
    "Started",
    "drive",
    "is_ready",
    "measure_server",
    "request_bodies",
    "server_document",
    "started",
    "wait_ready",
]
