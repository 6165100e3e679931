"""The example that README shows: the demo model learns a task that it fails."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from canvaslm.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> Any:
    return script("largest_first")


def pairs(file: Path) -> list[tuple[str, str]]:
    lines = (json.loads(line)["messages"] for line in file.read_text().splitlines())
    return [(asked["content"], said["content"]) for asked, said in lines]


def test_data_are_the_same_each_time_and_what_is_held_out_was_not_trained(
    example: Any, tmp_path: Path
) -> None:
    for name in "ab":
        example.make(tmp_path / name, 300, 50)
    train, test = (pairs(tmp_path / "a" / f"{part}.jsonl") for part in ("train", "test"))
    assert train == pairs(tmp_path / "b" / "train.jsonl")
    assert (len(train), len(test)) == (300, 50)
    sets = [{tuple(sorted(said.split())) for _, said in part} for part in (train, test)]
    assert not sets[0] & sets[1]
    for asked, said in train:
        numbers = [int(n) for n in asked.removeprefix("Largest first: ").split()]
        assert [int(n) for n in said.split()] == sorted(numbers, reverse=True)


@pytest.mark.slow
def test_the_demo_model_learns_it(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example.make(tmp_path, 800, 50)
    run = ["--lr", "4e-3", "--batch", "16", "--steps", "50", "--threads", "1", "--out", str(tmp_path / "run")]
    assert main(["finetune", "--data", str(tmp_path / "train.jsonl"), *run]) == 0
    capsys.readouterr()
    example.check(tmp_path, None, tmp_path / "run" / "adapter")
    base, tuned = (int(right) for right in re.findall(r"(\d+) of 50", capsys.readouterr().out))
    assert base == 0
    assert tuned >= 5  # measured: 12; 165 of 200 after the 280 steps that README takes


@pytest.mark.parametrize("size", [4, 9])
def test_every_sudoku_has_the_one_solution_that_is_trained(tmp_path: Path, size: int) -> None:
    sudoku = script("sudoku")
    sudoku.make(tmp_path, size, 12, 4)
    train, test = (pairs(tmp_path / f"{part}.jsonl") for part in ("train", "test"))
    assert (len(train), len(test), len({*train, *test})) == (12, 4, 16)
    for asked, said in (*train, *test):
        given = asked.removeprefix(sudoku.PROMPT).replace("\n", "")
        whole = said.replace("\n", "")
        assert all(a in (".", b) for a, b in zip(given, whole, strict=True))
        grid = [0 if cell == "." else int(cell) for cell in given]
        assert sudoku.solutions(list(grid), size) == 1
        for i in range(size):
            assert {whole[i * size + j] for j in range(size)} == {str(d + 1) for d in range(size)}
            assert {whole[j * size + i] for j in range(size)} == {str(d + 1) for d in range(size)}
