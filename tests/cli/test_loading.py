from __future__ import annotations

import io

import pytest

from canvaslm.cli.loading import progress_line, progress_text

from .test_terminal import Tty


def test_progress_text() -> None:
    assert (
        progress_text("m.gguf", 5 * 10**8, 10**9, True)
        == f"loading m.gguf {'━' * 12}{'╌' * 12} 0.5 of 1.0 GB"
    )
    assert progress_text("m", 10**6, 10**6, False) == f"loading m {'#' * 24} 1.0 of 1.0 MB"
    assert progress_text("m\x1b", 0, 0, False).startswith("loading m␛ ###")


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with progress_line("m") as progress:
        assert progress is None


def test_the_line_is_gone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Tty()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_line("m") as progress:
        assert progress is not None
        progress(1, 2)
        assert "loading m" in stream.getvalue()
    assert stream.getvalue().endswith("\r\x1b[K")
