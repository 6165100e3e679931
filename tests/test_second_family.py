"""A family that `src` does not know runs through load, engine, prefix cache, session, server and CLI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

import canvaslm
from canvaslm.cli.main import main
from canvaslm.diffusion import temperature
from canvaslm.engine import Engine
from canvaslm.errors import UsageError
from canvaslm.ops.rotary import rotary_table
from canvaslm.server import create_app
from canvaslm.session import Session
from canvaslm.types import Committed, Draft, Event, Finished, Message, Params, Request
from tests.second_family import (
    ASK,
    HOLE,
    OVER,
    SAY,
    SPECIALS,
    HoleLayer,
    HoleModel,
    hole_model,
    registered,
    write_folder,
)  # fmt: skip

SRC = Path(canvaslm.__file__).parent
RULE: dict[str, Any] = {
    "sampler": "probability_threshold",
    "accept_threshold": 0.3,
    "temperature": 0.0,
    "seed": 1,
}
PROMPTS = [tuple(10 + (7 * i + n) % 250 for i in range(n)) for n in (1, 15, 16, 17, 31, 32, 33, 50)]


@pytest.fixture(scope="module")
def model() -> HoleModel:
    return hole_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("holes") / "model")


@pytest.fixture
def session(folder: Path) -> Iterator[Session]:
    with registered():
        yield canvaslm.load(folder)


def states(model: HoleModel, tokens: Sequence[int]) -> torch.Tensor:
    """Final states [L, H] of all tokens: each sees the blocks before its own, and its own whole."""
    length, size = len(tokens), model.config.canvas_length
    x, block = model.embed_tokens(torch.tensor([list(tokens)])), torch.arange(length) // size
    rope = rotary_table(torch.arange(length)[None], model.frequencies, torch.float32)
    for layer in model.layers:
        assert isinstance(layer, HoleLayer)
        q, k, v = layer.project(x, rope)
        scores = (q @ k.transpose(-1, -2)).masked_fill(block[None, :] > block[:, None], -torch.inf)
        x = layer.finish(x, (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    normed: torch.Tensor = model.norm(x)[0]
    return normed


@torch.no_grad()
def oracle(model: HoleModel, prompt: Sequence[int], params: Params, stops: Sequence[int] = ()) -> list[int]:
    """The answer, written out: no cache, no batch, the whole text computed anew for every step."""
    size, text = model.config.canvas_length, list(prompt)
    while len(text) < len(prompt) + params.max_new_tokens:
        whole = len(text) // size * size
        canvas = text[whole:] + [HOLE] * (whole + size - len(text))
        open_places = set(range(len(text) - whole, size))
        for step in range(params.max_denoising_steps):
            hidden = states(model, text[:whole] + canvas)[whole:]
            shifted = torch.cat((hidden[:1], hidden[:-1]))
            assert model.lm_head is not None
            logits = model.lm_head(shifted) / temperature(params, step)
            logits[:, HOLE] = -torch.inf
            sure, best = logits.softmax(-1).max(-1)
            surest = max(open_places, key=lambda place: float(sure[place]))
            for place in sorted(open_places):
                if place == surest or float(sure[place]) >= params.accept_threshold:
                    canvas[place] = int(best[place])
                    open_places.discard(place)
            if not open_places:
                break
        for place in open_places:
            canvas[place] = int(best[place])
        text = text[:whole] + canvas
        answer = text[len(prompt) : len(prompt) + params.max_new_tokens]
        ends = [i for i, token in enumerate(answer) if token in stops]
        if ends:
            return answer[: ends[0] + 1]
    return answer


def run(engine: Engine, *requests: Request) -> list[list[Event]]:
    """The events of requests that run together."""
    events: dict[int, list[Event]] = {engine.submit(request): [] for request in requests}
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
    return list(events.values())


def answer(events: Sequence[Event]) -> list[int]:
    assert isinstance(events[-1], Finished), events[-1]
    return [token for event in events if isinstance(event, Committed) for token in event.tokens]


def request(prompt: Sequence[int], count: int = 40, steps: int = 24, **more: object) -> Request:
    params = Params(max_new_tokens=count, max_denoising_steps=steps, **{**RULE, **more})
    return Request(tuple(prompt), params, drafts=True)


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
@pytest.mark.parametrize("steps", [24, 3])
def test_the_engine_gives_the_oracles_tokens(model: HoleModel, prompt: tuple[int, ...], steps: int) -> None:
    asked = request(prompt, steps=steps)
    (events,) = run(Engine(model), asked)
    assert answer(events) == oracle(model, prompt, asked.params)


def test_stop_tokens_end_the_answer(model: HoleModel) -> None:
    asked = request(PROMPTS[3])
    stop = oracle(model, PROMPTS[3], asked.params)[20]
    (events,) = run(Engine(model), Request(asked.tokens, asked.params, (stop,)))
    assert answer(events) == oracle(model, PROMPTS[3], asked.params, (stop,))


@pytest.mark.parametrize("sampler", ["probability_threshold", "entropy_bound", "ancestral"])
def test_alone_and_in_a_batch_to_the_bit(model: HoleModel, sampler: str) -> None:
    asked = [request(p, sampler=sampler, temperature=1.0, seed=i) for i, p in enumerate(PROMPTS)]
    together = run(Engine(model, prefix_memory=0), *asked)
    for one, events in zip(asked, together, strict=True):
        (alone,) = run(Engine(model, prefix_memory=0), one)
        drafts = [e for e in alone if isinstance(e, Draft)], [e for e in events if isinstance(e, Draft)]
        assert [(d.tokens, d.entropy) for d in drafts[0]] == [(d.tokens, d.entropy) for d in drafts[1]]
        assert answer(alone) == answer(events)


def test_accepted_places_stay_and_no_mask_is_ever_said(model: HoleModel) -> None:
    (events,) = run(Engine(model), request(PROMPTS[3], temperature=1.0, accept_threshold=0.9))
    drafts = [event for event in events if isinstance(event, Draft)]
    assert len(drafts[0].tokens) == 15  # the first place is the prompt's last token, no part of the answer
    for before, after in pairwise(drafts):
        if after.canvas == before.canvas:
            assert sum(after.accepted) > sum(before.accepted)
            kept = [i for i, accepted in enumerate(before.accepted) if accepted]
            assert [after.tokens[i] for i in kept] == [before.tokens[i] for i in kept]
            assert all(after.accepted[i] for i in kept)
    assert all(HOLE not in draft.tokens for draft in drafts)


def test_given_places_of_the_answer(model: HoleModel) -> None:
    asked = request(PROMPTS[3])
    given = {0: 70, 14: 71, 15: 72, 20: 73}
    (events,) = run(Engine(model), Request(asked.tokens, asked.params, given=given))
    assert {place: answer(events)[place] for place in given} == given


@pytest.mark.parametrize("length", [16, 33, 50, 80, 700])
def test_a_remembered_prefix_changes_no_bit(model: HoleModel, length: int) -> None:
    """A next turn, and a prompt that leaves the first one inside a block: only whole blocks are reused."""
    model = hole_model()
    object.__setattr__(model.config, "max_position_embeddings", 2048)
    engine = Engine(model)
    prompt = tuple(10 + i * i % 250 for i in range(length))
    first = answer(run(engine, request(prompt))[0])
    for following in ((*prompt, *first, 20, 21, 22), (*prompt[: length * 2 // 3], 33, 34), prompt):
        (warm,) = run(engine, request(following))
        (cold,) = run(Engine(model, prefix_memory=0), request(following))
        assert isinstance(warm[-1], Finished)
        pairs = enumerate(zip(following, (*prompt, *first), strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(following), length + len(first)))
        encoded = (length + len(first) - 1) // 16 * 16  # the last canvas was not
        assert warm[-1].usage.cached_tokens == min(shared, encoded) // 16 * 16
        assert answer(warm) == answer(cold)


def test_a_long_prompt_in_chunks_is_the_oracles(model: HoleModel) -> None:
    model = hole_model()
    object.__setattr__(model.config, "max_position_embeddings", 2048)
    prompt = tuple(10 + i * i % 250 for i in range(1100))
    asked = request(prompt, count=16, steps=4)
    (events,) = run(Engine(model), asked)
    assert answer(events) == oracle(model, prompt, asked.params)


def test_the_folder_loads_and_the_session_talks(session: Session, model: HoleModel) -> None:
    reply = session.generate("Hi", max_new_tokens=20, max_denoising_steps=24, **RULE)
    tokens = session.encode("Hi")
    assert [tokens[0], *tokens[-2:]] == [ASK, OVER, SAY]
    params = Params(max_new_tokens=20, max_denoising_steps=24, **RULE)
    assert list(reply.tokens) == oracle(model, tokens, params, session.eos_token_ids)
    again = session.generate([Message("user", "Hi")], max_new_tokens=20, max_denoising_steps=24, **RULE)
    assert again.text == reply.text


def test_a_users_marker_is_text(session: Session) -> None:
    """The file calls none of them special, and none looks like a marker: the family names them."""
    for marker in SPECIALS:
        assert not set(session.tokenizer.encode(f"a {marker} b")) & set(range(len(SPECIALS)))


def test_the_server_serves_it(session: Session) -> None:
    expected = session.generate("Hi", max_new_tokens=20, max_denoising_steps=24, **RULE)
    with TestClient(create_app(session, allowed_hosts=["testserver"])) as client:
        messages = [{"role": "user", "content": "Hi"}]
        body = {"messages": messages, "max_tokens": 20, "max_denoising_steps": 24, **RULE}
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["choices"][0]["message"]["content"] == expected.text


def test_the_command_line_runs_and_shows_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with registered():
        assert main(["show", str(folder)]) == 0
        assert "holes (block diffusion)" in capsys.readouterr().out
        assert main(["run", "-m", str(folder), "--seed", "1", "--max-new-tokens", "16", "-p", "Hi"]) == 0


def test_without_its_entry_it_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(folder)]) == 6
    assert "model_type is 'holes'" in capsys.readouterr().err


def test_what_it_cannot_do_is_refused(model: HoleModel) -> None:
    class Anything:
        top = 0

        def start(self) -> None:
            return None

    asked = request(PROMPTS[0])
    with pytest.raises(UsageError, match="constraints"):
        Engine(model).submit(Request(asked.tokens, asked.params, constraint=Anything()))  # type: ignore[arg-type]


# Code for the first family's own layers; each line goes when its layers are asked for through the protocol.
LOADERS = {"weights/gguf/fill.py", "weights/gguf/load.py"}
# The demo model is a checkpoint of that family; the others name the reference's file that a rule was read in.
CITED = {"demo/config.py", "ops/norm.py", "ops/attention.py", "diffusion/step.py", "diffusion/schedule.py"}


def test_only_its_folder_and_the_registry_name_a_family() -> None:
    word = re.compile(r"DiffusionGemma|diffusion[-_]gemma")
    naming = {str(p.relative_to(SRC)) for p in SRC.rglob("*.py") if word.search(p.read_text())}
    outside = {name for name in naming if not name.startswith("model/diffusion_gemma/")}
    assert outside <= {"model/registry.py"} | LOADERS | CITED
