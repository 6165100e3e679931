from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from canvaslm.cli.main import COMMANDS, Entry, explained, load_command, report
from canvaslm.errors import BadConfig, Offline, OutOfMemory, UsageError

from ..waiting import HUNG
from .conftest import Program


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HUNG)


def test_help_is_quick_and_imports_no_torch() -> None:
    """Quick because it reads little: nothing that computes, no library that such things need."""
    code = "import sys; from canvaslm.cli.main import main; main(['--help']); print(*sys.modules)"
    modules = set(_python(code).stdout.splitlines()[-1].split())
    assert not modules & {"torch", "numpy", "transformers", "jinja2", "tokenizers", "huggingface_hub"}
    heavy = ("session", "engine", "ops", "model", "weights", "server", "text", "train", "bench", "evals")
    assert not modules & {f"canvaslm.{name}" for name in heavy}


def test_help_lists_every_command_that_exists(program: Program) -> None:
    shown = program("--help")
    assert shown.code == 0
    for name in ("run", "chat", "show", "train", "eval"):
        assert f"  {name} " in shown.out
        assert COMMANDS[name].help in shown.out


def test_without_arguments_the_help_is_shown(program: Program) -> None:
    assert program().out == program("--help").out


def test_a_command_whose_module_is_missing_is_not_listed(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "fly", Entry("canvaslm.cli.fly", "command", "Fly."))
    assert "Fly." not in program("--help").out
    shown = program("fly")
    assert shown.code == 2
    assert "No such command 'fly'" in shown.err


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "canvaslm.cli.run", None)  # import raises ModuleNotFoundError
    monkeypatch.setitem(COMMANDS, "run", Entry("canvaslm_no_such_package.x", "command", "", "server"))

    def fail(name: str) -> None:
        raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")

    monkeypatch.setattr("canvaslm.cli.main.importlib.import_module", fail)
    with pytest.raises(UsageError, match=r"fastapi: pip install 'canvaslm\[server\]'"):
        load_command("run")


@pytest.mark.parametrize("name", ["run", "chat", "show", "train", "eval"])
def test_every_command_has_help(program: Program, name: str) -> None:
    shown = program(name, "--help")
    assert shown.code == 0
    assert f"Usage: canvaslm {name}" in shown.out


def test_help_groups_flags_and_keeps_examples(program: Program) -> None:
    shown = program("run", "--help").out
    headings = [
        line for line in shown.splitlines() if line in ("Options:", "Model:", "Sampling:", "Display:")
    ]
    assert headings == ["Options:", "Model:", "Sampling:", "Display:"]
    assert "\n  canvaslm run -p " in shown


def test_version(program: Program) -> None:
    import canvaslm

    assert program("--version").out == f"canvaslm {canvaslm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--no-such-flag"], "No such option: --no-such-flag"),
        (["run", "--seed", "many"], "--seed"),
        (["run", "-n", "0"], "--max-new-tokens"),
        (["run", "stray"], "stray"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_usage_errors_are_one_line_with_code_2(program: Program, arguments: list[str], message: str) -> None:
    shown = program(*arguments)
    assert shown.code == 2
    assert shown.out == ""
    assert shown.err.startswith("canvaslm: error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert "--help" in shown.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadConfig("config.json: hidden_size is missing"), 6),
        (OutOfMemory("needs 40 GB, 23 GB are free"), 4),
        (Offline("org/name: the network is off"), 5),
        (MemoryError(), 4),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 4),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 3),
        (PermissionError(13, "Permission denied", "x.txt"), 1),
        (ZeroDivisionError("division by zero"), 1),
    ],
)
def test_errors_become_one_line_and_their_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    shown = capsys.readouterr().err
    assert shown.startswith("canvaslm: error: ")
    assert shown.count("\n") == 1


def test_unexpected_errors_say_how_to_get_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CANVASLM_DEBUG", raising=False)
    assert "CANVASLM_DEBUG=1" in explained(ZeroDivisionError("x"))[0]
    monkeypatch.setenv("CANVASLM_DEBUG", "1")
    report(ZeroDivisionError("x"))
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: x\ncanvaslm: error: unexpected" in shown
    assert "CANVASLM_DEBUG" not in shown.splitlines()[-1]


def test_error_messages_cannot_reach_the_terminal_raw(capsys: pytest.CaptureFixture[str]) -> None:
    report(UsageError("no model named \x1b]0;owned\x07"))
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_interrupts_are_silent_130(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(error) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "import sys; from canvaslm.cli.main import main; from tests.cli.fake import FakeSession, install; "
        "install(FakeSession(answers=['word ' * 50000], places=100, steps=1)); "
        "sys.exit(main(['run', '-p', 'x', '-q']))"
    )
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -c 4', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=HUNG,
        cwd=__file__.rsplit("/tests/", 1)[0],
    )
    assert done.stdout == "word"
    assert done.stderr == ""


def test_every_flag_has_a_variable_and_no_two_share_one() -> None:
    for name in ("run", "chat", "show", "eval"):
        options = [p for p in load_command(name).params if p.param_type_name == "option" and p.name != "help"]
        variables = [p.envvar for p in options]
        assert all(variable.startswith("CANVASLM_") for variable in variables)
        assert len(set(variables)) == len(variables)
