"""The causal reader: what it says is that of a plain forward pass, and answers that it judges are its own."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from canvaslm.constrain import answers
from canvaslm.engine import Engine
from canvaslm.errors import UsageError
from canvaslm.model import PlainContext
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.ops import cpu, noise
from canvaslm.ops.predict import draws_of, sample
from canvaslm.types import Committed, Failed, Finished, Params, Request, TokenRead, TokenRules
from canvaslm.weights.gguf.load import load_quantised
from tests.constrain.words import EOS, TURN_END, vocabulary, written
from tests.tiny import tiny_model, write_tiny_gguf

END = (7, 9)
PROMPT = tuple(range(5, 18))


@pytest.fixture(scope="module")
def model() -> DiffusionGemma:
    return tiny_model(seed=3)


def run(model: Any, requests: list[Request], **options: Any) -> list[tuple[list[Committed], Finished]]:
    """The events of each, run together."""
    engine = Engine(model, **options)
    ids = [engine.submit(request) for request in requests]
    commits: dict[int, list[Committed]] = {i: [] for i in ids}
    ends: dict[int, Finished] = {}
    for _ in range(5000):
        if not engine.has_work:
            break
        for event in engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Committed):
                commits[event.request_id].append(event)
            elif isinstance(event, Finished):
                ends[event.request_id] = event
    return [(commits[i], ends[i]) for i in ids]


def tokens_of(commits: list[Committed]) -> list[int]:
    return [token for event in commits for token in event.tokens]


def reads_of(commits: list[Committed]) -> list[TokenRead]:
    return [read for event in commits for read in event.reads]


@torch.no_grad()
def causal_logits(model: DiffusionGemma, tokens: list[int]) -> torch.Tensor:
    """[L, V]: row i is what follows token i."""
    context = PlainContext(model.config)
    hidden = model.encode(torch.tensor([tokens]), torch.arange(len(tokens))[None], context, hidden=True)
    assert hidden is not None
    return model.logits(hidden[0])


def assert_reads(model: DiffusionGemma, tokens: list[int], first: int, reads: list[TokenRead | None]) -> None:
    """The reads of tokens[first:] are those of one plain pass."""
    logprobs = causal_logits(model, tokens).log_softmax(-1)
    assert len(reads) == len(tokens) - first
    for i, read in enumerate(reads, first):
        if i == 0:
            assert read is None
            continue
        assert read is not None
        row = logprobs[i - 1]
        assert read.logprob == pytest.approx(float(row[tokens[i]]), abs=1e-5, rel=1e-5)
        assert read.entropy == pytest.approx(float(-(row.exp() * row).sum()), abs=3e-5)
        assert read.rank == 1 + int((row > row[tokens[i]]).sum())


def asked(seed: int = 0, prompt: tuple[int, ...] = PROMPT, **changes: Any) -> Request:
    fields = {name: changes.pop(name) for name in list(changes) if name in Request.__dataclass_fields__}
    defaults: dict[str, Any] = {"max_new_tokens": 30, "max_denoising_steps": 6, "seed": seed}
    return Request(prompt, Params(**{**defaults, **changes}), END, **fields)


def greedy(model: DiffusionGemma, request: Request) -> list[int]:
    tokens = list(request.tokens)
    while len(tokens) - len(request.tokens) < request.params.max_new_tokens:
        tokens.append(int(causal_logits(model, tokens)[-1].argmax()))
        if tokens[-1] in request.eos_token_ids:
            break
    return tokens[len(request.tokens) :]


def drawn(model: DiffusionGemma, request: Request) -> list[int]:
    """Causal sampling with the engine's random numbers."""
    tokens, params = list(request.tokens), request.params
    for index in range(params.max_new_tokens):
        logits = causal_logits(model, tokens)[-1:] / params.temperature
        key = torch.tensor([noise.canvas_key(params.seed or 0, index)])
        (draw,) = draws_of(key, torch.tensor([-1]), 1, model.config.vocab_size)
        tokens.append(int(sample(logits, draw)))
        if tokens[-1] in request.eos_token_ids:
            break
    return tokens[len(request.tokens) :]


@pytest.mark.parametrize("first", [0, 1, 6])
def test_prompts_are_read_as_one_plain_pass_reads_them(model: DiffusionGemma, first: int) -> None:
    request = asked(prompt_logprobs=3, prompt_first=first, prompt_only=True)
    ((commits, end),) = run(model, [request])
    assert commits == []
    assert end.reason == "stop"
    assert end.usage.completion_tokens == 0
    assert_reads(model, list(PROMPT), first, list(end.prompt_reads))
    last = end.prompt_reads[-1]
    assert last is not None
    assert len(last.top) == 3


def test_a_prompt_is_read_the_same_however_it_is_cut(model: DiffusionGemma) -> None:
    prompt = tuple(int(t) for t in torch.randint(10, 60, (700,), generator=torch.Generator().manual_seed(1)))
    request = asked(prompt=prompt, prompt_logprobs=0, prompt_only=True)
    (whole,) = run(model, [request])
    assert_reads(model, list(prompt), 0, list(whole[1].prompt_reads))
    engine = Engine(model)
    for one in (asked(prompt=prompt[:530]), replace(request, prompt_first=600)):
        engine.submit(one)
        ends = []
        while engine.has_work:
            ends += [event for event in engine.step() if isinstance(event, Finished)]
    assert ends[-1].usage.cached_tokens > 500
    assert_reads(model, list(prompt), 600, list(ends[-1].prompt_reads))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    sizes = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 160, "moe_intermediate_size": 96}
    world = tiny_model(canvas_length=16, sliding_window=24, **sizes)
    path = write_tiny_gguf(world, tmp_path_factory.mktemp("packed") / "m.gguf", "Q4_K_M")
    return load_quantised(path).model


def test_native_reads_are_the_same_bits_however_a_prompt_is_cut(packed: Any) -> None:
    """Chunks, prefixes that were remembered, other rows: nothing changes a bit."""
    prompt = tuple(int(t) for t in torch.randint(10, 900, (700,), generator=torch.Generator().manual_seed(1)))
    request = asked(prompt=prompt, prompt_logprobs=2, prompt_only=True)
    whole = run(packed, [request])[0][1].prompt_reads
    crowd = run(packed, [asked(seed=1), request, asked(seed=2, prompt=prompt[:100], verify="greedy")])
    assert crowd[1][1].prompt_reads == whole
    engine = Engine(packed)
    for one in (asked(prompt=prompt[:603]), replace(request, prompt_first=601)):
        engine.submit(one)
        ends = []
        while engine.has_work:
            ends += [event for event in engine.step() if isinstance(event, Finished)]
    assert ends[-1].usage.cached_tokens == 600
    assert ends[-1].prompt_reads == whole[601:]


def test_native_causal_decoding_is_greedy_verification(packed: Any) -> None:
    """One token a pass, 1 to 16 a pass, alone and in a crowd: the same tokens, the same reads."""
    requests = [
        asked(seed=seed, prompt=PROMPT[seed:], reads=True, temperature=0, **how)
        for seed in range(3)
        for how in ({"decoding": "causal"}, {"verify": "greedy"})
    ]
    found = run(packed, requests)
    for causal, verified in zip(found[::2], found[1::2], strict=True):
        assert tokens_of(causal[0]) == tokens_of(verified[0])
        assert reads_of(causal[0]) == reads_of(verified[0])
    ((alone, _),) = run(packed, requests[:1])
    assert reads_of(alone) == reads_of(found[0][0])


def test_committed_tokens_are_read_with_their_commit(model: DiffusionGemma) -> None:
    plain, told = run(model, [asked(seed=4), asked(seed=4, reads=True)])
    assert tokens_of(plain[0]) == tokens_of(told[0])
    assert len(tokens_of(told[0])) > model.config.canvas_length
    assert_reads(model, [*PROMPT, *tokens_of(told[0])], len(PROMPT), list(reads_of(told[0])))
    assert told[1].reason == plain[1].reason
    assert told[1].canvases == plain[1].canvases


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
def test_causal_decoding_is_that_of_plain_loops(model: DiffusionGemma, temperature: float) -> None:
    requests = [asked(seed=seed, decoding="causal", temperature=temperature) for seed in range(4)]
    for request, (commits, end) in zip(requests, run(model, requests), strict=True):
        wanted = drawn(model, request) if temperature else greedy(model, request)
        assert tokens_of(commits) == wanted
        assert {report.stop for report in end.canvases} == {"causal"}
        assert sum(report.reads for report in end.canvases) == len(wanted)
        assert end.reason == ("stop" if wanted[-1] in END else "length")


def test_causal_decoding_tells_log_probabilities(model: DiffusionGemma) -> None:
    request = asked(decoding="causal", temperature=0.5, top_logprobs=2, reads=True, max_new_tokens=6)
    ((commits, _),) = run(model, [request])
    assert_reads(model, [*PROMPT, *tokens_of(commits)], len(PROMPT), list(reads_of(commits)))
    for event in commits:
        assert event.logprobs == tuple(read.logprob for read in event.reads)
        assert [len(top) for top in event.top_logprobs] == [2]


def test_watched_tokens_of_the_next_place(model: DiffusionGemma) -> None:
    request = asked(decoding="causal", max_new_tokens=2, temperature=0, watched={0: (3, 50), 1: (8,)})
    others = [asked(seed=seed, prompt=PROMPT[seed:]) for seed in range(3)]
    ((alone, _),), ((crowded, _), *_) = run(model, [request]), run(model, [request, *others])
    assert [event.watched for event in alone] == [event.watched for event in crowded]
    first = causal_logits(model, list(PROMPT)).log_softmax(-1)[-1]
    second = causal_logits(model, [*PROMPT, *alone[0].tokens]).log_softmax(-1)[-1]
    assert alone[0].watched[0] == pytest.approx([float(first[3]), float(first[50])], abs=1e-5)
    assert alone[1].watched[1] == pytest.approx([float(second[8])], abs=1e-5)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("rows", [1, 5])
def test_greedy_verification_is_causal_decoding(model: DiffusionGemma, steps: int, rows: int) -> None:
    requests = [
        asked(seed=seed, prompt=PROMPT[: 5 + seed], verify="greedy", verify_steps=steps)
        for seed in range(rows)
    ]
    for request, (commits, end) in zip(requests, run(model, requests), strict=True):
        assert tokens_of(commits) == greedy(model, request)
        assert all(report.reads for report in end.canvases)
        assert {report.stop for report in end.canvases[:-1]} <= {"refused", "max_steps", "converged"}
        assert any(report.stop == "refused" for report in end.canvases), "noise is refused"
        assert_reads(model, [*request.tokens, *tokens_of(commits)], len(request.tokens), [*reads_of(commits)])


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampled_verification_is_causal_sampling(model: DiffusionGemma, temperature: float) -> None:
    requests = [
        asked(seed=seed, verify="sample", verify_steps=1, temperature=temperature) for seed in range(4)
    ]
    for request, (commits, _) in zip(requests, run(model, requests), strict=True):
        assert tokens_of(commits) == drawn(model, request)


def test_sampled_verification_has_the_readers_distribution() -> None:
    """Chi-square over the first token of many seeds, on a small world."""
    world = tiny_model(seed=5, vocab_size=16)
    requests = [
        Request((3, 4), Params(max_new_tokens=1, max_denoising_steps=1, seed=seed, verify="sample"))
        for seed in range(600)
    ]
    counts = torch.zeros(16)
    for commits, _ in run(world, requests, max_rows=64):
        counts[tokens_of(commits)[0]] += 1
    expected = causal_logits(world, [3, 4])[-1].softmax(-1) * len(requests)
    common = expected >= 5
    seen = torch.cat((counts[common], counts[~common].sum()[None]))
    wanted = torch.cat((expected[common], expected[~common].sum()[None]))
    statistic = float(((seen - wanted) ** 2 / wanted.clamp(min=1e-9)).sum())
    assert statistic < 40, "the 0.1 % point of 15 degrees of freedom is 37.7; these seeds are fixed"


@pytest.mark.parametrize("verify", ["checked", "threshold", "greedy", "sample"])
def test_verified_answers_are_the_same_in_a_crowd(model: DiffusionGemma, verify: str) -> None:
    crowd = [asked(seed=seed, prompt=PROMPT[seed:], verify=verify, verify_threshold=0.5) for seed in range(4)]
    crowd += [asked(seed=9), asked(seed=10, decoding="causal")]
    together = run(model, crowd)
    for request, (commits, _) in zip(crowd, together, strict=True):
        ((alone, _),) = run(model, [request])
        assert [(e.tokens, e.reads) for e in alone] == [(e.tokens, e.reads) for e in commits]


def test_what_is_certain_of_nothing_refuses_nothing(model: DiffusionGemma) -> None:
    request = asked(seed=2)
    verified = replace(request, params=replace(request.params, verify="threshold", verify_threshold=0.0))
    (plain, checked) = run(model, [request, verified])
    assert tokens_of(plain[0]) == tokens_of(checked[0])
    assert [report.reads for report in checked[1].canvases] == [1] * len(checked[1].canvases)


@pytest.mark.parametrize("verify", ["checked", "greedy"])
def test_constraints_hold_under_verification(verify: str) -> None:
    words = vocabulary()
    world = tiny_model(vocab_size=words.size, canvas_length=16)
    pattern = "[a-z]{3,9}-[0-9]{2}(;[a-z]{3,9}-[0-9]{2}){0,3}"
    requests = [
        Request(
            (5, 9, 11), Params(max_new_tokens=48, max_denoising_steps=3, seed=seed, verify=verify),
            (EOS, TURN_END), constraint=answers.regex(pattern, words),
        )
        for seed in range(3)
    ]  # fmt: skip
    for commits, end in run(world, requests):
        assert end.reason == "stop"
        assert re.fullmatch(pattern, written(tokens_of(commits), words).decode())


def test_given_places_stand_under_verification(model: DiffusionGemma) -> None:
    given = {0: 33, 5: 44, 12: 55}
    ((commits, _),) = run(model, [asked(given=given, verify="greedy", max_new_tokens=16)])
    tokens = tokens_of(commits)
    assert {place: tokens[place] for place in given if place < len(tokens)} == {
        place: token for place, token in given.items() if place < len(tokens)
    }


def test_rules_hold_under_verification_and_in_causal_decoding(model: DiffusionGemma) -> None:
    rules = TokenRules(allowed=tuple(range(20, 40)))
    ways: list[dict[str, Any]] = [{"verify": "greedy"}, {"decoding": "causal"}]
    for changes in ways:
        ((commits, _),) = run(model, [asked(rules=rules, min_new_tokens=12, **changes)])
        tokens = tokens_of(commits)
        assert len(tokens) >= 12
        assert set(tokens) - set(END) <= set(rules.allowed or ())


@pytest.mark.parametrize("top_p", [0.0, 0.4, 0.95])
def test_top_p_keeps_the_likeliest(model: DiffusionGemma, top_p: float) -> None:
    requests = [asked(seed=seed, decoding="causal", top_p=top_p, max_new_tokens=5) for seed in range(6)]
    for request, (commits, _) in zip(requests, run(model, requests), strict=True):
        tokens = [*request.tokens, *tokens_of(commits)]
        probabilities = causal_logits(model, tokens).softmax(-1)
        for i in range(len(PROMPT), len(tokens)):
            row = probabilities[i - 1]
            assert float(row[row > row[tokens[i]]].sum()) <= top_p + 1e-5


def test_what_cannot_be_read_is_refused(model: DiffusionGemma) -> None:
    engine = Engine(model)
    with pytest.raises(UsageError, match=r"prompt_logprobs = 21 is not in 0 \.\. 20"):
        engine.submit(asked(prompt_logprobs=21))
    with pytest.raises(UsageError, match="causal writes token after token and knows no given"):
        engine.submit(asked(decoding="causal", given={0: 5}))


def test_what_is_committed_is_told_even_if_nobody_waits_for_its_reads(model: DiffusionGemma) -> None:
    engine = Engine(model)
    number = engine.submit(asked(reads=True))
    while not any(s.reader is not None and s.reader.unread for s in engine.scheduler.running):
        assert not [event for event in engine.step() if isinstance(event, Committed)]
    engine.cancel(number)
    told, end = engine.step()
    assert isinstance(told, Committed)
    assert isinstance(end, Finished)
    assert len(told.tokens) == end.usage.completion_tokens


def test_a_failing_verdict_fails_its_request_alone(
    model: DiffusionGemma, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model)
    judged, plain = engine.submit(asked(verify="greedy")), engine.submit(asked(seed=1))
    monkeypatch.setattr("canvaslm.engine.engine.verdict", lambda *_: 1 / 0)
    ends = []
    while engine.has_work:
        ends += [event for event in engine.step() if isinstance(event, Failed | Finished)]
    assert {type(event): event.request_id for event in ends} == {Failed: judged, Finished: plain}


def test_cancelling_and_limits(model: DiffusionGemma) -> None:
    engine = Engine(model)
    ways: list[dict[str, Any]] = [{"verify": "greedy"}, {"decoding": "causal"}, {"reads": True}]
    for changes in ways:
        number = engine.submit(asked(**changes))
        engine.step()
        engine.cancel(number)
        events = []
        while engine.has_work:
            events += engine.step()
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "cancelled"
    ((commits, end),) = run(model, [asked(decoding="causal", max_new_tokens=200)], max_context=40)
    assert end.reason in ("length", "stop")
    assert len(PROMPT) + len(tokens_of(commits)) <= 40
