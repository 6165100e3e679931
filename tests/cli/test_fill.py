"""`canvaslm fill` and `canvaslm edit`: given text byte for byte, diffs that patch takes, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import canvaslm
from canvaslm.cli.canvas_view import cells_of, style_of
from canvaslm.cli.edit import diff, spans_of
from canvaslm.errors import UsageError
from canvaslm.session import Session
from canvaslm.types import Draft

from .conftest import Program

ASKED = "Write a function triple that multiplies x by 3."
WHOLE = "def triple(x):\n    return x * 3"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as loaded:
        yield loaded


def _file(folder: Path, text: str, name: str = "given.py") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


# -- fill ------------------------------------------------------------------------------------------------


def test_a_template_is_filled(program: Program, session: Session, tmp_path: Path) -> None:
    file = _file(tmp_path, "def <hole>(x):\n    return x * <hole>")
    shown = program("fill", file, "-p", ASKED, "--seed", "0", session=session)
    assert (shown.code, shown.out) == (0, WHOLE)
    assert "seed 0" in shown.err
    assert program("fill", file, "-p", ASKED, "--seed", "0", "-q", session=session).err == ""


def test_line_ends_and_escapes_come_out_as_they_went_in(
    program: Program, session: Session, tmp_path: Path
) -> None:
    file = _file(tmp_path, "\ufeffa\r\nb\rc \\<hole> <hole max=2>\u2028\x1b[1m\r\n")
    shown = program("fill", file, "--seed", "0", "--steps", "1", "--json", session=session)
    found = shown.object
    assert found["text"] == f"\ufeffa\r\nb\rc <hole> {found['holes'][0]}\u2028\x1b[1m\r\n"
    piped = program("fill", file, "--seed", "0", "--steps", "1", session=session)
    assert piped.out.encode() == found["text"].encode()


def test_standard_input_and_json(program: Program, session: Session) -> None:
    shown = program("fill", "-", "-p", ASKED, "--json", stdin="def triple(<hole> * 3", session=session)
    found = shown.object
    assert found["text"] == WHOLE and found["holes"] == ["x):\n    return x"]
    assert found["steps"] and found["usage"]["completion_tokens"] > 0 and found["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["fill", "missing.txt"], "", 3, "there is no such file"),
        (["fill", "-"], "no hole", 2, "write <hole>"),
        (["fill", "-"], "a<hole max=900> b", 2, "at most"),
        (["fill"], "", 2, "FILE"),
        (["edit", "-", "-p", "x"], "a\n", 2, "--lines"),
        (["edit", "-", "-l", "0", "-p", "x"], "a\n", 2, "from 1 on"),
        (["edit", "-", "-l", "2:1", "-p", "x"], "a\n", 2, "as in 10:14"),
        (["edit", "-", "-l", "3", "-p", "x"], "a\nb\n", 2, "the text has 2 lines"),
        (["edit", "-", "-l", "1:2", "-l", "2", "-p", "x"], "a\nb\n", 2, "overlaps"),
        (["edit", "-", "-l", "1", "-p", "x", "--write"], "a\n", 2, "--write needs a file"),
    ],
)
def test_what_cannot_be_is_said(
    program: Program, session: Session, arguments: list[str], stdin: str, code: int, says: str
) -> None:
    shown = program(*arguments, stdin=stdin, session=session)
    assert (shown.code, shown.out) == (code, "") and says in shown.err


def test_bytes_that_are_no_text_are_refused(program: Program, session: Session, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9 <hole>")
    shown = program("fill", str(tmp_path / "latin"), session=session)
    assert shown.code == 2 and "is not UTF-8 (byte 0xe9 at place 3)" in shown.err


def test_a_hole_that_is_cut_is_told(program: Program, session: Session) -> None:
    shown = program("fill", "-", "-p", "Count from 11 to 50", "-n", "3", stdin="11 12<hole>", session=session)
    assert shown.code == 0 and "note: hole 1 is cut at its limit of 3 tokens: its max, or" in shown.err
    shown = program(
        "fill", "-", "-p", "Count from 11 to 50", "--json", stdin="11 12<hole max=3> 49 50", session=session
    )
    assert [note["kind"] for note in shown.object["notes"]] == ["hole_cut"]
    assert shown.object["finish_reason"] == "length" and "hole 1 is cut" in shown.err


# -- edit ------------------------------------------------------------------------------------------------


def test_an_edit_prints_a_diff_and_leaves_the_file(
    program: Program, session: Session, tmp_path: Path
) -> None:
    text = "def triple(x):\n    return x + x"
    file = _file(tmp_path, text)
    shown = program("edit", file, "--lines", "2", "-p", ASKED, "--seed", "0", session=session)
    assert shown.code == 0 and Path(file).read_text() == text
    assert "-    return x + x\n" in shown.out and "+    return x * 3\n" in shown.out
    assert "\x1b" not in shown.out
    colored = program(
        "edit", file, "-l", "2", "-p", ASKED, "--seed", "0", "--color", "always", session=session
    )
    assert "\x1b[31m-    return x + x\x1b[0m" in colored.out


def test_write_changes_the_file_and_keeps_its_mode(
    program: Program, session: Session, tmp_path: Path
) -> None:
    file = _file(tmp_path, "def triple(x):\n    return x + x")
    os.chmod(file, 0o750)
    link = tmp_path / "link.py"
    link.symlink_to(file)
    arguments = ["edit", str(link), "-l", "2:2", "-p", ASKED, "--seed", "0", "--write", "--json"]
    found = program(*arguments, session=session).object
    assert found["written"] and found["text"] == WHOLE == Path(file).read_text()
    assert Path(file).stat().st_mode & 0o777 == 0o750 and link.is_symlink()


def test_nothing_changed_is_told(program: Program, session: Session, tmp_path: Path) -> None:
    file = _file(tmp_path, WHOLE)
    shown = program("edit", file, "-l", "2", "-p", ASKED, "--seed", "0", session=session)
    assert (shown.code, shown.out) == (0, "") and "nothing has changed" in shown.err


def test_lines_become_characters() -> None:
    text = "one\r\n\ntwo\nthree"
    assert spans_of(text, ["1"]) == [(0, 3)]
    assert spans_of(text, ["4", "1:2"]) == [(0, 3), (10, 15)]
    assert spans_of(text, ["2"]) == [(5, 5)]
    with pytest.raises(UsageError, match="the text has 4 lines"):
        spans_of(text, ["5"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\nb\n", "a\nc\n"),
        ("a\nb", "a\nc\nd"),
        ("a", "b"),
        ("x\r\ny\r\n", "x\r\nz\r\n"),
        ("a\x0bb\n", "c\n"),
    ],
)
def test_patch_takes_the_diff(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(before.encode())
    made = subprocess.run(
        ["patch", "--binary", "-s", str(file)], input=diff(before, after, "file").encode(), check=False,
        capture_output=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout
    assert file.read_bytes() == after.encode()


# -- the live view ---------------------------------------------------------------------------------------


def test_given_places_are_bold(session: Session) -> None:
    stream = session.stream_fill("def triple(<hole> * 3", instruction=ASKED, seed=0)
    draft = next(event for event in stream if isinstance(event, Draft) and any(event.given))
    stream.close()
    cells = cells_of(draft, session.tokenizer, session.eos_token_ids)
    bold = "".join(cell.text for cell in cells if style_of(cell, color=False).bold)
    assert bold == "def triple * 3" or bold.startswith("def triple")
    assert any(not style_of(cell, color=True).bold for cell in cells)


def test_a_draft_of_a_free_request_has_no_given_places(session: Session) -> None:
    drafts = [e for e in session.stream("capital of France", seed=0, drafts=True) if isinstance(e, Draft)]
    assert drafts and all(draft.given == () for draft in drafts)


def test_json_is_one_line(program: Program, session: Session) -> None:
    shown = program("fill", "-", "--json", "--seed", "1", stdin="a <hole> b", session=session)
    document: dict[str, Any] = json.loads(shown.out)
    assert shown.out.count("\n") == 1 and document["model"] == "demo"
