"""The program run in this process with a fake session, and in a pseudo-terminal of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from canvaslm.cli.main import main
from canvaslm.errors import NotFound

from .fake import FakeSession


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def object(self) -> Any:
        return json.loads(self.out)


Program = Callable[..., Outcome]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs `canvaslm ARGS` with a session (or an error to raise on loading); nothing is a terminal."""
    for name in [name for name in os.environ if name.startswith("CANVASLM_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, session: Any = None, stdin: str = "") -> Outcome:
        found: Any = session if session is not None else FakeSession()

        def load(source: str | None = None, **options: Any) -> Any:
            if isinstance(found, BaseException):
                raise found
            if source is not None and source.startswith("missing"):
                raise NotFound(f"{source}: no such model")
            found.loaded = {"source": source, **options}
            return found

        monkeypatch.setitem(sys.modules, "canvaslm.session", SimpleNamespace(load=load))
        monkeypatch.setattr(sys, "stdin", _stdin(stdin))
        code = main(list(arguments))
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return run


def _stdin(text: str) -> Any:
    import io

    return io.StringIO(text)
