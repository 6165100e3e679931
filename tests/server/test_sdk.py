"""OpenAI's own package, and LangChain's, against a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

from .dialects.openai.test_chat import CALL, TOOL
from .world import HELLO, Running, paced, scripted_session, serving, tiny_session

WORDS = "Paris is the capital of France."


@pytest.fixture(scope="module")
def known() -> Iterator[Running]:
    session = scripted_session(WORDS, f"<|channel>thought\nHm.<channel|>Wait.{CALL}")
    with serving(session, api_key="sk-test") as running:
        yield running


@pytest.fixture(scope="module")
def sdk(known: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{known.url}/v1", api_key="sk-test", max_retries=0)


def chat(sdk: Any, **options: Any) -> Any:
    return sdk.chat.completions.create(
        **{"model": "tiny", "messages": HELLO, "seed": 0, "max_tokens": 100, **options}
    )


def test_an_answer(sdk: openai.OpenAI) -> None:
    answer = chat(sdk)
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.system_fingerprint and answer.model == "tiny"


def test_a_stream(sdk: openai.OpenAI) -> None:
    chunks = list(chat(sdk, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == WORDS
    assert chunks[-1].usage.completion_tokens > 0 and not chunks[-1].choices


def test_the_helper_that_adds_up_a_stream(sdk: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "messages": HELLO,
        "seed": 1,
        "max_tokens": 100,
        "tools": [TOOL],
    }
    with sdk.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    (choice,) = final.choices
    assert choice.message.content == "Wait." and choice.finish_reason == "tool_calls"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"a": 1, "b": 2}  # type: ignore[index]


def test_drafts_go_past_a_client_that_does_not_know_them(sdk: openai.OpenAI) -> None:
    chunks = chat(sdk, stream=True, extra_body={"stream_options": {"include_diffusion": True}})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == WORDS


def test_tools_and_back(sdk: openai.OpenAI) -> None:
    message = chat(sdk, seed=1, tools=[TOOL]).choices[0].message
    (call,) = message.tool_calls
    assert message.reasoning_content == "Hm."
    turns = [*HELLO, message, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    assert chat(sdk, messages=turns).choices[0].message.content == WORDS


def test_n_and_logprobs(sdk: openai.OpenAI) -> None:
    answer = chat(sdk, n=2, logprobs=True, top_logprobs=2, tools=[TOOL])
    assert [len(choice.logprobs.content) > 0 for choice in answer.choices] == [True, True]
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    assert answer.choices[1].finish_reason == "tool_calls"


def test_completions(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="tiny", prompt=[[2, 5], [2, 6]], seed=0, max_tokens=100, logprobs=1)
    assert [choice.text for choice in answer.choices] == [WORDS, WORDS]
    assert answer.choices[0].logprobs.tokens


def test_responses(sdk: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "input": "Hello", "max_output_tokens": 100}
    assert sdk.responses.create(**options, extra_body={"seed": 0}).output_text == WORDS
    tool: Any = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False}
    whole = sdk.responses.create(**options, tools=[tool], extra_body={"seed": 1})
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
    with sdk.responses.stream(**options, extra_body={"seed": 0}) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == stream.get_final_response().output_text == WORDS


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("tiny").max_model_len == 512  # type: ignore[attr-defined]


def test_errors_are_the_packages_own(known: Running, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        chat(sdk, max_tokens=-2)
    assert bad.value.param == "max_tokens" and "greater" in bad.value.message
    assert bad.value.type == "invalid_request_error" and bad.value.code == "invalid_value"
    with pytest.raises(openai.BadRequestError) as long:
        chat(sdk, messages=[{"role": "user", "content": "word " * 700}], stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        chat(openai.OpenAI(base_url=f"{known.url}/v1", api_key="sk-wrong", max_retries=0))
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-9")
    with pytest.raises(openai.PermissionDeniedError):
        chat(sdk, extra_headers={"origin": "https://evil.example"})


def test_an_overloaded_server_is_a_rate_limit() -> None:
    with serving(paced(0.05, max_rows=1), max_queue=0) as server:
        sdk = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        with chat(sdk, stream=True, max_tokens=400) as busy:
            next(iter(busy))
            with pytest.raises(openai.RateLimitError) as limited:
                chat(sdk)
        assert limited.value.response.headers["retry-after"] == "1"
        patient = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=5)
        assert chat(patient).choices


def test_a_failure_inside_a_stream_is_raised() -> None:
    session = tiny_session()

    def broken(rows: Any) -> Any:
        raise RuntimeError

    session.engine.runner.run = broken  # type: ignore[method-assign]
    with serving(session) as server:
        sdk = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.APIError, match="failed"):
            list(chat(sdk, stream=True))
        with pytest.raises(openai.InternalServerError):
            chat(sdk)


def test_many_at_once_without_waiting(known: Running) -> None:
    async def scene() -> None:
        async with openai.AsyncOpenAI(base_url=f"{known.url}/v1", api_key="sk-test", max_retries=0) as sdk:
            answers = await asyncio.gather(*(chat(sdk, seed=2 * i) for i in range(12)))
            assert {answer.choices[0].message.content for answer in answers} == {WORDS}
            stream = await chat(sdk, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == WORDS

    asyncio.run(scene())


def test_langchain(known: Running) -> None:
    key: Any = "sk-test"
    model: Any = ChatOpenAI(
        base_url=f"{known.url}/v1", api_key=key, model="tiny", seed=0, max_retries=0, temperature=0.7,
    )  # fmt: skip
    assert model.invoke("Hello").content == WORDS
    assert "".join(part.content for part in model.stream("Hello")) == WORDS
    with_tools = model.bind_tools([TOOL]).bind(seed=1, max_tokens=100)
    assert with_tools.invoke("Hello").tool_calls[0]["args"] == {"a": 1, "b": 2}
