"""langchain-openai, which reads OpenAI's interface in its own way."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import openai
import pytest

os.environ.setdefault("LANGSMITH_TRACING", "false")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

from ....waiting import HUNG
from ...world import HELLO, Running, scripted_session, serving, tiny_session

THOUGHTFUL = "<|channel>thought\nSix.\n<channel|>It is six."
CALLING = "I add.<|tool_call>call:add{a:1,b:2}<tool_call|>"
COUNTING = "One, two, three, four."
HI = [HumanMessage("Hello")]


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@pytest.fixture(scope="module")
def scripted() -> Iterator[Running]:
    """By its seed: 0 thinks, 1 calls a tool, 2 counts."""
    with serving(scripted_session(THOUGHTFUL, CALLING, COUNTING)) as running:
        yield running


def model(server: Running, seed: int, **options: Any) -> ChatOpenAI:
    given = {"max_tokens": 200, "max_retries": 0, "timeout": HUNG, "api_key": "none", **options}
    return ChatOpenAI(base_url=f"{server.url}/v1", model="tiny", seed=seed, **given)


def test_an_answer_is_the_sessions(server: Running) -> None:
    reply = tiny_session().generate(HELLO, seed=5, max_new_tokens=16)
    answer = model(server, 5, max_tokens=16).invoke(HI)
    assert answer.content == reply.text
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == "tiny"
    usage = answer.usage_metadata
    assert usage is not None
    assert usage["input_tokens"] == reply.usage.prompt_tokens
    assert usage["output_tokens"] == reply.usage.completion_tokens == 16
    assert usage["total_tokens"] == usage["input_tokens"] + 16


def test_a_system_message_is_part_of_the_prompt(server: Running) -> None:
    answer = model(server, 5).invoke([SystemMessage("Be brief."), *HI])
    expected = len(tiny_session().encode(HELLO, system="Be brief."))
    assert answer.usage_metadata is not None and answer.usage_metadata["input_tokens"] == expected


def test_a_stream_adds_up_to_the_whole(scripted: Running) -> None:
    chat = model(scripted, 2, stream_usage=True)
    chunks = list(chat.stream(HI))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert whole.content == COUNTING == chat.invoke(HI).content
    assert sum(bool(chunk.content) for chunk in chunks) > 1
    counted = chat.invoke(HI).usage_metadata
    assert whole.usage_metadata is not None and counted is not None
    assert whole.usage_metadata["output_tokens"] == counted["output_tokens"]
    assert whole.response_metadata["finish_reason"] == "stop"


def test_asynchronously_and_side_by_side(server: Running) -> None:
    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(model(server, seed).ainvoke(HI) for seed in range(4)))

    alone = [model(server, seed).invoke(HI).content for seed in range(4)]
    assert [answer.content for answer in asyncio.run(all_of_them())] == alone


@pytest.mark.parametrize("streamed", [False, True])
def test_a_round_with_tools(scripted: Running, streamed: bool) -> None:
    first: Any
    with_tools = model(scripted, 1).bind_tools([add])
    if streamed:
        chunks = list(with_tools.stream(HI))
        first = chunks[0]
        for chunk in chunks[1:]:
            first = first + chunk
    else:
        first = with_tools.invoke(HI)
    assert first.content == "I add."
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 2})
    assert first.response_metadata["finish_reason"] == "tool_calls"
    result = add.invoke(call)
    assert isinstance(result, ToolMessage) and result.content == "3"
    turns = [*HI, AIMessage(first.content, tool_calls=first.tool_calls), result]
    assert model(scripted, 2).bind_tools([add]).invoke(turns).content == COUNTING


def test_stop_strings_and_thoughts_stay_out_of_the_text(scripted: Running) -> None:
    assert model(scripted, 2).invoke(HI, stop=[", three"]).content == "One, two"
    thinking = model(scripted, 0, reasoning_effort="high").invoke(HI)
    assert thinking.content == "It is six."
    assert thinking.usage_metadata is not None
    assert thinking.usage_metadata["output_token_details"]["reasoning"] > 0


def test_log_probabilities(scripted: Running) -> None:
    answer = model(scripted, 2, logprobs=True, top_logprobs=2).invoke(HI)
    content = answer.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == COUNTING


def test_the_responses_interface(scripted: Running) -> None:
    # The client has no field for a seed here.
    given: Any = {"api_key": "none", "max_tokens": 200, "extra_body": {"seed": 2}}
    chat = ChatOpenAI(base_url=f"{scripted.url}/v1", model="tiny", use_responses_api=True, **given)
    assert chat.invoke(HI).text == COUNTING
    assert "".join(chunk.text for chunk in chat.stream(HI)) == COUNTING


def test_completions(server: Running) -> None:
    given: Any = {"seed": 5, "max_tokens": 16, "temperature": 0.5, "api_key": "none"}
    llm: Any = OpenAI(base_url=f"{server.url}/v1", model="tiny", max_retries=0, **given)
    reply = tiny_session().generate("Hello", raw=True, seed=5, max_new_tokens=16, temperature=0.5)
    assert llm.invoke("Hello") == reply.text


def test_errors_are_the_clients(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        model(server, 5, temperature=-1).invoke(HI)
    assert caught.value.param == "temperature"
    with serving(tiny_session(), api_key="secret") as running:
        assert model(running, 5, api_key="secret").invoke(HI).content
        with pytest.raises(openai.AuthenticationError):
            model(running, 5).invoke(HI)
