"""Log-probabilities of chosen tokens, and beginnings that prompts share: exact, whoever else is there."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from canvaslm.diffusion import start_canvas
from canvaslm.engine import Driver, Engine
from canvaslm.errors import UsageError
from canvaslm.model import Model, PlainContext
from canvaslm.ops.token_logprobs import PLACES, token_logprobs
from canvaslm.types import Committed, Failed, Finished, Params, Request
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.resolve import resolve

from ..tiny import tiny_model, write_tiny_gguf

PARAMS = Params(max_new_tokens=16, max_denoising_steps=1, seed=5)
PROMPT = tuple(range(3, 40))
GIVEN = {1: 1, **dict.fromkeys(range(2, 16), 0)}
TOKENS = (4, 60, 9)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(canvas_length=16)


def ask(engine: Engine, *requests: Request) -> tuple[list[dict[int, tuple[float, ...]]], list[int]]:
    """(what each says of the tokens it watches, how many of its prompt's tokens were remembered)."""
    said: list[dict[int, tuple[float, ...]]] = [{} for _ in requests]
    cached = [0] * len(requests)
    for index, event in Driver(engine).events_of_many(requests, len(requests)):
        assert not isinstance(event, Failed), event
        if isinstance(event, Committed):
            said[index] |= event.watched
        elif isinstance(event, Finished):
            cached[index] = event.usage.cached_tokens
    return said, cached


def plain(model: Model, request: Request) -> torch.Tensor:
    """Log-probabilities [C, V] of the first step, by one forward pass without cache, batch or tiles."""
    memory, count = PlainContext(model.config), len(request.tokens)
    canvas = start_canvas(
        request.params.seed or 0, 0, 16, model.config.vocab_size, given=dict(request.given)
    ).tokens
    with torch.no_grad():
        model.encode(torch.tensor([request.tokens]), torch.arange(count)[None], memory)
        hidden = model.denoise(canvas, count + torch.arange(16)[None], memory)[0]
        return model.logits(hidden).double().log_softmax(-1)


@pytest.mark.parametrize("heat", [0.0, 0.7, 3.0])
def test_they_are_those_of_a_plain_pass_at_temperature_1(model: Model, heat: float) -> None:
    params = replace(PARAMS, temperature=heat)
    request = Request(PROMPT, params, given=GIVEN, watched={0: TOKENS, 5: (7,)})
    (said,), _ = ask(Engine(model), request)
    expected = plain(model, request)
    assert said[0] == pytest.approx([float(expected[0, t]) for t in TOKENS], rel=1e-6, abs=1e-6)
    assert said[5] == pytest.approx([float(expected[5, 7])], rel=1e-6, abs=1e-6)


def test_biases_and_what_is_allowed_do_not_change_them(model: Model) -> None:
    request = Request(PROMPT, PARAMS, given=GIVEN, watched={0: TOKENS})
    (free,), _ = ask(Engine(model), request)
    (tied,), _ = ask(Engine(model), replace(request, allowed={0: (1 << 9).to_bytes(8, "little")}))
    assert tied == free


def test_they_are_of_every_canvas(model: Model) -> None:
    request = Request(PROMPT, replace(PARAMS, max_new_tokens=48), watched={3: (5,), 40: (6, 7)})
    (said,), _ = ask(Engine(model), request)
    assert {place: len(values) for place, values in said.items()} == {3: 1, 40: 2}


def test_they_are_of_the_last_step(model: Model) -> None:
    several = replace(PARAMS, max_denoising_steps=4, confidence_threshold=0.0)
    watched = {0: TOKENS}
    said, _ = ask(
        Engine(model), Request(PROMPT, PARAMS, watched=watched), Request(PROMPT, several, watched=watched)
    )
    assert said[0] != said[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"watched": {0: (64,)}}, "watched: token 64 is not in 0 .. 63"),
        ({"watched": {0: ()}}, "watched names no token of place 0"),
        ({"watched": {16: (3,)}}, "the given place 16 is outside the 16 places"),
        ({"watched": {0: (3,) * 513}}, "watched has 513 tokens: at most 512"),
        ({"shared": len(PROMPT)}, "shared = 37 is out of range: 0 to 36"),
    ],
)
def test_what_cannot_be_is_refused(model: Model, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Engine(model).submit(Request(PROMPT, PARAMS, **changes))  # type: ignore[arg-type]


def shared_requests(count: int, beginning: int) -> list[Request]:
    """Prompts with one beginning, the end of each of its own length; some ends begin alike, too."""
    rng = random.Random(beginning)
    start = tuple(rng.randrange(2, 64) for _ in range(beginning))
    ends = [tuple(rng.randrange(2, 64) for _ in range(rng.choice((3, 9, 30)))) for _ in range(count)]
    ends[1] = (*ends[0][:3], *ends[1])
    return [
        Request((*start, *end), replace(PARAMS, seed=i), given=GIVEN, watched={0: TOKENS}, shared=beginning,
                identity="here")
        for i, end in enumerate(ends)
    ]  # fmt: skip


@pytest.mark.parametrize("beginning", [5, 70, 530])
@pytest.mark.parametrize("memory", [0, 2**30])
def test_a_shared_beginning_is_encoded_once_and_changes_no_bit(
    model: Model, beginning: int, memory: int
) -> None:
    requests = shared_requests(12, beginning)
    alone = [ask(Engine(model), request)[0][0] for request in requests]
    engine = Engine(model, prefix_memory=memory, max_rows=5)
    said, cached = ask(engine, *requests)
    assert said == alone
    if memory:
        assert cached == [0] + [beginning] * 11
        again, cached = ask(engine, *reversed(requests))
        assert again == alone[::-1] and set(cached) == {beginning}


def test_others_share_nothing_with_it(model: Model) -> None:
    (request,) = shared_requests(2, 70)[:1]
    engine = Engine(model)
    ask(engine, request)
    _, cached = ask(engine, replace(request, identity="elsewhere"), replace(request, shared=60))
    assert cached[0] == 0 and cached[1] == 60


def test_a_crowd_around_it_changes_no_bit(model: Model) -> None:
    request = shared_requests(2, 70)[0]
    alone = ask(Engine(model), request)[0][0]
    crowd = [Request(PROMPT[i:], replace(PARAMS, seed=i, max_new_tokens=40)) for i in range(6)]
    said, _ = ask(Engine(model), *crowd[:3], request, *crowd[3:])
    assert said[3] == alone


@pytest.mark.parametrize("count", [1, 15, PLACES, 2 * PLACES + 3])
def test_a_place_depends_on_no_other(count: int) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(count, 64), torch.randn(9000, 64)
    tokens = torch.randint(0, 9000, (count, 4))
    whole = token_logprobs(hidden, head, tokens, softcap=3.0, forbidden=17)
    for i in range(0, count, 7):
        one = token_logprobs(hidden[i : i + 1], head, tokens[i : i + 1], softcap=3.0, forbidden=17)
        assert torch.equal(one, whole[i : i + 1])
    logits = torch.tanh(hidden @ head.T / 3).double() * 3
    logits[:, 17] = -torch.inf
    assert torch.allclose(whole, logits.log_softmax(-1).gather(1, tokens), atol=1e-6)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16"])
def test_repacked_heads_say_what_their_predictions_say(tmp_path: Path, kind: str) -> None:
    """The logits are those of the kernel that samples: its best tokens have the same log-probabilities."""
    made = tiny_model(vocab_size=1024, hidden_size=256, canvas_length=16)
    loaded = load_model(resolve(write_tiny_gguf(made, tmp_path / "tiny.gguf", kind))).model
    at_one = replace(PARAMS, t_min=1.0, t_max=1.0)
    request = Request(PROMPT, at_one, given=GIVEN, top_logprobs=20)
    (event,) = [e for e in Driver(Engine(loaded)).events(request) if isinstance(e, Committed)]
    best = dict(event.top_logprobs[0])
    (said,), _ = ask(Engine(loaded), replace(request, watched={0: tuple(best)}))
    assert said[0] == pytest.approx(list(best.values()), abs=2e-5)
