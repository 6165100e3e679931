"""`canvaslm train`: trains, resumes, refuses clearly. A tiny model from scratch on a source of this file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from canvaslm.cli import train
from canvaslm.errors import UsageError
from tests.tiny import tiny_config


class Words:
    def example(self, seed: int, index: int) -> tuple[list[int], list[int]]:
        return [2, 5, 6], [10 + index % 4, 7]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(tiny_config().to_dict()))
    file = tmp_path / "recipe.toml"
    file.write_text(f"""
        [run]
        folder = {json.dumps(str(tmp_path / "run"))}
        steps = 3
        log_every = 1
        [model]
        config = "model"
        [data]
        source = "{__name__}:Words"
        batch = 2
    """)
    return file


def run(*arguments: str) -> Result:
    import typer

    app = typer.Typer()
    app.command()(train.command)
    return CliRunner().invoke(app, list(arguments))


def failure(*arguments: str) -> BaseException:
    exception = run(*arguments).exception
    assert exception is not None
    return exception


def test_trains_exports_and_resumes(recipe: Path) -> None:
    result = run(str(recipe))
    assert result.exit_code == 0, result.output
    folder = recipe.parent / "run"
    assert (folder / "export" / "model.safetensors").is_file()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    assert "finished after 3 steps" in result.stderr
    again = run(str(recipe), "--resume", "--set", "run.steps=5")
    assert "finished after 5 steps" in again.stderr
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_dry_run_writes_nothing_and_estimates(recipe: Path) -> None:
    result = run(str(recipe), "--dry-run", "--set", "run.steps=100")
    assert result.exit_code == 0, result.output
    assert "100 steps in all" in result.stdout
    assert not (recipe.parent / "run").exists()


def test_an_old_run_is_not_overwritten_and_a_missing_one_not_resumed(recipe: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint to resume"):
        raise failure(str(recipe), "--resume")
    run(str(recipe))
    with pytest.raises(UsageError, match="pass --resume"):
        raise failure(str(recipe))


def test_a_wrong_override_is_an_error_before_anything_is_loaded(recipe: Path) -> None:
    with pytest.raises(UsageError, match=r"optim\.lrr: unknown key; did you mean optim\.lr"):
        raise failure(str(recipe), "--set", "optim.lrr=1")
