"""`canvaslm finetune`, as a user runs it: looks, trains, goes on, refuses; what it writes is an adapter."""

from __future__ import annotations

import json
import math
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


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Largest first: {i} {i + 7}", "chosen": f"{i + 7} {i}", "rejected": f"{i} {i + 7}"}
        for i in range(10, 50)
    ]
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
    assert "warning" not in told
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_told_with_what_helps(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("canvaslm.train.memory.available_memory", lambda device: 1000)
    assert tune(chats, "--out", str(tmp_path / "run"), "--dry-run") == 0
    told = capsys.readouterr().err
    helps = "--recompute, a --micro-batch below 4, a --max-length below 27, --phases denoise"
    assert f"warning: more than is free; what helps: {helps}" in told


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
    told = capsys.readouterr().err
    assert "finished after 3 steps" in told
    assert "note: run.steps was 2, and is 3 from here on" in told
    assert tune(chats, *more, "--steps", "3", "--resume", "--alpha", "4") == 2
    assert "was trained with lora.alpha 32.0 (now 4.0)" in capsys.readouterr().err
    chats.write_text(chats.read_text() + '{"question": "x", "answer": "y"}\n')
    assert tune(chats, *more, "--steps", "4", "--resume") == 0
    assert "note: the data are not those that the run began with" in capsys.readouterr().err


@pytest.mark.slow
def test_a_quantised_file_is_tuned_and_answers_with_the_adapter(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "demo.gguf", tmp_path / "run"
    assert main(["quantize", "demo", str(file), "Q8_0"]) == 0
    assert tune(chats, "-m", str(file), "--out", str(out), "--steps", "3", "--lr", "0.01") == 0
    assert "finished after 3 steps" in capsys.readouterr().err
    asked = ["run", "-m", str(file), "-p", "Largest first: 12 19"]
    assert main([*asked, "--adapter", str(out / "adapter")]) == 0
    assert capsys.readouterr().out.strip()


def test_preferences_are_looked_at_trained_on_and_gone_on_with(
    preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ["--out", str(out), "--objective", "dpo", "--valid", "20%", "--lr", "1e-3"]
    assert tune(preferences, *more, "--dry-run") == 0
    told = capsys.readouterr().err
    for part in (
        "<|turn>model\\n[[18 11<turn|>]]\n    rather than [[11 18<turn|>]]", "40 rows; 40 examples",
        "pairs of answers to train on", "steps of 4 pairs of answers", "s a step",
    ):  # fmt: skip
        assert part in told, part
    assert not out.exists()
    more += ["--eval-every", "1", "--samples", "1", "--sft-weight", "0.1"]
    assert tune(preferences, *more, "--steps", "2", "--beta", "0.2") == 0
    told = capsys.readouterr().err
    assert "sample: Largest first" in told
    assert "held out: loss" in told
    assert "accuracy" in told
    figures = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [figure["step"] for figure in figures] == [1, 2]
    names = {"loss", "margin", "accuracy", "chosen", "rejected", "canvas", "gradient", "rate", "examples"}
    assert names <= set(figures[0])
    assert figures[0]["loss"] == pytest.approx(math.log(2) + 0.1 * figures[0]["canvas"], abs=1e-4)
    assert figures[0]["examples"] == 4
    assert tune(preferences, *more, "--steps", "3", "--resume") == 0
    with canvaslm.load() as session:
        assert read_peft(out / "adapter", session.engine.config).has_equal_sides


def test_each_objective_refuses_the_other_s_table_and_flags(
    chats: Path, preferences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, dpo = ["--out", str(tmp_path / "run")], ["--objective", "dpo"]
    for table, flags, said in (
        (preferences, [], "trained on with --objective dpo; or name the better answer as completion"),
        (chats, dpo, "prompt, chosen, rejected; here are question, answer"),
        (preferences, [*dpo, "--every-turn"], "--every-turn: --objective dpo"),
        (preferences, [*dpo, "--beta", "0"], "objective.beta: 0.0 is not in"),
        (preferences, ["--beta", "1"], "--beta is a setting of --objective dpo"),
        (preferences, ["--sft-weight", "1"], "--sft-weight is a setting of --objective dpo"),
        (preferences, ["--objective", "ppo"], "--objective ppo: sft or dpo"),
        (preferences, [*dpo, "--valid", str(chats)], "chats.jsonl:1: --objective dpo compares two answers"),
    ):
        assert tune(table, *out, *flags) == 2
        assert said in capsys.readouterr().err
    better = ["--columns", "completion=chosen", "--steps", "1"]
    assert tune(preferences, *out, *better) == 0


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
        (["--valid", "100%"], "no share between"),
        (["--valid", "no.jsonl"], "no.jsonl: no such file"),
        (["--epochs", "0"], "--epochs 0: should be above 0"),
        (["--minutes", "-1"], "--minutes -1: should be above 0"),
        (["--steps", "0"], "greater than or equal to 1"),
        (["--rank", "0"], "greater than or equal to 1"),
        (["--resume"], "no checkpoint to resume from"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert tune(chats, "--out", str(tmp_path / "run"), *flags) in (2, 3)
    assert said in capsys.readouterr().err
