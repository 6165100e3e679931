from __future__ import annotations

import json
from pathlib import Path

import pytest

from canvaslm.types import Message

from .conftest import Program
from .fake import FakeSession


def _chat(program: Program, *lines: str, session: FakeSession | None = None, flags: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
    found = session or FakeSession(["one", "two", "three"])
    return program("chat", "-q", *flags, session=found, stdin="\n".join(lines) + "\n"), found


def _roles(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_piped_lines_are_messages_and_answers_are_lines(program: Program) -> None:
    shown, session = _chat(program, "hello", "", "again")
    assert (shown.code, shown.out) == (0, "one\ntwo\n")
    assert _roles(session.asked[0][0]) == [("user", "hello")]
    assert _roles(session.asked[1][0]) == [("user", "hello"), ("assistant", "one"), ("user", "again")]


def test_the_history_has_no_thoughts(program: Program) -> None:
    _, session = _chat(program, "a", "b", session=FakeSession(["one"], thought="deep"), flags=("--thinking",))
    assert "deep" not in str(session.asked[1][0])
    assert session.asked[1][1]["thinking"] is True


def test_a_backslash_continues_the_line(program: Program) -> None:
    _, session = _chat(program, "first\\", "second\\", "third")
    assert _roles(session.asked[0][0]) == [("user", "first\nsecond\nthird")]


def test_settings_apply_from_the_next_message(program: Program) -> None:
    shown, session = _chat(
        program, "a", "/seed 5", "/steps 7", "/system be brief", "/thinking on", "b", "/system none", "c"
    )
    options = [options for _, options in session.asked]
    assert "seed" not in options[0]
    assert (options[1]["seed"], options[1]["max_denoising_steps"]) == (5, 7)
    assert (options[1]["system"], options[1]["thinking"]) == ("be brief", True)
    assert options[2]["system"] is None
    assert "seed: 5\nsteps: 7\nsystem message: be brief\nthinking: on\n" in shown.err


def test_clear_forgets(program: Program) -> None:
    _, session = _chat(program, "a", "/clear", "b")
    assert _roles(session.asked[1][0]) == [("user", "b")]


def test_retry_replaces_the_answer_with_another_seed(program: Program) -> None:
    _, session = _chat(program, "a", "/retry", "b", flags=("--seed", "5"))
    assert [options["seed"] for _, options in session.asked] == [5, 6, 5]
    assert _roles(session.asked[1][0]) == [("user", "a")]
    assert _roles(session.asked[2][0]) == [("user", "a"), ("assistant", "two"), ("user", "b")]


def test_save_writes_json_or_markdown_and_spares_other_files(program: Program, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("mine", encoding="utf-8")
    data, text = tmp_path / "chat.json", tmp_path / "chat.md"
    shown, _ = _chat(
        program, "/system s", "a", f"/save {data}", f"/save {text}", f"/save {text}", f"/save {other}", "b"
    )
    assert json.loads(data.read_text())["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "one"},
    ]
    assert text.read_text() == "**system**\n\ns\n\n**user**\n\na\n\n**assistant**\n\none\n"
    assert other.read_text() == "mine"
    assert shown.code == 2  # from a pipe, the first error ends the chat
    assert "exists already" in shown.err
    assert shown.out == "one\n"


def test_help_lists_every_command_and_exit_ends(program: Program) -> None:
    shown, session = _chat(program, "/help", "/exit", "never asked")
    for name in ("help", "clear", "retry", "seed", "steps", "system", "thinking", "live", "save", "exit"):
        assert f"  /{name} " in shown.err
    assert session.asked == []


@pytest.mark.parametrize("line", ["/nothing", "/seed x", "/steps 0", "/thinking maybe", "/retry", "/save"])
def test_wrong_commands_are_usage_errors(program: Program, line: str) -> None:
    shown, session = _chat(program, line)
    assert shown.code == 2
    assert shown.err.startswith("canvaslm: error: ")
    assert session.asked == []


def test_a_path_is_a_message(program: Program) -> None:
    _, session = _chat(program, "/etc/hosts is what?")
    assert _roles(session.asked[0][0]) == [("user", "/etc/hosts is what?")]


def test_the_first_message_can_be_a_flag(program: Program) -> None:
    _, session = _chat(program, "b", flags=("-p", "a"))
    assert [messages[-1].content for messages, _ in session.asked] == ["a", "b"]


def test_cnv_is_chat(program: Program) -> None:
    session = FakeSession(["one"])
    shown = program("run", "-cnv", "--seed", "3", "-q", session=session, stdin="hello\n")
    assert shown.out == "one\n"
    assert session.asked[0][1]["seed"] == 3


def test_a_failed_message_leaves_no_trace(program: Program) -> None:
    from canvaslm.cli.chat import Chat
    from canvaslm.cli.options import Display
    from canvaslm.errors import PromptTooLong

    chat = Chat(FakeSession(limit=3), Display(), {})  # type: ignore[arg-type]
    with pytest.raises(PromptTooLong):
        chat.ask("far too long")
    assert chat.history == []
    assert chat.asked == "far too long"
