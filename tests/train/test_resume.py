"""Going on: settings that changed, files that ran ahead of the checkpoint, checkpoints that are not whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from canvaslm.errors import BadModelFile, UsageError
from canvaslm.train.checkpoint import checkpoints
from canvaslm.train.data import Shuffled, TrainingExample
from canvaslm.train.resume import check_resumed, data_digest, trim_metrics
from canvaslm.train.settings import Settings, settings_from_dict
from canvaslm.train.sft import Trainer
from tests.tiny import tiny_model

EXAMPLES = [TrainingExample((2, 10 + i % 4, 20, 6), (10 + i % 4,) * 4 + (7,)) for i in range(12)]


def settings(folder: Path, **run: Any) -> Settings:
    return settings_from_dict(
        {
            "run": {"folder": str(folder), "steps": 6, **run}, "model": {"base": "unused"},
            "data": {"source": "unused", "batch": 4}, "lora": {"rank": 2},
        }
    )  # fmt: skip


def trainer(folder: Path) -> Trainer:
    return Trainer(tiny_model(1), Shuffled(EXAMPLES), settings(folder))


def two_checkpoints(folder: Path) -> list[Path]:
    made = trainer(folder)
    for _ in range(2):
        made.train_step()
        made.checkpoint()
    return checkpoints(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_checkpoint_that_is_cut_short_is_left_out(tmp_path: Path, name: str) -> None:
    _, newest = two_checkpoints(tmp_path)
    (newest / name).write_bytes((newest / name).read_bytes()[:-20])
    made = trainer(tmp_path)
    assert made.resume()
    assert made.step == 1
    (error,) = made.damaged
    assert str(newest) in str(error)


def test_without_a_whole_checkpoint_the_newest_one_s_error_is_told(tmp_path: Path) -> None:
    for folder in two_checkpoints(tmp_path):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadModelFile, match="step-00000002"):
        trainer(tmp_path).resume()


def test_what_may_change_and_what_may_not(tmp_path: Path) -> None:
    *_, newest = two_checkpoints(tmp_path)
    base = settings(tmp_path)
    assert check_resumed(newest, base) == []
    free = replace(base, run=replace(base.run, recompute=True, log_every=3))
    assert check_resumed(newest, free) == []
    slower = replace(base, optim=replace(base.optim, lr=1e-5))
    assert check_resumed(newest, slower) == ["note: optim.lr was 0.0001, and is 1e-05 from here on"]
    scaled = replace(base, lora=replace(base.lora, alpha=8.0, targets=["mlp"]))
    with pytest.raises(
        UsageError, match=r"lora.alpha 32.0 \(now 8.0\), lora.targets attention,mlp \(now mlp"
    ):
        check_resumed(newest, scaled)
    (newest / "state.json").write_text("{")
    assert check_resumed(newest, scaled) == []  # loading tells what is wrong with it


def test_other_data_have_another_digest() -> None:
    assert data_digest(["a", "b"], 2) == data_digest(["a", "b"], 2)
    assert len({data_digest(*given) for given in ((["a", "b"], 2), (["b", "a"], 2), (["a", "b"], 1))}) == 3


def test_metrics_of_steps_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    trim_metrics(file, 3)
    assert not file.exists()
    lines = [json.dumps({"step": step}) for step in range(1, 6)]
    file.write_text("\n".join(lines) + '\n{"step": 6, "lo')
    trim_metrics(file, 3)
    assert file.read_text() == "\n".join(lines[:3]) + "\n"
