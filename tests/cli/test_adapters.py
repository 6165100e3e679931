"""--adapter: what reaches the model of `run` and `chat`, and what `eval` makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import canvaslm
from canvaslm.cli.adapter_options import Adapting
from canvaslm.cli.main import main
from canvaslm.errors import NotFound
from canvaslm.session import Session
from canvaslm.weights.adapters.peft_write import write_peft

from ..adapters import random_adapter
from ..tiny import tiny_model
from .conftest import Program
from .fake import FakeSession


def _session(*names: str) -> Any:
    def use(name: str) -> None:
        if name not in names:
            raise NotFound(f"there is no adapter {name!r}: known are {', '.join(names)}")

    session: Any = FakeSession(["one", "two", "three"])
    session.adapters = SimpleNamespace(names=names, use=use)
    return session


def test_the_first_of_several_is_used(program: Program) -> None:
    session = FakeSession()
    flags = ("--adapter", "terse=runs/a", "--adapter", "/models/long/", "--adapter-scale", "0.5")
    assert program("run", "-p", "hi", *flags, session=session).code == 0
    assert session.loaded["adapters"] == {"terse": "runs/a", "long": "/models/long/"}  # type: ignore[attr-defined]
    assert session.asked[0][1]["adapter"] == [("terse", 0.5)]


def test_without_one_nothing_is_said_of_adapters(program: Program) -> None:
    session = FakeSession()
    program("run", "-p", "hi", session=session)
    assert "adapters" not in session.loaded and "adapter" not in session.asked[0][1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("given", [["/a/b=c/run"], ["./run"], ["run"]])
def test_a_folder_alone_gives_its_name(given: list[str]) -> None:
    assert Adapting(adapter=given).paths() == {"run": given[0]}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--adapter", "a=x", "--adapter", "a=y"], "there is an adapter 'a' already"),
        (["--adapter", "a="], "give a folder"),
        (["--adapter", "=x"], "give a folder"),
        (["--adapter-scale", "2"], "needs an --adapter"),
    ],
)
def test_what_is_no_adapter_is_told(program: Program, flags: list[str], told: str) -> None:
    shown = program("run", "-p", "hi", *flags)
    assert shown.code == 2 and told in shown.err


def test_chat_switches_between_adapters(program: Program, tmp_path: Path) -> None:
    session, file = _session("terse", "long"), tmp_path / "chat.json"
    lines = ("a", "/adapter long", "b", f"/save {file}", "/adapter off", "c", "/adapter")
    flags = ("--adapter", "terse=x", "--adapter", "long=y", "--adapter-scale", "2")
    shown = program("chat", "-q", *flags, session=session, stdin="\n".join(lines) + "\n")
    assert shown.code == 0
    chosen = [options.get("adapter") for _, options in session.asked]
    assert chosen == [[("terse", 2.0)], [("long", 2.0)], None]
    assert json.loads(file.read_text())["options"]["adapter"] == [["long", 2.0]]
    assert "adapter: off (there are: terse, long)" in shown.err


def test_chat_tells_of_one_that_there_is_not(program: Program) -> None:
    shown = program("chat", "-q", session=_session("terse"), stdin="/adapter other\n")
    assert shown.code == 3 and "known are terse" in shown.err


# What is asked of the demo model, and the part of its answer that an adapter changes.
COMMANDS = {
    "fill": (("-", "--json", "--seed", "1", "-n", "8"), "ab<hole>cd", "text"),
    "edit": (("-", "-l", "1", "-p", "write", "--json", "--seed", "1", "-n", "8"), "ab\ncd\n", "text"),
    "decide": (("-", "--json", "-q", "Which? :: red | green"), "A state", "answers"),
    "score": (("-", "--json"), "over there", "texts"),
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """The demo model with an adapter "one"."""
    with canvaslm.load() as loaded:
        model = loaded.engine.runner.model
        folder = write_peft(random_adapter(model), tmp_path_factory.mktemp("a") / "one", model.config)
        loaded.adapters.load("one", folder)
        yield loaded


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_filled_edited_decided_and_scored_takes_one(
    program: Program, session: Session, command: str
) -> None:
    arguments, text, part = COMMANDS[command]

    def said(*flags: str) -> Any:
        return program(command, *arguments, *flags, stdin=text, session=session).object[part]

    plain = said()
    assert "adapters" not in session.loaded  # type: ignore[attr-defined]
    one = said("--adapter", "one=runs/a")
    assert session.loaded["adapters"] == {"one": "runs/a"}  # type: ignore[attr-defined]
    assert one != plain
    assert said("--adapter", "one=runs/a", "--adapter-scale", "0") == plain
    assert said("--adapter", "one=runs/a", "--adapter-scale", "0.5") not in (plain, one)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_missing_or_of_another_model_is_told(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text(COMMANDS[command][1])
    other = tiny_model(0, hidden_size=32)
    write_peft(random_adapter(other), tmp_path / "other", other.config)
    arguments = [str(tmp_path / "text"), *COMMANDS[command][0][1:]]
    for folder, code, told in (("nothing", 3, "there is no such"), ("other", 6, "does not fit this model")):
        assert main([command, *arguments, "--adapter", str(tmp_path / folder)]) == code
        shown = capsys.readouterr()
        assert told in shown.err and str(tmp_path / folder) in shown.err and shown.out == ""
    assert main([command, *arguments, "--adapter-scale", "2"]) == 2
    assert "needs an --adapter" in capsys.readouterr().err


def test_eval_of_a_server_takes_none(program: Program) -> None:
    shown = program("eval", "sort", "--url", "http://127.0.0.1:9", "--adapter", "a=x")
    assert shown.code == 2 and "-m names a server's" in shown.err
