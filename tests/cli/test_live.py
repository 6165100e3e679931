"""The live canvas: against a terminal in memory and a clock by hand, then as a whole in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from canvaslm.cli.live import INTERVAL, LiveCanvas
from canvaslm.cli.terminal import Abilities, Screen
from canvaslm.types import (
    CanvasReport,
    Committed,
    Draft,
    Finished,
    Timings,
    TokenLogprob,
    Usage,
)

from ..waiting import HUNG
from .fake import END, FakeVocabulary

pyte = pytest.importorskip("pyte", reason="pyte interprets the escape sequences")

from .test_terminal import Emulator  # noqa: E402


class World:
    """A live canvas whose time passes only when told; `frames` counts what was drawn."""

    def __init__(self, columns: int = 60, lines: int = 12, **options: Any) -> None:
        self.now = 100.0
        self.out = Emulator(columns, lines)
        self.screen = Screen(self.out, Abilities(live=True), self.out.size)
        self.vocabulary = FakeVocabulary()
        self.frames = 0
        draw = self.screen.draw

        def counted(lines: list[Any]) -> None:
            self.frames += 1
            draw(lines)

        self.screen.draw = counted  # type: ignore[method-assign]
        self.live = LiveCanvas(self.screen, self.vocabulary, (END,), clock=lambda: self.now, **options)

    def draft(self, step: int, *words: str, canvas: int = 0) -> None:
        tokens = tuple(self.vocabulary.id_of(word) for word in words)
        flags = tuple(True for _ in tokens)
        self.live.feed(Draft(0, canvas, step, 8, 0.7, tokens, tuple(0.0 for _ in tokens), flags, flags))

    def commit(self, text: str, canvas: int = 0, thinking: str = "") -> None:
        self.live.feed(Committed(0, canvas, (1,), CanvasReport(1, "converged", 0.0), text, thinking))

    def finish(self) -> None:
        self.live.feed(Finished(0, "stop", Usage(), Timings(), 1, ()))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.live.tick()

    @property
    def rows(self) -> list[str]:
        rows = self.out.rows
        while rows and not rows[-1]:
            rows.pop()
        return rows


def test_drafts_are_drawn_in_place() -> None:
    world = World()
    world.draft(1, "Hello", " there")
    world.pass_time(1)
    world.draft(2, "Hello", " world")
    world.pass_time(1)
    assert world.rows[0] == "Hello world"
    assert "step 2 of 8" in world.rows[1]
    assert len(world.rows) == 2


def test_at_most_twenty_frames_a_second_and_always_the_last() -> None:
    world = World()
    for step in range(1, 201):  # one second of 5 ms steps
        world.draft(step, f"word{step}")
        world.pass_time(0.005)
    assert 18 <= world.frames <= 21
    world.pass_time(INTERVAL)
    assert world.rows[0] == "word200"


def test_a_committed_canvas_scrolls_away_and_the_next_goes_on_in_its_line() -> None:
    world = World()
    world.draft(1, "One\n", "two")
    world.pass_time(1)
    world.commit("One\ntwo")
    world.draft(1, " three", canvas=1)
    world.pass_time(1)
    assert world.rows[:2] == ["One", "two three"]
    assert "canvas 2" in world.rows[2]
    world.commit(" three", canvas=1)
    world.finish()
    world.live.close()
    assert world.rows == ["One", "two three"]


def test_thoughts_come_first_and_apart() -> None:
    world = World()
    world.draft(1, "hm")
    world.pass_time(1)
    world.commit("Yes.", thinking="hm")
    world.finish()
    world.live.close()
    assert world.rows == ["hm", "", "Yes."]


def test_a_long_answer_scrolls_and_stays_readable() -> None:
    world = World(lines=6)
    text = "".join(f"line {i}\n" for i in range(20))
    world.draft(1, *(f"line {i}\n" for i in range(20)))
    world.pass_time(1)
    assert len(world.rows) <= 6
    world.commit(text)
    world.finish()
    world.live.close()
    assert world.rows == [f"line {i}" for i in range(15, 20)]


def test_an_abort_leaves_the_draft_without_its_status() -> None:
    world = World()
    world.draft(3, "half", " done")
    world.live.close(aborted=True)
    assert world.rows == ["half done"]
    assert world.out.screen.cursor.y == 1
    assert not world.out.screen.cursor.hidden


def test_a_slow_step_shows_that_time_passes() -> None:
    world = World()
    world.pass_time(5)
    assert world.rows[-1] == "reading the prompt · 5 s"
    world.draft(1, "a")
    world.pass_time(30)
    assert "step 1 of 8 · 35 s" in world.rows[-1]


def test_with_a_pace_every_step_is_seen_in_order() -> None:
    world = World(pace=0.2)
    for step in range(1, 5):
        world.draft(step, f"w{step}")
    world.commit("done")
    world.finish()
    seen = []
    for _ in range(40):
        world.pass_time(0.05)
        seen += world.rows[:1]
    assert [row for i, row in enumerate(seen) if i == 0 or seen[i - 1] != row] == [
        "w1",
        "w2",
        "w3",
        "w4",
        "done",
    ]
    assert all(seen.count(f"w{step}") >= 4 for step in (1, 2, 3))


def test_closing_early_loses_nothing_that_waits() -> None:
    world = World(pace=5.0)
    world.draft(1, "w1")
    world.commit("the answer")
    world.finish()
    world.live.close()
    assert world.rows == ["the answer"]


def test_a_resize_lays_the_canvas_out_anew() -> None:
    world = World(columns=60)
    world.screen.able = Abilities(live=True, reflows=False)
    world.draft(1, *(f" word{i}" for i in range(10)))
    world.pass_time(1)
    world.out.screen.resize(columns=30)
    world.live.resized()
    world.pass_time(1)
    assert [len(row) <= 30 for row in world.rows] == [True] * len(world.rows)
    assert world.rows[0].strip().startswith("word0")
    assert "canvas 1" in world.rows[-1]


# -- the whole program ---------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


class Pty:
    """`canvaslm` with a fake session in a pseudo-terminal, and what its screen shows."""

    def __init__(
        self, *arguments: str, columns: int = 60, lines: int = 14, fake: Any = None, **env: str
    ) -> None:
        pexpect = pytest.importorskip("pexpect", reason="pexpect opens pseudo-terminals")
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith("CANVASLM_") and k not in ("TMUX", "NO_COLOR")
        }
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "tests.cli.fake", *arguments],
            dimensions=(lines, columns),
            cwd=ROOT,
            timeout=HUNG,
            env={
                **kept,
                "TERM": "xterm-256color",
                "XTERM_VERSION": "1",
                "PYTHONUTF8": "1",
                "FAKE": json.dumps(fake or {}),
                **env,
            },
        )

    def read(self) -> bool:
        """Takes what has come; False at the end of the program."""
        import pexpect

        try:
            data = self.child.read_nonblocking(65536, timeout=0.05)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True

    def until(self, seen: Callable[[list[str]], bool], seconds: float = HUNG) -> list[str]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            alive = self.read()
            if seen(self.rows):
                return self.rows
            assert alive, f"the program ended; its screen: {self.rows}"
        raise AssertionError(f"not seen within {seconds} s: {self.rows}")

    def end(self) -> int:
        deadline = time.monotonic() + HUNG
        while self.read() and time.monotonic() < deadline:
            pass
        self.child.close()
        return int(self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus)

    @property
    def rows(self) -> list[str]:
        rows = [row.rstrip() for row in self.screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows


@pytest.fixture
def pty() -> Iterator[Callable[..., Pty]]:
    opened: list[Pty] = []

    def start(*arguments: str, **options: Any) -> Pty:
        opened.append(Pty(*arguments, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.child.close(force=True)


def _has(text: str) -> Callable[[list[str]], bool]:
    return lambda rows: any(text in row for row in rows)


# Far longer than any test: it ends by what the test does to it.
SLOW = {"answers": ["The quick brown fox jumps."], "places": 6, "steps": 100_000, "pause": 0.05}


def test_an_answer_denoises_on_the_terminal_and_stays_as_plain_text(pty: Callable[..., Pty]) -> None:
    run = pty(
        "run",
        "-p",
        "hi",
        fake={"answers": ["One two.\n日本語 \x1b[31mred"], "places": 3, "steps": 4, "pause": 0.06},
    )
    run.until(_has("step"))
    assert run.end() == 0
    assert run.rows[0] == "One two."
    assert run.rows[1].replace(" ", "") == "日本語␛[31mred"
    assert "tokens/s" in " ".join(run.rows)
    assert not _has("step 4 of 4")(run.rows)
    assert not run.screen.cursor.hidden
    assert b"\x1b[31m" not in run.raw


@pytest.mark.parametrize(
    "arguments",
    [("run", "-p", "hi"), ("fill", "FILE", "-p", "hi"), ("edit", "FILE", "-l", "1", "-p", "hi", "--write")],
    ids=lambda arguments: arguments[0],
)
def test_ctrl_c_ends_with_130_and_a_clean_terminal(
    pty: Callable[..., Pty], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    given = tmp_path / "given.txt"
    given.write_bytes(b"a <hole>\r\nb\n")
    before = given.stat().st_ino, given.stat().st_mtime_ns
    run = pty(*(str(given) if word == "FILE" else word for word in arguments), fake=SLOW)
    run.until(_has("step "))
    assert run.screen.cursor.hidden
    run.child.sendintr()
    assert run.end() == 130
    assert not run.screen.cursor.hidden
    assert pyte.modes.DECAWM in run.screen.mode
    assert not _has("Traceback")(run.rows)
    assert not _has("step")(run.rows)
    assert run.raw.rstrip().endswith((b"\x1b[?25h", b"\x1b[?7h\x1b[?25h"))
    assert given.read_bytes() == b"a <hole>\r\nb\n"
    assert (given.stat().st_ino, given.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [given]


def test_a_resize_is_followed(pty: Callable[..., Pty]) -> None:
    run = pty("run", "-p", "hi", fake={**SLOW, "places": 24}, columns=70)
    run.until(_has("step "))
    run.screen.resize(14, 36)
    run.child.setwinsize(14, 36)
    run.until(lambda rows: bool(rows) and rows[-1].startswith("canvas 1") and len(rows) > 4)
    assert all(len(row) <= 36 for row in run.rows)


def test_a_polite_kill_gives_the_terminal_back(pty: Callable[..., Pty]) -> None:
    run = pty("run", "-p", "hi", fake=SLOW)
    run.until(_has("step "))
    run.child.kill(signal.SIGTERM)
    assert run.end() == 143
    assert not run.screen.cursor.hidden


def test_no_live_and_dumb_terminals_get_plain_text(pty: Callable[..., Pty]) -> None:
    for run in (pty("run", "-p", "hi", "--no-live", "-q"), pty("run", "-p", "hi", "-q", TERM="dumb")):
        assert run.end() == 0
        assert run.raw == b"Hello there.\r\n"


def test_no_color_sends_no_colours(pty: Callable[..., Pty]) -> None:
    run = pty("run", "-p", "hi", fake={**SLOW, "steps": 5}, NO_COLOR="1")
    assert run.end() == 0
    assert re.search(rb"\x1b\[[\d;]*(3[0-8]|9[0-7])[;m]", run.raw) is None
    assert b"\x1b[2;3;4m" in run.raw  # attributes still tell places apart


def test_chat_survives_ctrl_c_and_ends_with_ctrl_d(pty: Callable[..., Pty], tmp_path: Path) -> None:
    chat = pty("chat", "-q", fake=SLOW, XDG_STATE_HOME=str(tmp_path), PROMPT_TOOLKIT_NO_CPR="1")
    chat.until(_has(">"))
    chat.child.send("hello\r")
    chat.until(_has("step "))
    chat.child.sendintr()
    chat.until(_has("stopped; /retry asks again"))
    chat.child.send("/steps 3\r")
    chat.until(_has("steps: 3"))
    chat.child.send("\x04")
    assert chat.end() == 0
    assert "hello" in (tmp_path / "canvaslm" / "history").read_text()
    assert (tmp_path / "canvaslm" / "history").stat().st_mode & 0o077 == 0


def test_doubtful_words_are_underlined_and_coloured_where_they_are_settled() -> None:
    world = World(doubt=True)
    world.screen.able = Abilities(live=True, colors=256)
    world.draft(1, "one", " two\n", "three")
    world.pass_time(1)
    tokens = [TokenLogprob(t, t.encode(), 0.0, (), v) for t, v in (("one", 0.0), (" two\nthr", -3.0))]
    report = CanvasReport(1, "converged", 0.0)
    world.live.feed(Committed(0, 0, (1,), report, "one two\nthr", token_logprobs=tuple(tokens)))
    assert world.rows[0] == "one two"
    world.commit("ee", canvas=1)
    world.finish()
    world.live.close()
    assert world.rows == ["one two", "three"]
    lines = world.out.screen.buffer
    assert [lines[0][x].underscore for x in range(7)] == [False] * 4 + [True] * 3
    assert [lines[1][x].underscore for x in range(5)] == [True] * 3 + [False] * 2
    assert lines[0][4].fg == "ff0000" and lines[0][0].fg == "default"
