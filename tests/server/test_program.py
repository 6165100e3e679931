"""`canvaslm serve` as a user runs it: a process of its own, stopped by signals, asked
by curl and a raw socket."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from canvaslm.demo.config import MODEL_FOLDER

from ..waiting import HUNG, wait_for
from .world import HELLO, Running, program, request_bytes, tiny_folder

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny-model")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    with program(str(folder)) as server:
        wait_ready(server)
        yield server


def wait_ready(server: Running) -> None:
    wait_for(lambda: httpx.get(f"{server.url}/health", timeout=HUNG).status_code == 200)


def ended(server: Running, seconds: float = HUNG) -> int:
    assert server.process is not None
    return server.process.wait(seconds)


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "canvaslm", "serve", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=HUNG, env={**os.environ, **environment}, check=False
    )


def test_it_says_what_it_serves(running: Running) -> None:
    text = "".join(running.log)
    assert re.search(r"listens at http://127\.0\.0\.1:\d+\n", text)
    assert "tiny-model" in text and "8642" not in text
    for word in (
        "model",
        "memory",
        "limits",
        "16 rows, 64 waiting, 512 tokens",
        f"OPENAI_BASE_URL={running.url}/v1",
    ):
        assert word in text


def test_the_access_log_has_a_line_for_each_request(running: Running) -> None:
    httpx.get(f"{running.url}/v1/models?secret=1", timeout=HUNG)
    wait_for(lambda: any(re.search(r"127\.0\.0\.1 GET /v1/models 200 \d+ ms", line) for line in running.log))
    assert not any("secret" in line for line in running.log)


def test_curl(running: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"messages": HELLO, "seed": 3, "stream": True})
    command = ["curl", "-sN", f"{running.url}{CHAT}", "-H", "Content-Type: application/json", "-d", body]
    text = subprocess.run(command, capture_output=True, text=True, timeout=HUNG, check=True).stdout
    assert text.startswith("data: {") and text.endswith("data: [DONE]\n\n")
    without_type = [word for word in command if word not in ("-H", "Content-Type: application/json")]
    refused = subprocess.run(without_type, capture_output=True, text=True, timeout=HUNG, check=True).stdout
    assert json.loads(refused)["error"]["code"] == "unsupported_media_type"


def test_a_raw_socket(running: Running) -> None:
    """Two requests on one connection, the second in pieces; then nonsense."""
    with running.connect() as raw:
        raw.sendall(request_bytes({"messages": HELLO, "seed": 3, "max_tokens": 8}))
        first = read_answer(raw)
        whole = request_bytes({"messages": HELLO, "seed": 3, "max_tokens": 8})
        for i in range(0, len(whole), 50):
            raw.sendall(whole[i : i + 50])
        assert read_answer(raw)["choices"] == first["choices"]
    with running.connect() as raw:
        raw.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{running.url}/health", timeout=HUNG).status_code == 200


def read_answer(raw: socket.socket) -> dict[str, Any]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += raw.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
    while len(body) < length:
        body += raw.recv(65536)
    answer: dict[str, Any] = json.loads(body)
    return answer


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_answers_finish(folder: Path, sig: signal.Signals) -> None:
    """However slow the machine is: the program may take all the time it needs for the answer."""
    with program(str(folder), "--drain-seconds", "3600") as server:
        wait_ready(server)
        with server.client() as client:
            body = {
                "messages": HELLO,
                "seed": 1,
                "max_tokens": 200,
                "stream": True,
                "confidence_threshold": 0.0,
            }
            with client.stream("POST", CHAT, json=body) as response:
                parts = response.iter_text()
                text = next(parts)
                assert server.process is not None
                server.process.send_signal(sig)
                wait_for(lambda: "finishing" in "".join(server.log))
                text += "".join(parts)
        assert text.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in text
        assert ended(server) == 0
        assert "finishing" in "".join(server.log)


def test_a_second_signal_does_not(folder: Path) -> None:
    with program(str(folder), "--drain-seconds", "3600") as server:
        wait_ready(server)
        assert server.process is not None
        raw = server.connect()
        raw.sendall(
            request_bytes(
                {
                    "messages": HELLO,
                    "max_tokens": 480,
                    "max_denoising_steps": 5000,
                    "confidence_threshold": 0.0,
                }
            )
        )
        wait_for(lambda: server.metric("requests_processing") == 1)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: "finishing" in "".join(server.log))
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGINT)
        assert ended(server) == 130
        raw.close()


def test_waiting_has_an_end(folder: Path) -> None:
    with program(str(folder), "--drain-seconds", "1") as server:
        wait_ready(server)
        raw = server.connect()
        raw.sendall(
            request_bytes(
                {
                    "messages": HELLO,
                    "max_tokens": 480,
                    "max_denoising_steps": 5000,
                    "confidence_threshold": 0.0,
                }
            )
        )
        wait_for(lambda: server.metric("requests_processing") == 1)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert ended(server) == 0
        raw.close()


def test_keys_from_a_file_and_from_the_environment(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n\nsecond-key\n")
    with program(
        str(folder), CANVASLM_API_KEY_FILE=str(keys), CANVASLM_API_KEY="third-key", CANVASLM_MAX_ROWS="3"
    ) as server:
        wait_ready(server)
        for key in ("first-key", "second-key", "third-key"):
            answer = httpx.get(f"{server.url}/props", headers={"x-api-key": key}, timeout=HUNG)
            assert answer.status_code == 200 and answer.json()["total_slots"] == 3
        assert httpx.get(f"{server.url}/props", timeout=HUNG).status_code == 401
        assert not any("-key" in line.replace("--api-key", "") for line in server.log)


def test_an_open_address_without_a_key_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n \n")
    for arguments, environment, text in (
        (["--host", "0.0.0.0"], {}, "set a key"),
        (["--host", "::"], {}, "set a key"),
        (["--host", "0.0.0.0"], {"CANVASLM_API_KEY": " "}, "is empty"),
        (["--api-key-file", str(empty)], {}, "holds no key"),
        (["model", "-m", "other"], {}, "given twice"),
    ):
        result = serve(*arguments, "--port", "0", **environment)
        assert result.returncode == 2 and text in result.stderr, result.stderr
    assert serve("--api-key-file", str(tmp_path / "missing")).returncode == 3


def test_no_key_on_the_command_line() -> None:
    assert serve("--api-key", "secret").returncode == 2


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = serve("--port", str(taken.getsockname()[1]))
    assert result.returncode == 2 and "cannot listen" in result.stderr


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = serve(str(tmp_path / "missing"), "--port", "0")
    assert result.returncode == 3 and "missing" in result.stderr


@pytest.mark.skipif(
    not (MODEL_FOLDER / "model.safetensors").exists(), reason="the demo model's weights are not here"
)
def test_the_demo_model() -> None:
    """The five lines of the README."""
    with program() as server:
        wait_ready(server)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        turns: Any = [{"role": "user", "content": "What is the capital of France?"}]
        answer = client.chat.completions.create(model="demo", messages=turns, seed=1)
        assert "Paris" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
