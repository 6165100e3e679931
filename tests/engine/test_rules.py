"""Tokens favoured and forbidden: against the oracle, alone and in a crowd, on native kernels, and refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from canvaslm.engine import Engine
from canvaslm.engine.reference import generate
from canvaslm.engine.rules import RowRules
from canvaslm.errors import UsageError
from canvaslm.model import Model
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.ops import cpu
from canvaslm.types import MAX_BIASES, Params, Request, TokenRules
from canvaslm.weights.loading.load import load_model
from canvaslm.weights.resolve import resolve
from tests.tiny import tiny_model, write_tiny_gguf

from .crowd import outputs

PROMPT = tuple(range(3, 20))
PARAMS = Params(max_new_tokens=40, max_denoising_steps=6, confidence_threshold=0.01, seed=1)
EOS = (1,)
NEVER = -math.inf
RULES: list[tuple[TokenRules, dict[str, Any]]] = [
    (TokenRules(((7, 6.0), (9, -3.0), (30, NEVER))), {}),
    (TokenRules(allowed=(5, 6, 7, 40, 50)), {}),
    (TokenRules(), {"min_new_tokens": 20}),
    (TokenRules(((5, NEVER),), (5, 6, 8)), {"min_new_tokens": 33}),
    (TokenRules(((1, 40.0),)), {"min_new_tokens": 18}),
    (TokenRules(((8, 2.0),), (8, 9, 10)), {"top_k": 3}),
    (TokenRules(((7, 6.0),)), {"canvas_length": 24, "min_new_tokens": 30}),
]


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(canvas_length=32)


def request(index: int) -> Request:
    rules, params = RULES[index]
    return Request(PROMPT[index:], replace(PARAMS, **params), EOS, rules=rules)


@pytest.mark.parametrize("index", range(len(RULES)))
def test_the_engine_writes_what_the_oracle_writes(model: DiffusionGemma, index: int) -> None:
    asked = request(index)
    written, _ = generate(model, asked.tokens, asked.params, EOS, rules=asked.rules)
    assert outputs(model, [asked]) == [written]
    free, _ = generate(model, asked.tokens, replace(asked.params, min_new_tokens=0), EOS)
    assert written != free, "rules that change nothing test nothing"


def test_rows_with_rules_of_their_own_and_without_share_a_pass(model: DiffusionGemma) -> None:
    asked = [*map(request, range(len(RULES))), Request(PROMPT, PARAMS, EOS)]
    assert outputs(model, asked) == [outputs(model, [one])[0] for one in asked]


@pytest.mark.parametrize("index", range(len(RULES)))
def test_what_is_written_keeps_the_rules(model: DiffusionGemma, index: int) -> None:
    asked = request(index)
    (written,) = outputs(model, [asked])
    rules, least = asked.rules, asked.params.min_new_tokens
    assert not set(written) & {token for token, value in rules.biases if value == NEVER}
    assert not {*EOS, model.config.pad_token_id} & set(written[:least])
    assert len(written) >= least
    if rules.allowed is not None:
        assert written[0] in rules.allowed
        assert set(written) <= {*rules.allowed, *EOS, model.config.pad_token_id}


def test_given_places_are_not_asked(model: DiffusionGemma) -> None:
    asked = replace(request(1), given={2: 57, 17: 58})
    (written,) = outputs(model, [asked])
    assert written[2] == 57
    assert (
        generate(model, asked.tokens, asked.params, EOS, given=asked.given, rules=asked.rules)[0] == written
    )


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Model:
    if not cpu.available():
        pytest.skip("no native kernels here")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("rules") / "tiny.gguf"
    # The demo's tokenizer goes into the file, so that the vocabulary must be its.
    return load_model(
        resolve(write_tiny_gguf(tiny_model(vocab_size=1024, canvas_length=32), path, "Q8_0"))
    ).model


@pytest.mark.parametrize("index", range(len(RULES)))
def test_native_kernels_keep_the_rules_and_change_nothing_in_a_crowd(native: Model, index: int) -> None:
    asked = request(index)
    alone, crowd = (
        outputs(native, [asked]),
        outputs(native, [asked, Request(PROMPT, PARAMS, EOS), request(1)]),
    )
    assert crowd[0] == alone[0]
    forbidden = {token for token, value in asked.rules.biases if value == NEVER}
    least = {*EOS, native.config.pad_token_id} if asked.params.min_new_tokens else set()
    assert not forbidden & set(alone[0])
    assert not least & set(alone[0][: asked.params.min_new_tokens])
    if asked.rules.allowed is not None:
        assert set(alone[0]) <= {*asked.rules.allowed, *EOS, native.config.pad_token_id}


@pytest.mark.parametrize(
    ("rules", "params", "field", "words"),
    [
        (TokenRules(((100_000, 1.0),)), {}, "logit_bias", "token 100000 is not in"),
        (TokenRules(((5, math.nan),)), {}, "logit_bias", "give a number or -inf"),
        (TokenRules(((5, math.inf),)), {}, "logit_bias", "give a number or -inf"),
        (TokenRules(tuple((i, 1.0) for i in range(MAX_BIASES + 1))), {}, "logit_bias", "at most 1024"),
        (TokenRules(allowed=(-1,)), {}, "allowed_token_ids", "token -1 is not in"),
        (TokenRules(allowed=()), {}, "allowed_token_ids", "names no token"),
        (TokenRules(allowed=EOS), {}, "allowed_token_ids", "names no token"),
        (TokenRules(((5, NEVER),), (5,)), {}, "allowed_token_ids", "names no token"),
        (TokenRules(), {"min_new_tokens": 41}, "min_new_tokens", "is above max_new_tokens"),
    ],
)
def test_rules_that_cannot_be_kept_are_refused(
    model: DiffusionGemma, rules: TokenRules, params: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Engine(model).submit(Request(PROMPT, replace(PARAMS, **params), EOS, rules=rules))
    assert caught.value.param == field


def test_a_vocabulary_without_a_token_left_is_refused(model: DiffusionGemma) -> None:
    everything = tuple((token, NEVER) for token in range(model.config.vocab_size))
    with pytest.raises(UsageError, match="forbids every token"):
        Engine(model).submit(Request(PROMPT, PARAMS, EOS, rules=TokenRules(everything)))


def test_each_place_knows_whether_the_answer_may_end(model: DiffusionGemma) -> None:
    asked = Request(PROMPT, PARAMS, EOS)
    rules = RowRules.of(asked, 5, model.config, model.device)
    assert rules is not None and rules.bits is not None
    assert rules.places(0, 0, 8) == [0] * 5 + [-1] * 3
    assert rules.places(3, 0, 4) == [0, 0, -1, -1]
    assert rules.places(0, 2, 8) == [0] * 7 + [-1], "places of the prompt stand before the answer's first"
