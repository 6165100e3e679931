from __future__ import annotations

from pathlib import Path

import pytest

from canvaslm.cli.docs import app_names, main, page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"run: python -m canvaslm.cli.docs {PAGE}"


def test_every_command_and_exit_code_is_on_the_page() -> None:
    text = page()
    for name in app_names():
        assert f"### canvaslm {name}\n" in text
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f"\n| {code} | " in text


def test_check_fails_on_an_old_page_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "cli.md"
    old.write_text("old", encoding="utf-8")
    assert main([str(old), "--check"]) == 1
    assert old.read_text(encoding="utf-8") == "old"
    assert "out of date" in capsys.readouterr().err
    assert main([str(old)]) == 0
    assert main([str(old), "--check"]) == 0
