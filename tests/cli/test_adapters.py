"""--adapter: what reaches the model of `run` and `chat`, and what `eval` makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from canvaslm.cli.adapter_options import Adapting
from canvaslm.errors import NotFound

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


def test_eval_of_a_server_takes_none(program: Program) -> None:
    shown = program("eval", "sort", "--url", "http://127.0.0.1:9", "--adapter", "a=x")
    assert shown.code == 2 and "-m names a server's" in shown.err
