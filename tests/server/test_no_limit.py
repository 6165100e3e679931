"""-1 for "no limit": as many tokens as the context holds, in every dialect and on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from canvaslm.diffusion.params import PARAMETERS
from canvaslm.errors import UsageError
from canvaslm.session import Session
from canvaslm.types import Finished, Params, Request

from ..cli.conftest import Program, program
from ..cli.fake import FakeSession
from .world import HELLO, Running, serving, tiny_session

__all__ = ["program"]  # the fixture
CONTEXT = 64
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": HELLO}, "max_tokens"),
    ("/v1/chat/completions", {"messages": HELLO}, "max_completion_tokens"),
    ("/v1/chat/completions", {"messages": HELLO}, "n_predict"),
    ("/v1/completions", {"prompt": "Hello"}, "max_tokens"),
    ("/v1/completions", {"prompt": "Hello"}, "n_predict"),
    ("/v1/responses", {"input": "Hello"}, "max_output_tokens"),
    ("/v1/messages", {"messages": HELLO}, "max_tokens"),
    ("/api/chat", {"messages": HELLO, "stream": False}, "num_predict"),
    ("/api/generate", {"prompt": "Hello", "stream": False}, "num_predict"),
]


def endless() -> Session:
    """Its answers end with the context alone."""
    session = tiny_session(max_context=CONTEXT)
    session.eos_token_ids = ()
    return session


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    with serving(endless()) as running:
        yield running


def post(server: Running, path: str, body: dict[str, Any], limits: dict[str, int]) -> httpx.Response:
    given = {"options": {"seed": 1, **limits}} if path.startswith("/api") else {"seed": 1, **limits}
    with server.client() as client:
        return client.post(path, json={**body, **given})


def tokens(answer: dict[str, Any]) -> tuple[int, int]:
    """Of the prompt and of the answer."""
    usage = answer.get("usage", answer)
    names = (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens"),
             ("prompt_eval_count", "eval_count"))  # fmt: skip
    prompt, written = next(pair for pair in names if pair[0] in usage)
    return usage[prompt] + usage.get("cache_read_input_tokens", 0), usage[written]


@pytest.mark.parametrize(("path", "body", "name"), CASES)
def test_an_answer_may_fill_the_context(small: Running, path: str, body: dict[str, Any], name: str) -> None:
    response = post(small, path, body, {name: -1})
    assert response.status_code == 200, response.text
    prompt, written = tokens(response.json())
    places = small.app.state.service.session.engine.config.canvas_length
    assert CONTEXT - places < prompt + written <= CONTEXT
    assert tokens(post(small, path, body, {name: 5}).json()) == (prompt, 5)


@pytest.mark.parametrize(("path", "body", "name"), [case for case in CASES if case[2] != "num_predict"])
@pytest.mark.parametrize("limit", [0, -2, 2**24 + 1])
def test_other_numbers_stay_refused(
    small: Running, path: str, body: dict[str, Any], name: str, limit: int
) -> None:
    if limit == 0 and path == "/v1/completions":
        pytest.skip("there nothing is written: clients ask so for log-probabilities of prompts")
    response = post(small, path, body, {name: limit})
    assert response.status_code == 400 and name in response.json()["error"]["message"]


def test_the_newest_name_wins(small: Running) -> None:
    chat: dict[str, Any] = {"messages": HELLO}
    both = {"n_predict": 3, "max_tokens": 4}
    assert tokens(post(small, "/v1/chat/completions", chat, both).json())[1] == 4
    three = {**both, "max_completion_tokens": 6}
    answer = post(small, "/v1/chat/completions", chat, three).json()
    assert tokens(answer)[1] == 6 and "warnings" not in answer


def test_a_servers_own_limit_may_be_none() -> None:
    session = endless()
    session.params = session.merge(None, {"max_new_tokens": -1})
    assert session.params.max_new_tokens == CONTEXT
    with serving(session) as server:
        answer = post(server, "/v1/chat/completions", {"messages": HELLO}, {}).json()
    assert answer["choices"][0]["finish_reason"] == "length" and tokens(answer)[1] > 24


def test_the_engine_and_the_session_take_it() -> None:
    session = endless()
    engine = session.engine
    engine.submit(Request((5, 6), Params(max_new_tokens=-1, seed=1)))
    events = []
    while engine.has_work:
        events += engine.step()
    (end,) = (event for event in events if isinstance(event, Finished))
    assert end.reason == "length" and end.usage.completion_tokens > CONTEXT - 2 - 8
    reply = session.generate("Hello", max_new_tokens=-1, seed=1)
    assert reply.usage.prompt_tokens + reply.usage.completion_tokens > CONTEXT - 8


def test_the_table_says_so() -> None:
    about = PARAMETERS["max_new_tokens"]
    assert about.read("-1") == -1 and about.range.endswith(", or -1")
    for wrong in (0, -2):
        with pytest.raises(UsageError, match="or -1"):
            about.check(wrong)


@pytest.mark.parametrize("flag", [["-n", "-1"], ["--max-new-tokens=-1"], ["--n-predict", "-1"]])
def test_the_command_line_takes_it(program: Program, flag: list[str]) -> None:
    session = FakeSession(["hi"])
    assert program("run", "-p", "hi", *flag, session=session).code == 0
    assert session.asked[0][1]["max_new_tokens"] == -1


@pytest.mark.parametrize("command", [["run", "-p", "hi"], ["serve"]])
@pytest.mark.parametrize("value", ["0", "-2"])
def test_the_command_line_refuses_others_before_loading(
    program: Program, command: list[str], value: str
) -> None:
    shown = program(*command, "-n", value, session=AssertionError("it must not be loaded"))
    assert shown.code == 2 and "-1" in shown.err
