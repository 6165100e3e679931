"""Log-probabilities of prompts over HTTP: OpenAI's legacy shape, vLLM's, and what lm-eval makes of it."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import httpx
import pytest

from canvaslm.demo.config import MODEL_FOLDER
from canvaslm.session import Session

from ...world import Running, tiny_session

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = "Once, é \U0001f600 there was"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def session() -> Session:
    return tiny_session()


@pytest.fixture
def ask(client: httpx.Client) -> Ask:
    def asked(url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
        response = client.post(url, json={"seed": 5, **body})
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    return asked


def test_an_echo_has_the_prompts_log_probabilities(ask: Ask, session: Session) -> None:
    answer = ask(prompt=TEXT, echo=True, logprobs=2, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert answer["usage"]["completion_tokens"] == 0
    assert "warnings" not in answer
    columns = choice["logprobs"]
    scored = session.score("", TEXT, raw=True)
    assert columns["tokens"] == ["<bos>", *(token.text for token in scored.tokens)]
    assert columns["token_logprobs"][0] is None
    assert columns["token_logprobs"][1:] == [token.logprob for token in scored.tokens]
    assert columns["top_logprobs"][0] is None
    for token, top in zip(scored.tokens, columns["top_logprobs"][1:], strict=True):
        assert (max(top.values()) == token.logprob) == (token.rank == 1)
    for token, offset in zip(scored.tokens, columns["text_offset"][1:], strict=True):
        assert "\ufffd" in token.text or TEXT[offset:].startswith(token.text)
    assert answer["usage"]["prompt_tokens"] == len(columns["tokens"])


def test_what_is_written_stands_behind_the_prompt(ask: Ask) -> None:
    plain = ask(prompt="Once", logprobs=1, max_tokens=8)["choices"][0]
    echoed = ask(prompt="Once", logprobs=1, max_tokens=8, echo=True)["choices"][0]
    assert echoed["text"] == "Once" + plain["text"]
    count = len(plain["logprobs"]["tokens"])
    shown = [i for i, text in enumerate(echoed["logprobs"]["tokens"]) if not text.startswith("<")]
    assert count <= len(echoed["logprobs"]["tokens"]) - 3
    for column in ("tokens", "token_logprobs", "top_logprobs"):
        behind = [echoed["logprobs"][column][i] for i in shown]
        assert behind[-count:] == plain["logprobs"][column]
    offsets = [echoed["logprobs"]["text_offset"][i] for i in shown]
    assert offsets[-count:] == [4 + offset for offset in plain["logprobs"]["text_offset"]]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_token_stands_in_the_columns(ask: Ask, count: int) -> None:
    """Those that end an answer or are no text, too: clients count from the end."""
    for seed in range(4):
        answer = ask(prompt=[400, 401, 402], seed=seed, echo=True, logprobs=1, max_tokens=count)
        columns, used = answer["choices"][0]["logprobs"], answer["usage"]
        assert {len(column) for column in columns.values()} == {3 + used["completion_tokens"]}


def test_one_token_behind_a_prompt_is_the_readers_own(ask: Ask) -> None:
    body = {"prompt": "Once", "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
    answer = ask(**body)
    assert answer["timings"]["diffusion"]["n_steps"] == 0
    assert answer["choices"] == ask(**body, decoding="causal")["choices"]
    columns = answer["choices"][0]["logprobs"]
    assert columns["token_logprobs"][-1] == max(columns["top_logprobs"][-1].values())
    assert ask(**body, decoding="diffusion")["timings"]["diffusion"]["n_steps"] > 0


def test_many_prompts_and_answers(ask: Ask) -> None:
    prompts = [[400, 401, 402], [403, 404], [405, 406, 407, 408]]
    answer = ask(prompt=prompts, echo=True, logprobs=0, max_tokens=0, n=2)
    found = [choice["logprobs"]["token_logprobs"] for choice in answer["choices"]]
    assert [len(logprobs) for logprobs in found] == [3, 3, 2, 2, 4, 4]
    for i, prompt in enumerate(prompts):
        alone = ask(prompt=prompt, echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]
        assert found[2 * i] == found[2 * i + 1] == alone["token_logprobs"]


def test_nothing_is_written_without_an_echo_too(ask: Ask) -> None:
    answer = ask(prompt="Once", max_tokens=0)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "length")


def test_the_prompt_logprobs_of_vllm(ask: Ask, session: Session) -> None:
    choice = ask(prompt=TEXT, prompt_logprobs=1, max_tokens=0)["choices"][0]
    scored = session.score("", TEXT, raw=True)
    first, *tables = choice["prompt_logprobs"]
    assert first is None
    for token, table in zip(scored.tokens, tables, strict=True):
        told = table[str(token.id)]
        assert told == {"logprob": token.logprob, "rank": token.rank, "decoded_token": token.text}
        assert {entry["rank"] for entry in table.values()} == {1, token.rank}
    written = ask(prompt=TEXT, prompt_logprobs=1, max_tokens=8)
    assert written["choices"][0]["prompt_logprobs"] == choice["prompt_logprobs"]
    assert written["choices"][0]["text"] == ask(prompt=TEXT, max_tokens=8)["choices"][0]["text"]


def test_chats_have_them_beside_their_choices(ask: Ask, session: Session) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    answer = ask(CHAT, messages=turns, prompt_logprobs=0, max_tokens=0)
    tokens = session.encode("Hi")
    assert [list(table or ()) for table in answer["prompt_logprobs"][1:]] == [[str(t)] for t in tokens[1:]]
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["usage"]["completion_tokens"] == 0
    written = ask(CHAT, messages=turns, prompt_logprobs=0, max_tokens=8)
    assert written["prompt_logprobs"] == answer["prompt_logprobs"]
    plain = ask(CHAT, messages=turns, max_tokens=8)
    assert written["choices"] == plain["choices"]
    assert "prompt_logprobs" not in plain


@pytest.mark.parametrize(
    ("url", "param", "body"),
    [
        (COMPLETIONS, "echo", {"echo": True, "logprobs": 1, "stream": True}),
        (COMPLETIONS, "echo", {"echo": True, "logprobs": 1, "suffix": "."}),
        (COMPLETIONS, "prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
        (COMPLETIONS, "prompt_logprobs", {"prompt_logprobs": 1, "suffix": "."}),
        (COMPLETIONS, "prompt_logprobs", {"prompt_logprobs": 21}),
        (COMPLETIONS, "prompt_logprobs", {"prompt_logprobs": -1}),
        (COMPLETIONS, "max_tokens", {"max_tokens": -2}),
        (CHAT, "prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
        (CHAT, "max_tokens", {"max_tokens": 0}),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    client: httpx.Client, url: str, param: str, body: dict[str, Any]
) -> None:
    asked = {"prompt": "Once"} if url == COMPLETIONS else {"messages": [{"role": "user", "content": "Hi"}]}
    response = client.post(url, json={**asked, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


# -- lm-eval ---------------------------------------------------------------------------------------------

PAIRS = [("capital of France:", " Paris"), ("capital of Japan:", " Tokyo"), ("Once", " there was one")]


def as_lm_eval_reads_it(answer: dict[str, Any], contexts: list[int]) -> list[tuple[float, bool]]:
    """(log-likelihood, greedy or not) as its `local-completions` has them, version 0.4.13: the token that it
    has to ask for is cut off from the end."""
    made = []
    for choice, length in zip(sorted(answer["choices"], key=itemgetter("index")), contexts, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        greedy = all(own == max(top.values()) for own, top in zip(logprobs, tops, strict=True))
        made.append((sum(logprobs), greedy))
    return made


def wanted(session: Session) -> list[tuple[float, bool]]:
    scores = [session.score(context, text, raw=True) for context, text in PAIRS]
    return [(scored.logprob, all(token.rank == 1 for token in scored.tokens)) for scored in scores]


def test_lm_eval_reads_what_the_session_scores(ask: Ask, session: Session) -> None:
    contexts = [session.encode(context, raw=True) for context, _ in PAIRS]
    whole = [[*c, *session.tokenizer.encode(t)] for c, (_, t) in zip(contexts, PAIRS, strict=True)]
    answer = ask(
        model="tiny", prompt=whole, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )  # as it sends it
    assert as_lm_eval_reads_it(answer, [len(c) for c in contexts]) == wanted(session)


def test_lm_eval_itself(server: Running, session: Session) -> None:
    reason = "needs `pip install lm-eval[api] transformers`"
    completions: Any = pytest.importorskip("lm_eval.models.openai_completions", reason=reason)
    pytest.importorskip("transformers", reason=reason)
    instances: Any = pytest.importorskip("lm_eval.api.instance", reason=reason)
    model = completions.LocalCompletionsAPI(
        base_url=f"{server.url}{COMPLETIONS}", model="tiny", tokenizer_backend="huggingface",
        tokenizer=str(MODEL_FOLDER), add_bos_token=True,
    )  # fmt: skip
    asked = [instances.Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)]
    assert model.loglikelihood(asked, disable_tqdm=True) == wanted(session)
    text = "".join(PAIRS[0])
    rolling = [instances.Instance("loglikelihood_rolling", {}, (text,), 0)]
    (found,) = model.loglikelihood_rolling(rolling, disable_tqdm=True)
    # It puts a BOS of its own before the one that it has been told to put there.
    tokens = session.encode(text, raw=True)
    answer = httpx.post(
        f"{server.url}{COMPLETIONS}",
        json={"prompt": [tokens[0], *tokens], "echo": True, "logprobs": 0, "max_tokens": 0},
    ).json()
    assert found == pytest.approx(sum(answer["choices"][0]["logprobs"]["token_logprobs"][1:]), abs=1e-6)
