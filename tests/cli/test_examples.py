"""The examples of every `--help` that name no model file work as they stand, in an empty folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from canvaslm.cli.main import _EPILOG, COMMANDS, load_command
from canvaslm.ops import cpu

from ..waiting import HUNG, wait_for

# What an example needs that a user must have already.
NEEDS = (
    "model.gguf", "org/name", "--url", "questions.txt", "recipe.toml", "a.json b.json", "person.json",
    "template.txt", "config.json",
    "app.py", "my-adapter", "--adapter", "notes.md", "essay.txt", "labelled.jsonl", "chats.jsonl",
    "pairs.jsonl",
)  # fmt: skip
QUICK = ("run", "show", "quantize")


def examples(name: str) -> list[str]:
    """The lines under `Examples:` of a command's help."""
    text = load_command(name).help.partition("Examples:\n")[2]
    return [line.strip() for line in text.splitlines() if line.strip()]


def ready(lines: list[str]) -> list[str]:
    return [line for line in lines if not any(word in line for word in NEEDS)]


def environment(folder: Path) -> Mapping[str, str]:
    """One in which `canvaslm` is this program."""
    program = folder / "bin" / "canvaslm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m canvaslm "$@"\n')
    program.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if not name.startswith("CANVASLM_")}
    return {**own, "PATH": f"{program.parent}{os.pathsep}{own['PATH']}"}


# `calibrate` is of no use without questions whose answers are known, `adapter` without one, `finetune`
# without chats.
@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if name not in ("calibrate", "adapter", "finetune")]
)
def test_each_command_has_an_example_that_needs_nothing(name: str) -> None:
    assert ready(examples(name)), examples(name)


def test_the_examples_of_the_program_itself_are_such_too() -> None:
    assert len(ready([line for line in _EPILOG.splitlines() if line.startswith("  canvaslm")])) >= 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in COMMANDS]
)
def test_examples_run(name: str, tmp_path: Path) -> None:
    if name == "serve":
        pytest.skip("ends when it is told to: the next test")
    if name == "pack" and not cpu.available():
        pytest.skip("no native kernels here")
    variables = environment(tmp_path)
    for line in ready(examples(name)):
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=10 * HUNG,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert "error" not in done.stderr, line


def _is_ready(said: str) -> bool:
    """Whether the server whose words these are has loaded its model."""
    found = re.search(r"canvaslm listens at (http://127\.0\.0\.1:[0-9]+)\n", said)
    try:
        return found is not None and httpx.get(f"{found[1]}/health", timeout=HUNG).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("line", ready(examples("serve")))
def test_examples_of_serve_serve(line: str, tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with errors.open("w") as stream:
        server = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {line}"],
            cwd=tmp_path, env={**environment(tmp_path), "CANVASLM_PORT": "0"}, stderr=stream,
        )  # fmt: skip
        try:
            wait_for(lambda: _is_ready(errors.read_text()) or server.poll() is not None)
            server.send_signal(signal.SIGTERM)
            assert server.wait(HUNG) == 0, errors.read_text()
        finally:
            server.kill()
