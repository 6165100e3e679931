"""Streams that are closed, full or not UTF-8: one line, the right exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from canvaslm.cli.given_text import argument_text, file_text
from canvaslm.cli.main import COMMANDS
from canvaslm.errors import UsageError

from ..waiting import HUNG
from .conftest import Program

FULL = Path("/dev/full")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line for /bin/sh in which $CANVASLM is the program with a fake session."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("CANVASLM_")}
    return subprocess.run(
        ["/bin/sh", "-c", command],
        env={**own, "CANVASLM": f"{sys.executable} -m tests.cli.fake", **environment},
        capture_output=True, timeout=HUNG, cwd=Path(__file__).parents[2],
    )  # fmt: skip


ASKING = "$CANVASLM run -p hi"
needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="no /dev/full here")


@pytest.mark.parametrize(
    "command", [ASKING, f"{ASKING} --json", "$CANVASLM --help", "$CANVASLM run --help", "$CANVASLM --version"]
)
@pytest.mark.parametrize(
    ("output", "why"),
    [(">&-", "Bad file descriptor"), pytest.param("> /dev/full", "No space left", marks=needs_full)],
)
def test_an_output_that_takes_nothing_is_one_line_and_exit_1(command: str, output: str, why: str) -> None:
    done = shell(f"{command} {output}")
    said = done.stderr.decode()
    assert done.returncode == 1, said
    (line,) = [line for line in said.splitlines() if line.startswith("canvaslm: error")]
    assert line.startswith(f"canvaslm: error: standard output: cannot be written ({why}")
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.parametrize("errors", ["2>&-", pytest.param("2> /dev/full", marks=needs_full)])
def test_notes_that_cannot_be_written_change_nothing(errors: str) -> None:
    done = shell(f"{ASKING} {errors}")
    assert (done.returncode, done.stdout) == (0, b"Hello there.\n")
    assert shell(f"$CANVASLM run --no-such-flag {errors}").returncode == 2


@pytest.mark.parametrize("streams", [">&- 2>&-", pytest.param("> /dev/full 2>&1", marks=needs_full)])
def test_with_nowhere_to_say_it_the_exit_code_says_it(streams: str) -> None:
    done = shell(f"{ASKING} {streams}")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_a_reader_that_has_gone_is_not_worth_a_word() -> None:
    done = shell(f"{ASKING} | true")
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_closed_input_is_an_empty_one() -> None:
    done = shell("$CANVASLM run -p - <&-")
    assert done.returncode == 2
    assert b"the prompt on standard input is empty" in done.stderr
    assert shell("$CANVASLM chat <&-").returncode == 0


@pytest.mark.parametrize(
    ("command", "what"),
    [
        ("$CANVASLM run -p \"$(printf 'caf\\351')\"", "the text of --prompt"),
        ("$CANVASLM run -p hi --system \"$(printf 'caf\\351')\"", "the text of --system"),
        ("$CANVASLM chat -p \"$(printf 'caf\\351')\"", "the text of --prompt"),
        ("printf 'caf\\351' | $CANVASLM run -p -", "standard input"),
        ("printf 'caf\\351\\n' | $CANVASLM chat", "the line"),
        ('printf \'caf\\351\' > "$FILE"; $CANVASLM run -f "$FILE"', "prompt.txt"),
    ],
)
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_a_prompt_that_is_not_utf8_is_refused(command: str, what: str, locale: str, tmp_path: Path) -> None:
    done = shell(command, LC_ALL=locale, FILE=str(tmp_path / "prompt.txt"))
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert f"{what}: is not UTF-8 (byte 0xe9 at place 3)" in said
    assert "iconv" in said
    assert said.count("\n") == 1
    assert done.stdout == b""


def test_good_utf8_goes_through_in_every_locale(tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes("a\r\nü\r\n".encode())
    assert file_text(str(tmp_path / "prompt"), "--file") == "a\nü\n"
    assert argument_text("grüße 🎨", "--prompt") == "grüße 🎨"
    with pytest.raises(UsageError):
        argument_text("\udce9", "--prompt")
    for locale in ("C.UTF-8", "C"):
        assert shell("printf 'gr\\303\\274' | $CANVASLM run -p -", LC_ALL=locale).returncode == 0


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_h_is_help(program: Program, name: str | None) -> None:
    words = [name] if name else []
    assert program(*words, "-h").out == program(*words, "--help").out != ""
    assert program(*words, "-h").code == 0
