from __future__ import annotations

from pathlib import Path

import pytest

from canvaslm.cli.docs import app_names, main, page
from canvaslm.cli.parameter_table import with_table
from canvaslm.errors import UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"run: python -m canvaslm.cli.docs {PAGE}"


def test_every_command_and_exit_code_is_on_the_page() -> None:
    text = page()
    for name in app_names():
        assert f"### canvaslm {name}\n" in text
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f"\n| {code} | " in text


def test_the_table_of_parameters_is_what_the_program_says() -> None:
    path = PAGE.with_name("sampling.md")
    text = path.read_text(encoding="utf-8")
    assert text == with_table(text), f"run: python -m canvaslm.cli.docs {path}"
    with pytest.raises(UsageError, match="lost the marks"):
        with_table("# Sampling\n")


def test_unknown_pages_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "tales.md")]) == 2
    assert "tales.md" in capsys.readouterr().err
    assert not (tmp_path / "tales.md").exists()


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
