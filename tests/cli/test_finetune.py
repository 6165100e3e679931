"""`canvaslm finetune`, as a user runs it: looks, trains, goes on, refuses; what it writes is an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import canvaslm
from canvaslm.cli.main import main
from canvaslm.weights.adapters.peft import read_peft


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    rows = [{"question": f"Largest first: {i} {i + 7}", "answer": f"{i + 7} {i}"} for i in range(10, 50)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def tune(chats: Path, *more: str) -> int:
    quick = ["--batch", "4", "--threads", "1", "--log-every", "1", "--rank", "2"]
    return main(["finetune", "--data", str(chats), *quick, *more])


def test_a_dry_run_tells_all_and_writes_nothing(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(chats, "--out", str(tmp_path / "run"), "--dry-run", "--valid", "20%") == 0
    told = capsys.readouterr().err
    for part in (
        "<|turn>model\\n[[17 10<turn|>]]", "40 rows; 40 examples", "held out",
        "22,400 parameters trained (rank 2",
        "memory: about", "steps of 4 examples", "s a step",
    ):  # fmt: skip
        assert part in told, part
    assert not (tmp_path / "run").exists()


def test_trains_goes_on_and_writes_what_loads(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ["--out", str(out), "--valid", "20%", "--eval-every", "1", "--samples", "1"]
    assert tune(chats, *more, "--steps", "2") == 0
    told = capsys.readouterr().err
    assert "sample: Largest first" in told
    assert "held out: loss" in told
    assert f"adapter: {out / 'adapter'}" in told
    figures = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [figure["step"] for figure in figures] == [1, 2]
    with canvaslm.load() as session:
        adapter = read_peft(out / "adapter", session.engine.config)
        assert adapter.has_equal_sides
        assert len(adapter.denoise) == len(
            [n for n in session.engine.runner.model.adaptable() if ".mlp." in n or "attn" in n]
        )
    assert tune(chats, *more, "--steps", "3") == 2
    assert "holds a run already; pass --resume" in capsys.readouterr().err
    assert tune(chats, *more, "--steps", "3", "--resume") == 0
    assert "finished after 3 steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
        (["--data", ""], "--data is missing"),
        (["--targets", "heads"], "'heads' is not one of attention"),
        (["--thinking", "no"], "keep or drop"),
        (["--columns", "prompt"], "expected OURS=THEIRS"),
        (["--epochs", "1", "--steps", "2"], "name one of --epochs, --steps and --minutes"),
        (["--report", "paper"], "'paper' is not one of tensorboard"),
        (["--valid", "0%"], "no share between"),
        (["--resume"], "no checkpoint to resume from"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert tune(chats, "--out", str(tmp_path / "run"), *flags) in (2, 3)
    assert said in capsys.readouterr().err
