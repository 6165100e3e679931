"""Chat completions: whole, streamed, with drafts, with tools, with thoughts."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest

from canvaslm.diffusion import PRESETS, SAMPLERS
from canvaslm.server.fields import Preset, Sampler

from ...world import HELLO, Running, chunks_of, scripted_session, serving, tiny_session

URL = "/v1/chat/completions"
CALL = "<|tool_call>call:add{a:1,b:2}<tool_call|>"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json={"messages": HELLO, "seed": 5, **body})
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def stream(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    return chunks_of(client.post(URL, json={"messages": HELLO, "seed": 5, "stream": True, **body}))


def deltas(chunks: list[dict[str, Any]], key: str = "content", index: int = 0) -> str:
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    return "".join(c["delta"].get(key) or "" for c in choices)


def refused(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json={"messages": HELLO, **body})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.fixture(scope="module")
def alone() -> Any:
    """The same model without a server."""
    return tiny_session()


def test_the_answer_is_that_of_the_session(client: httpx.Client, alone: Any) -> None:
    answer = ask(client)
    reply = alone.generate(HELLO, seed=5)
    assert answer["choices"][0]["message"]["content"] == reply.text
    assert answer["choices"][0]["finish_reason"] == reply.finish_reason == "length"
    assert answer["seed"] == 5 and answer["object"] == "chat.completion"
    assert answer["system_fingerprint"].startswith("fp_")
    assert answer["usage"]["prompt_tokens"] == reply.usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == reply.usage.completion_tokens == 24
    assert answer["usage"]["total_tokens"] == reply.usage.prompt_tokens + 24


def test_choices_have_seeds_in_a_row(client: httpx.Client) -> None:
    three = ask(client, n=3)
    singles = [ask(client, seed=5 + i)["choices"][0]["message"] for i in range(3)]
    assert [choice["message"] for choice in three["choices"]] == singles
    assert len({message["content"] for message in singles}) == 3
    assert three["usage"]["completion_tokens"] == 72


def test_a_random_seed_is_named(client: httpx.Client) -> None:
    for unset in ({}, {"seed": None}, {"seed": -1}):
        first = client.post(URL, json={"messages": HELLO, **unset}).json()
        assert first["seed"] >= 0
        assert ask(client, seed=first["seed"])["choices"] == first["choices"]


def test_temperature_scales_the_schedule(client: httpx.Client) -> None:
    assert ask(client, temperature=20)["choices"] == ask(client, t_min=8.0, t_max=16.0)["choices"]
    assert ask(client, temperature=20)["choices"] != ask(client)["choices"]


def test_a_stream_is_the_answer_in_parts(client: httpx.Client) -> None:
    whole = ask(client)["choices"][0]
    chunks = stream(client)
    assert deltas(chunks) == whole["message"]["content"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert not any("usage" in chunk or "diffusion" in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_usage_comes_last_and_alone(client: httpx.Client) -> None:
    *others, last = stream(client, n=2, stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 48
    assert all("usage" not in chunk for chunk in others)


def test_drafts_replace(client: httpx.Client) -> None:
    """Mercury's protocol: each delta is the whole text so far."""
    chunks = stream(client, diffusing=True)
    texts = [c["choices"][0]["delta"]["content"] for c in chunks[1:] if "content" in c["choices"][0]["delta"]]
    assert texts[-1] == ask(client)["choices"][0]["message"]["content"]
    assert len(texts) > 3 and len(set(texts)) > 3
    assert not all(after.startswith(before) for before, after in itertools.pairwise(texts))


def test_the_diffusion_view(client: httpx.Client) -> None:
    chunks = stream(client, stream_options={"include_diffusion": True})
    assert deltas(chunks) == ask(client)["choices"][0]["message"]["content"]
    views = [chunk["diffusion"] for chunk in chunks if "diffusion" in chunk]
    assert all(c["choices"][0]["delta"] == {} for c in chunks if "diffusion" in c)
    steps = [view for view in views if view["state"] == "denoising"]
    done = [view for view in views if view["state"] == "committed"]
    assert [view["canvas"] for view in done] == [0, 1, 2]
    assert all(view["stop_reason"] in ("converged", "max_steps") for view in done)
    for view in steps:
        assert view["steps_max"] == 6 and 1 <= view["step"] <= 6
        assert (
            len(view["accepted"]) == len(view["changed"]) == len(view["entropy"]) == len(view["pieces"]) == 8
        )
        assert view["mean_entropy"] == pytest.approx(sum(view["entropy"]) / 8, abs=0.01)


def test_logprobs_are_of_the_answers_tokens(client: httpx.Client) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3)["choices"][0]
    entries = choice["logprobs"]["content"]
    text = b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace")
    assert text == choice["message"]["content"]
    for entry in entries:
        assert entry["logprob"] <= 0
        best = entry["top_logprobs"]
        assert len(best) == 3 and best[0]["logprob"] >= best[1]["logprob"] >= best[2]["logprob"]
        assert best[0]["token"] == entry["token"]
    streamed = stream(client, logprobs=True, top_logprobs=3)
    parts = [c["choices"][0]["logprobs"] for c in streamed if c["choices"][0].get("logprobs")]
    assert [entry for part in parts for entry in part["content"]] == entries
    assert ask(client)["choices"][0]["logprobs"] is None


def test_doubt_adds_what_the_causal_reader_says(client: httpx.Client) -> None:
    plain = ask(client, logprobs=True)["choices"][0]
    choice = ask(client, doubt=True)["choices"][0]
    assert choice["message"] == plain["message"]
    entries = choice["logprobs"]["content"]
    for entry in entries:
        assert entry["causal_logprob"] <= 0 and entry["causal_rank"] >= 1
    extra = {"causal_logprob", "causal_rank"}
    assert [{k: v for k, v in e.items() if k not in extra} for e in entries] == plain["logprobs"]["content"]
    parts = [c["choices"][0]["logprobs"] for c in stream(client, doubt=True)]
    assert [entry for part in parts if part for entry in part["content"]] == entries


def test_timings(client: httpx.Client) -> None:
    timings = ask(client)["timings"]
    diffusion = timings["diffusion"]
    assert timings["predicted_n"] == 24 and diffusion["n_blocks"] == 3
    assert 3 <= diffusion["n_steps"] <= 18 and diffusion["canvas_tokens"] == 24
    wall = timings["predicted_ms"] / 1000
    assert timings["predicted_per_second"] == pytest.approx(24 / wall, rel=0.01)
    assert timings["cache_n"] + timings["prompt_n"] == ask(client)["usage"]["prompt_tokens"]


def test_timings_tell_of_the_causal_readers_passes(client: httpx.Client) -> None:
    assert ask(client)["timings"]["diffusion"]["n_reads"] == 0
    diffusion = ask(client, verify="greedy")["timings"]["diffusion"]
    assert diffusion["n_reads"] == diffusion["n_blocks"] >= 3


def test_repeated_prompts_are_remembered(client: httpx.Client) -> None:
    ask(client)
    assert ask(client)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_max_tokens_by_either_name(client: httpx.Client) -> None:
    assert ask(client, max_tokens=5)["usage"]["completion_tokens"] == 5
    assert ask(client, max_completion_tokens=9, max_tokens=5)["usage"]["completion_tokens"] == 9
    assert ask(client, max_tokens=5.0)["usage"]["completion_tokens"] == 5


def test_diffusion_parameters_are_extra_fields(client: httpx.Client) -> None:
    assert ask(client, max_denoising_steps=2)["timings"]["diffusion"]["n_steps"] == 6
    assert ask(client, max_denoising_steps=1)["timings"]["diffusion"]["n_steps"] == 3
    changed = ask(
        client, sampler="ancestral", t_min=0.1, t_max=2.0, confidence_threshold=0.0, stability_threshold=3
    )
    assert changed["choices"] != ask(client)["choices"]


def test_schema_and_sampler_agree() -> None:
    assert set(Sampler.__args__) == set(SAMPLERS)  # type: ignore[attr-defined]
    assert set(Preset.__args__) == set(PRESETS)  # type: ignore[attr-defined]


def test_an_old_name_of_a_sampler_works_and_is_told(client: httpx.Client) -> None:
    new = ask(client, sampler="probability_threshold")
    old = ask(client, sampler="confidence_threshold")
    assert old["choices"][0]["message"] == new["choices"][0]["message"]
    assert "warnings" not in new
    (warning,) = old["warnings"]
    assert warning["param"] == "sampler"
    assert "confidence_threshold is called probability_threshold now" in warning["message"]
    assert refused(client, sampler="magic")["param"] == "sampler"


def test_what_is_unknown_is_ignored_and_named(client: httpx.Client) -> None:
    answer = ask(
        client, favourite_colour="blue", top_p=0.5, user="me", metadata={"a": "b"}, frequency_penalty=0
    )
    assert {warning["param"] for warning in answer["warnings"]} == {"favourite_colour", "top_p"}
    assert "warnings" not in ask(client, user="me")
    assert stream(client, favourite_colour="blue")[0]["warnings"][0]["param"] == "favourite_colour"
    many = ask(client, **{f"field{i}": i for i in range(1000)})
    assert len(many["warnings"]) < 20


@pytest.mark.parametrize(
    ("param", "body"),
    [
        ("response_format", {"response_format": {"type": "magic"}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {}}}),
        ("response_format", {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}),
        ("guided_regex", {"guided_regex": "(a"}),
        ("structured_outputs.magic", {"structured_outputs": {"magic": 1}}),
        ("structured_outputs.choice", {"structured_outputs": {"choice": "yes"}}),
        ("structured_outputs.regex", {"structured_outputs": {"regex": 5}}),
        ("guided_json", {"guided_json": "{"}),
        ("guided_regex", {"structured_outputs": {"choice": ["a"]}, "guided_regex": "a"}),
        ("max_tokens", {"guided_regex": "a{30}", "max_tokens": 10}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}}),
        ("logit_bias", {"logit_bias": {"five": 1.0}}),
        ("logit_bias", {"logit_bias": {"5": 101}}),
        ("logit_bias", {"logit_bias": {"999999": 1}}),
        ("allowed_token_ids", {"allowed_token_ids": []}),
        ("allowed_token_ids", {"allowed_token_ids": [999_999]}),
        ("min_tokens", {"min_tokens": -1}),
        ("min_new_tokens", {"min_new_tokens": 9, "max_tokens": 8}),
        ("prediction", {"prediction": {"type": "magic", "content": "x"}}),
        ("prediction", {"prediction": {"type": "content", "content": [{"type": "image"}]}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("chat_template", {"chat_template": "{{ 1 }}"}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("diffusing", {"diffusing": True}),
        ("messages", {"messages": []}),
        ("messages", {"messages": [{"role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("messages.0.role", {"messages": [{"role": "wizard", "content": "x"}]}),
        ("stop", {"stop": ""}),
        ("stop", {"stop": ["x"] * 65}),
        ("n", {"n": 17}),
        ("n", {"n": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_completion_tokens", {"max_completion_tokens": 2**30}),
        ("temperature", {"temperature": -1}),
        ("temperature", {"temperature": "1"}),
        ("t_max", {"t_min": 0.9, "t_max": 0.1}),
        ("seed", {"seed": 2**70}),
        ("seed", {"seed": 1.5}),
        ("max_denoising_steps", {"max_denoising_steps": 0}),
        ("max_denoising_steps", {"max_denoising_steps": 10**9}),
        ("sampler", {"sampler": "magic"}),
        ("preset", {"preset": "magic"}),
        ("tools", {"tools": [{"type": "function"}]}),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(client: httpx.Client, param: str, body: dict[str, Any]) -> None:
    assert refused(client, **body)["param"] == param
    assert refused(client, stream=True, **{k: v for k, v in body.items() if k != "diffusing"} or {"n": 0})


def test_a_prompt_too_long_is_refused_before_the_stream(client: httpx.Client) -> None:
    long = [{"role": "user", "content": "word " * 600}]
    response = client.post(URL, json={"messages": long, "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_prediction_starts_the_canvas(client: httpx.Client) -> None:
    free = ask(client, seed=1)["choices"]
    guess = "Hello world, this is a guess. " * 4
    text = [{"type": "text", "text": guess[:9]}, {"type": "text", "text": guess[9:]}]
    told = [
        ask(client, seed=1, prediction={"type": "content", "content": c})["choices"] for c in (guess, text)
    ]
    assert told[0] == told[1] != free


# -- answers whose text is known -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known() -> Any:
    answers = (
        "Hello world. This is the end of it.",
        f"<|channel>thought\nLet me think.<channel|>Two calls.{CALL}{CALL}",
    )
    with serving(scripted_session(*answers)) as running:
        yield running


TEXT, TOOLS = 0, 1  # seeds


def test_an_answer_that_ends_by_itself(known: Running) -> None:
    with known.client() as client:
        choice = ask(client, seed=TEXT, max_tokens=200)["choices"][0]
        assert choice["message"]["content"] == "Hello world. This is the end of it."
        assert choice["finish_reason"] == "stop"
        assert ask(client, seed=TEXT, max_tokens=3)["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        ("world", "Hello "),
        ([" of", "is the"], "Hello world. This "),
        ("it.", "Hello world. This is the end of "),
    ],
)
def test_stop_strings_cut_and_count_as_stop(known: Running, stop: Any, left: str) -> None:
    with known.client() as client:
        choice = ask(client, seed=TEXT, max_tokens=200, stop=stop, logprobs=True)["choices"][0]
        assert choice["message"]["content"] == left
        assert choice["finish_reason"] == "stop"
        tokens = b"".join(bytes(e["bytes"]) for e in choice["logprobs"]["content"]).decode()
        assert tokens.startswith(left.rstrip()) and len(tokens) <= len(left) + 8
        assert deltas(stream(client, seed=TEXT, max_tokens=200, stop=stop)) == left


def test_a_stop_string_ends_the_work(known: Running) -> None:
    with known.client() as client:
        canvases = known.metric("diffusion_canvases_total")
        ask(client, seed=TEXT, max_tokens=400, stop="Hello")
        assert known.metric("diffusion_canvases_total") - canvases <= 2


def test_thoughts_and_calls_are_apart_from_the_answer(known: Running) -> None:
    with known.client() as client:
        answer = ask(client, seed=TOOLS, max_tokens=200, tools=[TOOL], thinking=True)
        choice = answer["choices"][0]
        message = choice["message"]
        assert message["content"] == "Two calls."
        assert message["reasoning_content"] == message["reasoning"] == "Let me think."
        assert choice["finish_reason"] == "tool_calls"
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["add", "add"]
        assert [json.loads(call["function"]["arguments"]) for call in message["tool_calls"]] == [
            {"a": 1, "b": 2}
        ] * 2
        assert len({call["id"] for call in message["tool_calls"]}) == 2
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_thoughts_then_content_then_calls_in_a_stream(known: Running) -> None:
    with known.client() as client:
        chunks = stream(client, seed=TOOLS, max_tokens=200, tools=[TOOL], reasoning_effort="high")
        assert deltas(chunks, "reasoning_content") == deltas(chunks, "reasoning") == "Let me think."
        assert deltas(chunks) == "Two calls."
        calls = [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert [call["index"] for call in calls] == [0, 1]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        kinds = [next(iter(c["choices"][0]["delta"]), "") for c in chunks]
        order = [k for i, k in enumerate(kinds) if i == 0 or k != kinds[i - 1]]
        assert order == ["role", "reasoning_content", "content", "tool_calls", ""]


def test_logprobs_leave_thoughts_and_calls_out(known: Running) -> None:
    with known.client() as client:
        choice = ask(client, seed=TOOLS, max_tokens=200, logprobs=True)["choices"][0]
        assert b"".join(bytes(e["bytes"]) for e in choice["logprobs"]["content"]) == b"Two calls."


def test_a_turn_with_tools_can_be_sent_back(known: Running) -> None:
    with known.client() as client:
        message = ask(client, seed=TOOLS, max_tokens=200, tools=[TOOL])["choices"][0]["message"]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "3"} for call in message["tool_calls"]
        ]
        turns = [*HELLO, message, *results, {"role": "user", "content": [{"type": "text", "text": "And?"}]}]
        prompt = client.post("/apply-template", json={"messages": turns, "tools": [TOOL]}).json()["prompt"]
        assert prompt.count("call:add") == 2 and "And?" in prompt and "Let me think" not in prompt
        assert ask(client, messages=turns, seed=TEXT, max_tokens=50)["choices"][0]["message"]["content"]


def test_thinking_is_asked_for_in_four_ways(client: httpx.Client) -> None:
    def thinks(**body: Any) -> bool:
        prompt: str = client.post("/apply-template", json={"messages": HELLO, **body}).json()["prompt"]
        return "<|think|>" in prompt

    assert not thinks() and not thinks(reasoning_effort="none") and not thinks(thinking=False)
    assert thinks(thinking=True) and thinks(thinking={"type": "enabled"}) and thinks(reasoning_effort="low")
    assert thinks(chat_template_kwargs={"enable_thinking": True}, thinking=False)
    assert not thinks(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="high")


DAMAGED = "<|tool_call>call:add{a:1,b:one<tool_call|>"
OTHER = "<|tool_call>call:nothing{}<tool_call|>"


def test_damaged_calls_and_calls_of_what_is_no_tool_are_told() -> None:
    with serving(scripted_session(f"So:{DAMAGED}{OTHER}")) as server, server.client() as client:
        answer = ask(client, max_tokens=200, tools=[TOOL])
        message = answer["choices"][0]["message"]
        (call,) = message["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": "one"}
        assert message["content"] == f"So:{OTHER}"
        assert [told["code"] for told in answer["warnings"]] == ["healed_tool_call", "unknown_tool"]
        assert "'add'" in answer["warnings"][0]["message"] and "'nothing'" in answer["warnings"][1]["message"]
        last = stream(client, max_tokens=200, tools=[TOOL])[-1]
        assert last["warnings"] == answer["warnings"]
        toolless = ask(client, max_tokens=200)
        assert toolless["choices"][0]["message"]["content"] == f"So:{DAMAGED}{OTHER}"
        assert [told["code"] for told in toolless["warnings"]] == ["unknown_tool"] * 2


def test_no_tools_are_shown_where_none_may_be_chosen(client: httpx.Client) -> None:
    with_tools = ask(client, tools=[TOOL])["usage"]["prompt_tokens"]
    without = ask(client)["usage"]["prompt_tokens"]
    assert ask(client, tools=[TOOL], tool_choice="none")["usage"]["prompt_tokens"] == without < with_tools


def test_early_text_is_the_same_text(client: httpx.Client) -> None:
    """With settle_steps the text comes in smaller parts, which add up, log-probabilities too."""
    options = {"settle_steps": 1, "settle_entropy": 0.5, "logprobs": True, "top_logprobs": 1}
    whole, parts = ask(client, **options), stream(client, **options)
    assert deltas(parts) == whole["choices"][0]["message"]["content"]
    entries = [e for c in parts if (lp := c["choices"][0].get("logprobs")) for e in lp["content"]]
    assert entries == whole["choices"][0]["logprobs"]["content"]
    assert len([c for c in parts if c["choices"][0]["delta"].get("content")]) > 3
