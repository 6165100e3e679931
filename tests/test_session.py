"""The Python interface: streams side by side, many prompts, options, threads, and the end of a session."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

import canvaslm
from canvaslm.cli.python_docs import OPTIONS, PAGE, options_module, python_page
from canvaslm.diffusion import PARAMETERS
from canvaslm.diffusion.options import SamplingOptions
from canvaslm.errors import UsageError
from canvaslm.session import Session, loading
from canvaslm.types import Committed, Draft, Finished
from canvaslm.weights.loading.load import load_model

from .tiny import tiny_model, write_tiny_gguf

ROOT = Path(__file__).resolve().parents[1]
CAPITALS = ["capital of France", "capital of Peru", "capital of Japan", "capital of Kenya"]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with canvaslm.load() as loaded:
        yield loaded


# -- several at a time -----------------------------------------------------------------------------------


def test_a_generate_inside_a_stream_loses_nothing(session: Session) -> None:
    prompt = "count from 1 to 60"
    alone = session.generate(prompt, seed=1)
    text, inner, last = "", [], None
    for event in session.stream(prompt, seed=1, drafts=True):
        if isinstance(event, Draft):
            inner.append(session.generate(CAPITALS[0], seed=0).text)
            continue
        assert not isinstance(event, canvaslm.Failed)
        text, last = text + event.text, event
    assert isinstance(last, Finished)
    assert text == alone.text and set(inner) == {"Paris"}


def test_two_streams_in_turn_end_in_finished(session: Session) -> None:
    streams = [session.stream(prompt, seed=0, drafts=True) for prompt in CAPITALS[:2]]
    ends: list[Any] = [None, None]
    for _ in range(200):
        for i, stream in enumerate(streams):
            ends[i] = next(stream, ends[i])
    assert all(isinstance(end, Finished) for end in ends)


@pytest.mark.parametrize("in_flight", [1, 3, None])
def test_many_are_what_each_is_alone(session: Session, in_flight: int | None) -> None:
    alone = [session.generate(prompt, seed=0 + i).text for i, prompt in enumerate(CAPITALS)]
    replies = list(session.generate_many(CAPITALS, in_flight=in_flight, seed=0))
    assert [reply.index for reply in replies] == [0, 1, 2, 3]
    assert [reply.text for reply in replies] == alone
    unordered = session.generate_many(iter(CAPITALS), in_flight=in_flight, ordered=False, seed=0)
    assert {reply.index: reply.text for reply in unordered} == dict(enumerate(alone))


def test_many_refuse_one_prompt_and_no_room(session: Session) -> None:
    with pytest.raises(UsageError) as caught:
        next(session.generate_many("hello"))
    assert caught.value.param == "prompts"
    with pytest.raises(UsageError) as caught:
        next(session.stream_many(["hello"], in_flight=0))
    assert caught.value.param == "in_flight"


# -- options ---------------------------------------------------------------------------------------------


def test_a_stop_string_ends_the_answer_and_is_not_in_it(session: Session) -> None:
    whole = session.generate(CAPITALS[0], seed=0)
    assert whole.text == "Paris"
    cut = session.generate(CAPITALS[0], seed=0, stop=["ri", "never"])
    assert cut.text == "Pa" and cut.finish_reason == "stop"
    assert not session.engine.has_work or not session.engine.scheduler.running
    (many,) = session.generate_many([CAPITALS[0]], seed=0, stop="ri")
    assert many.text == "Pa" and many.finish_reason == "stop"


def test_logprobs_are_those_of_the_text(session: Session) -> None:
    reply = session.generate(CAPITALS[0], seed=0, logprobs=2)
    assert b"".join(token.data for token in reply.logprobs).decode() == reply.text
    assert all(token.logprob <= 0 and len(token.top) == 2 for token in reply.logprobs)
    assert session.generate(CAPITALS[0], seed=0).logprobs == ()
    with pytest.raises(UsageError) as caught:
        session.generate("x", logprobs="two")  # type: ignore[arg-type]
    assert caught.value.param == "logprobs"


def test_given_places_are_kept(session: Session) -> None:
    (token,) = session.tokenizer.encode("7")[:1]
    for event in session.stream(CAPITALS[0], seed=0, given={0: token}):
        if isinstance(event, Committed):
            assert event.tokens[0] == token
            break
    with pytest.raises(UsageError) as caught:
        session.generate("x", given={"a": 1})  # type: ignore[dict-item]
    assert caught.value.param == "given"


@pytest.mark.parametrize("wrong", [5, None, b"bytes", {"role": "user"}])
def test_what_is_no_prompt_is_named(session: Session, wrong: Any) -> None:
    with pytest.raises(UsageError) as caught:
        session.generate(wrong)
    assert caught.value.param == "messages" and type(wrong).__name__ in str(caught.value)


def test_a_typo_names_the_nearest_option(session: Session) -> None:
    with pytest.raises(UsageError, match="did you mean 'max_new_tokens'"):
        session.generate("x", max_new_token=3)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="did you mean 'drafts'"):
        next(session.stream("x", draftss=True))  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="did you mean 'max_rows'"):
        canvaslm.load(max_row=3)  # type: ignore[call-arg]


def test_mypy_flags_a_typo(tmp_path: Path) -> None:
    lines = [
        "import canvaslm",
        "session = canvaslm.load(max_rows=2)",
        'session.generate("x", seed=1, stop=["a"], logprobs=1)',
        "canvaslm.load(max_row=2)",
        'session.generate("x", sed=1)',
        'session.stream("x", max_new_tokens="many")',
        'session.generate_many(["x"], drafts=True)',
    ]
    file = tmp_path / "typos.py"
    file.write_text("\n".join(lines) + "\n")
    config = ["--follow-imports=silent", "--config-file", str(ROOT / "pyproject.toml")]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *config, str(file)], cwd=ROOT, capture_output=True, text=True
    )
    wrong = sorted({int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error:" in line})
    assert wrong == [4, 5, 6, 7], run.stdout + run.stderr


def test_the_typed_options_are_the_table() -> None:
    assert list(get_type_hints(SamplingOptions)) == list(PARAMETERS)
    assert (ROOT / OPTIONS).read_text(encoding="utf-8") == options_module(), (
        "run: python -m canvaslm.cli.docs"
    )


# -- threads and the end ---------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_threads_belong_to_the_runs_of_a_session() -> None:
    with canvaslm.load() as demo:
        assert torch.get_num_threads() == 2
        run, seen = demo.engine.runner.run, set()

        def watched(rows: Any) -> Any:
            seen.add(torch.get_num_threads())
            return run(rows)

        demo.engine.runner.run = watched  # type: ignore[method-assign]
        demo.generate(CAPITALS[0], seed=0)
        assert seen == {1} and torch.get_num_threads() == 2
    with canvaslm.load(threads=2) as asked:
        assert asked.threads.torch == 2


def test_quantised_weights_count_in_a_models_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {
        "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 160, "moe_intermediate_size": 96
    }  # fmt: skip
    model = tiny_model(seed=2, **sizes)
    count = sum(parameter.numel() for parameter in model.parameters())
    loaded = load_model(write_tiny_gguf(model, tmp_path / "m.gguf", "Q8_0"))
    monkeypatch.setattr(loading, "ONE_THREAD_BELOW", count + 1)
    assert loading._is_tiny(loaded)
    monkeypatch.setattr(loading, "ONE_THREAD_BELOW", count)
    assert not loading._is_tiny(loaded)


def test_a_closed_session_has_let_go() -> None:
    with canvaslm.load() as session:
        session.generate(CAPITALS[0], seed=0)
        assert session.engine.prefixes.bytes > 0
        stream = session.stream("count from 1 to 60", seed=1, drafts=True)
        next(stream)
    *_, last = stream
    assert isinstance(last, Finished) and last.reason == "cancelled"
    assert session.engine.prefixes.bytes == 0 and not session.engine.has_work
    with pytest.raises(UsageError, match="closed"):
        session.generate("hello")


# -- documentation ---------------------------------------------------------------------------------------


def test_the_page_is_what_the_docstrings_say() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert text == python_page(), "run: python -m canvaslm.cli.docs"
    assert not [name for name in canvaslm.__all__ if not name.startswith("_") and f"`{name}`" not in text
                and f"## {name}\n" not in text]  # fmt: skip


EXAMPLES = {
    "load", "create_app", "Session", "generate", "stream", "generate_many", "stream_many",
    "Params", "Message", "Reply",
}  # fmt: skip


def test_the_examples_run(session: Session) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    finder = doctest.DocTestFinder(recurse=False)
    ran: set[str] = set()
    public = [getattr(canvaslm, name) for name in canvaslm.__all__ if not name.startswith("_")]
    public += [made for name, made in vars(Session).items() if inspect.isfunction(made)]
    for thing in public:
        if not inspect.isfunction(thing) and not inspect.isclass(thing):
            continue
        for test in finder.find(thing, globs={"canvaslm": canvaslm, "session": session}):
            ran |= {test.name.split(".")[-1]} if test.examples else set()
            runner.run(test)
    assert ran >= EXAMPLES
    assert runner.summarize().failed == 0
