"""`canvaslm finetune` in a process of its own that is killed or interrupted: what goes on from it ends with
the very bytes of a run that nobody touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..waiting import wait_for

PROGRAM = [sys.executable, "-c", "import sys; from canvaslm.cli.main import main; sys.exit(main())"]
HUNG = 900.0  # seconds after which the test is wrong, not slow
STEPS = 8


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    rows = [{"question": f"Largest first: {i} {i + 7}", "answer": f"{i + 7} {i}"} for i in range(10, 50)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def begin(chats: Path, out: Path, *more: str, steps: int = STEPS) -> subprocess.Popen[str]:
    flags = ["--batch", "4", "--rank", "2", "--threads", "1", "--steps", str(steps), "--log-every", "1"]
    flags += ["--checkpoint-every", "2", "--valid", "20%", "--eval-every", "3"]
    command = [*PROGRAM, "finetune", "--data", str(chats), "--out", str(out), *flags, *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "100"})


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate(timeout=HUNG)
    return process.returncode, told


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Until a checkpoint is there."""
    made = out / "checkpoints" / f"step-{step:08d}" / "state.json"
    wait_for(lambda: made.is_file() or process.poll() is not None, HUNG)
    assert process.poll() is None, end(process)


def results(out: Path) -> dict[str, bytes]:
    found = {name: (out / name / "adapter_model.safetensors").read_bytes() for name in ("adapter", "last")}
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    return found | {"best": (out / "best.json").read_bytes()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_is_killed_or_interrupted_goes_on_to_the_same_bytes(
    chats: Path, tmp_path: Path, number: signal.Signals
) -> None:
    assert end(begin(chats, tmp_path / "whole"))[0] == 0
    out = tmp_path / "part"
    process = begin(chats, out)
    wait_for_step(process, out, 4)
    process.send_signal(number)
    code, told = end(process)
    if number == signal.SIGINT:
        assert code == 130
        assert "stopped by SIGINT after" in told
        assert "--resume goes on" in told
    else:
        assert code == -signal.SIGKILL
    code, told = end(begin(chats, out, "--resume"))
    assert code == 0, told
    assert "going on from step" in told
    assert results(out) == results(tmp_path / "whole")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out_and_the_one_before_it_used(chats: Path, tmp_path: Path) -> None:
    assert end(begin(chats, tmp_path / "whole"))[0] == 0
    out = tmp_path / "part"
    assert end(begin(chats, out))[0] == 0
    newest = out / "checkpoints" / f"step-{STEPS:08d}" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    code, told = end(begin(chats, out, "--resume"))
    assert code == 0, told
    assert "left out, as it is damaged" in told
    assert f"going on from step {STEPS - 2}" in told
    assert results(out) == results(tmp_path / "whole")
