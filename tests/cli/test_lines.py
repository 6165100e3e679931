from __future__ import annotations

from collections.abc import Callable

import pytest

from canvaslm.cli.lines import history_path, read_entry


def _reader(*lines: str) -> Callable[[str], str]:
    waiting = list(lines)

    def read(prompt: str) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    return read


def test_a_backslash_goes_on_in_the_next_line() -> None:
    assert read_entry(_reader("a\\", "b\\", "c", "d"), "> ", "… ") == "a\nb\nc"


def test_the_end_after_a_backslash_keeps_what_was_typed() -> None:
    assert read_entry(_reader("a\\"), "> ", "… ") == "a"


def test_the_end_is_the_end() -> None:
    with pytest.raises(EOFError):
        read_entry(_reader(), "> ", "… ")


def test_the_history_is_kept_with_the_state_of_the_user() -> None:
    assert str(history_path({"XDG_STATE_HOME": "/s"})) == "/s/canvaslm/history"
    assert history_path({}).parts[-4:] == (".local", "state", "canvaslm", "history")
