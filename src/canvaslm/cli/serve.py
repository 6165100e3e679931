"""`canvaslm serve`: a model over HTTP, until Ctrl-C."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import NotFound, UsageError
from .loading import open_session
from .options import Loading, Truncation, grouped
from .output import log
from .serve_options import MIB, Access, Budget, Listening, Served

if TYPE_CHECKING:
    import uvicorn

    from ..session import Session


@grouped
def command(
    source: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The model, as with --model.")
    ] = None,
    loading: Loading = Loading(),
    listening: Listening = Listening(),
    access: Access = Access(),
    budget: Budget = Budget(),
    served: Served = Served(),
    truncation: Truncation = Truncation(),
) -> None:
    """Serve a model over HTTP, to the clients of OpenAI, Anthropic, Ollama and llama-server.

    It listens at once and answers 503 until the model is loaded. Ctrl-C lets answers
    finish; a second one does not.

    Examples:
      canvaslm serve
      canvaslm serve org/name --adapter terse=runs/terse --adapter-dir runs
      canvaslm serve model.gguf --host 0.0.0.0 --api-key-file key.txt
    """
    require_packages()
    keys = read_keys(access.api_key_file, os.environ.get("CANVASLM_API_KEY"))
    host = listening.host
    check_exposure(host, keys)
    if source is not None and loading.model is not None:
        raise UsageError("MODEL is given twice: as an argument and with --model", "model")
    adapters = served.loading()
    opening = Opening(replace(loading, model=source or loading.model), budget, truncation.chosen(), adapters)
    opening.listener = listen(host, listening.port)
    log(f"canvaslm listens at {opening.address}" + (" (a key is needed)" if keys else ""))
    run(
        opening,
        listening,
        api_key=keys or None,
        allowed_hosts=hosts_of(host, split(access.allowed_hosts)),
        allowed_origins=split(access.allowed_origins),
        max_queue=budget.max_queue,
        max_body=budget.max_body * MIB,
        **served.serving(),
    )


def require_packages() -> None:
    """Raises UsageError where the server's packages are not installed."""
    for name in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(name) is None:
            raise UsageError(f"`canvaslm serve` needs the package {name}: pip install 'canvaslm[server]'")


def split(names: str | None) -> list[str]:
    """The entries of a list with commas."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def read_keys(path: str | None, variable: str | None) -> tuple[str, ...]:
    """The keys in a file, one a line, and the one in the environment. Raises UsageError, NotFound."""
    if variable is not None and not variable.strip():
        raise UsageError("CANVASLM_API_KEY is empty: set a key, or unset it")
    keys = [] if variable is None else [variable.strip()]
    if path is not None:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            raise NotFound(f"{path}: no such file") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path}: is not a text file", "api_key_file") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise UsageError(f"{path}: holds no key: write one a line", "api_key_file")
        keys += found
    return tuple(keys)


def check_exposure(host: str, keys: tuple[str, ...]) -> None:
    """Raises UsageError if anybody on the network could ask."""
    if not is_loopback(host) and not keys:
        raise UsageError(
            f"--host {host} can be reached from other machines: "
            "set a key with --api-key-file or CANVASLM_API_KEY",
            "host",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hosts_of(host: str, more: list[str]) -> list[str]:
    """Names the server may be called by. Reached from outside, it also answers to
    its name and to addresses."""
    from ..server.guard import ANY_ADDRESS, LOOPBACK

    outside = [] if is_loopback(host) else [ANY_ADDRESS, socket.gethostname()]
    return [*LOOPBACK, host, *outside, *more]


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError where the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"cannot listen at {host}:{port}: {reason}; choose another --port", "port"
        ) from error
    listener.set_inheritable(False)
    return listener


class Opening:
    """Loads the session, on the engine's thread, and says on standard error what is served.

    `sampling`: fields of `Params` for requests that do not set them themselves; `adapters`: further options
    of `canvaslm.load`.
    """

    listener: socket.socket
    server: uvicorn.Server | None = None

    def __init__(
        self,
        loading: Loading,
        budget: Budget,
        sampling: Mapping[str, Any] | None = None,
        adapters: Mapping[str, Any] | None = None,
    ) -> None:
        self.loading, self.budget = loading, budget
        self.sampling, self.adapters = sampling or {}, adapters or {}
        self.failure: BaseException | None = None

    @property
    def address(self) -> str:
        """Where the server is, as a URL."""
        host, port = self.listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def __call__(self) -> Session:
        try:
            session = open_session(self.loading, **self.budget.engine(), **self.adapters)
            session.params = session.merge(None, {**self.budget.params(), **self.sampling})
        except BaseException as error:
            self.failure = error
            if self.server is not None:
                self.server.should_exit = True
            raise
        for line in banner(session, self.address, self.budget.max_queue):
            log(line)
        return session


def banner(session: Session, address: str, max_queue: int) -> list[str]:
    """What is served, in a few lines."""
    from ..bench.arithmetic import held

    engine = session.engine
    weights = held(engine.runner.model).total
    kind = str(engine.runner.dtype).removeprefix("torch.")
    return [
        f"  model    {session.name} on {engine.runner.device}, {kind}",
        f"  memory   {_size(weights)} of weights, up to {_size(engine.prefixes.limit)} of remembered prompts",
        f"  limits   {engine.scheduler.max_rows} rows, {max_queue} waiting, "
        f"{engine.max_context} tokens of context, "
        f"{session.params.max_new_tokens} of an answer unless the client says",
        f"  ready    OPENAI_BASE_URL={address}/v1   reference: {address}/docs",
        *_adapters(session),
        *(f"  note     {note}" for note in session.notes),
    ]


def _adapters(session: Session) -> list[str]:
    names, size = session.adapters.names, _size(session.adapters.nbytes)
    return [f"  adapters {', '.join(names)} ({size})"] if names else []


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def run(opening: Opening, listening: Listening, **options: Any) -> None:
    """Serves until a signal. Raises what made loading the model fail."""
    import uvicorn

    from ..server.app import create_app
    from ..server.protocol import DrainingServer, TimedProtocol

    class Server(DrainingServer):
        """Ends with an exit code of its own instead of raising the signal again."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.should_exit:
                os._exit(130)
            self.should_exit = True
            # Not from here: the signal may have come in the middle of a line of the log, and a stream that is
            # written to cannot be entered again.
            finishing = "finishing the answers being written; once more to stop at once"
            try:
                asyncio.get_running_loop().call_soon_threadsafe(log, finishing)
            except RuntimeError:  # before the loop runs, or after
                log(finishing)

    log_to_stderr(listening.access_log)
    app = create_app(opening, **options)
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
    opening.server = Server(config, app.state.service.bridge, listening.drain_seconds)
    opening.server.run(sockets=[opening.listener])
    if opening.failure is not None:
        raise opening.failure
    log("canvaslm has stopped")


def log_to_stderr(access_log: bool) -> None:
    """Sends the server's loggers to standard error."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            log(record.getMessage(), faint=record.levelno <= logging.INFO)

    for name, level in (
        ("canvaslm.server", logging.WARNING),
        ("canvaslm.access", logging.INFO if access_log else logging.ERROR),
        ("uvicorn", logging.CRITICAL),
    ):
        logger = logging.getLogger(name)
        logger.handlers[:] = [Lines()]
        logger.setLevel(level)
        logger.propagate = False


__all__ = ["Opening", "banner", "check_exposure", "command", "hosts_of", "listen", "read_keys", "run"]
