"""A tiny server: a random model with the demo model's tokenizer and template, in
this process or in another."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.engine import Engine
from canvaslm.server import create_app
from canvaslm.session import Session
from canvaslm.text.chat import ChatTemplate
from canvaslm.text.tokenizer import Tokenizer
from canvaslm.types import Params

from ..tiny import tiny_model
from ..waiting import HUNG, StepGate, wait_for

VOCAB = 1024
HELLO = [{"role": "user", "content": "Hello"}]
EXTRAS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def tiny_session(seed: int = 0, max_rows: int = 8, **options: Any) -> Session:
    """A session that answers nonsense, quickly: canvases of 8 places, at most 6 steps each."""
    model = tiny_model(seed, vocab_size=VOCAB, max_position_embeddings=512)
    tokenizer = Tokenizer.from_folder(MODEL_FOLDER)
    return Session(
        Engine(model, max_rows=max_rows, **options),
        tokenizer,
        ChatTemplate.from_folder(MODEL_FOLDER, tokenizer),
        params=Params(max_new_tokens=24, max_denoising_steps=6),
        eos_token_ids=tokenizer.eos_ids,
        name="tiny",
    )


def scripted_session(*answers: str | list[str], max_rows: int = 8) -> Session:
    """A tiny session whose canvases settle on given texts; markers such as
    `<|tool_call>` become control tokens.

    The answer is that of the request's place in `answers`, by its seed.
    """
    session = tiny_session(max_rows=max_rows)
    scripts = [_ids(session, answer) for answer in answers]
    engine = session.engine
    run = engine.runner.run

    def scripted(rows: list[Any]) -> Any:
        made = run(rows)
        return replace(made, denoised=[_scripted(part, scripts) for part in made.denoised])

    engine.runner.run = scripted  # type: ignore[method-assign]
    return session


def _scripted(said: Any, scripts: list[list[int]]) -> Any:
    drafts = [
        _script(scripts[row.sequence.seed % len(scripts)], row.sequence, argmax)
        for row, argmax in zip(said.rows, said.prediction.argmax, strict=True)
    ]
    return replace(said, prediction=replace(said.prediction, argmax=torch.stack(drafts)))


def paced(seconds: float, **options: Any) -> Any:
    """A tiny session whose steps take their time."""
    session = tiny_session(**options)
    run = session.engine.runner.run

    def slow(rows: Any) -> Any:
        time.sleep(seconds)
        return run(rows)

    session.engine.runner.run = slow  # type: ignore[method-assign]
    return session


def _script(script: list[int], sequence: Any, argmax: torch.Tensor) -> torch.Tensor:
    begin = len(sequence.output)
    wanted = script[begin : begin + len(argmax)]
    return torch.tensor(wanted + script[-1:] * (len(argmax) - len(wanted)))


def _ids(session: Session, answer: str | list[str]) -> list[int]:
    from canvaslm.text.markers import Special

    tokenizer = session.tokenizer
    text = answer if isinstance(answer, str) else "".join(answer)
    pieces = [p for p in re.split(r"(<\|?[a-z_\"]+\|?>)", text) if p]
    marked = [Special(p) if tokenizer.marker_id(p) is not None else p for p in pieces]
    return [*tokenizer.encode_pieces(marked), tokenizer.eos_ids[0]]


@dataclass
class Running:
    """A server on a socket of its own."""

    url: str
    app: Any = None
    log: list[str] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=HUNG, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=HUNG)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=HUNG).text
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if re.match(rf"canvaslm_{name}[ {{]", line)
        )


@contextlib.contextmanager
def serving(session: Session | Callable[[], Session], **options: Any) -> Iterator[Running]:
    """The application behind uvicorn, on a thread of this process."""
    app = create_app(session, **options)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http="h11", ws="none", lifespan="on", log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", app)
    finally:
        server.should_exit = True
        thread.join(HUNG)
        assert not thread.is_alive()


@contextlib.contextmanager
def program(*arguments: str, **environment: str) -> Iterator[Running]:
    """`canvaslm serve` in a process of its own, once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "canvaslm", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
    )
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=_read, args=(process.stderr, lines), daemon=True)
    reader.start()
    try:
        wait_for(lambda: any("listens at" in line for line in lines) or process.poll() is not None)
        found = re.search(r"listens at (http://\S+)", "".join(lines))
        assert found, "".join(lines)
        yield Running(found[1], log=lines, process=process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(HUNG)
        reader.join(HUNG)


def _read(stream: Iterable[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The objects of a finished stream of events, which must end as OpenAI's do."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def tiny_folder(path: Path) -> Path:
    """A checkpoint of a random model with the demo model's tokenizer."""
    from canvaslm.weights.safetensors_.export import save_folder

    model = tiny_model(0, vocab_size=VOCAB, max_position_embeddings=512)
    files = {name: MODEL_FOLDER / name for name in EXTRAS}
    generation = {"max_new_tokens": 24, "max_denoising_steps": 6, "eos_token_id": [1]}
    return save_folder(model, model.config, path, generation=generation, files=files)


def request_bytes(body: dict[str, Any], path: str = "/v1/chat/completions") -> bytes:
    data = json.dumps(body).encode()
    return request_head(path, len(data)) + data


def request_head(path: str, length: int) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def orders_to_the_engine(server: Running) -> list[Any]:
    """What is posted to the engine's thread from now on, as it comes."""
    bridge, orders = server.app.state.service.bridge, []
    post = bridge.post

    def noted(order: Any) -> None:
        orders.append(order)
        post(order)

    bridge.post = noted
    return orders


def leave_during_a_step(server: Running, gate: StepGate, request: bytes, *, seen: bytes, orders: int) -> None:
    """A client that has read up to `seen` hangs up while the engine stands in the gate, which then opens.

    `orders`: how many requests the server is to cancel, which is waited for; a stream says it twice.
    """
    raw = server.connect()
    raw.sendall(request)
    data = b""
    while seen not in data:
        data += raw.recv(65536)
    gate.wait_held()
    posted = orders_to_the_engine(server)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, at once
    raw.close()
    wait_for(lambda: len(posted) >= orders)
    gate.open()


__all__ = [
    "HELLO", "Running", "chunks_of", "leave_during_a_step", "paced", "program", "request_bytes",
    "request_head", "scripted_session", "serving", "tiny_folder", "tiny_session",
]  # fmt: skip
