"""Whole generations against transformers' `generate`, with its two random calls replaced by our draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from canvaslm.engine import Engine
from canvaslm.engine.reference import generate
from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.ops import noise
from canvaslm.ops.predict import draw, sample
from canvaslm.types import Committed, Finished, Params, Request
from canvaslm.weights.loading.load import load_model
from tests.tiny import hf_model, save_hf, tiny_config

pytest.importorskip("transformers")

from transformers.models.diffusion_gemma import generation_diffusion_gemma as reference

PAD, NEVER = 0, 63
PROMPTS = [list(range(5, 18)), [9, 8, 7, 33, 12], list(range(40, 60))]


class Draws:
    """Stands in for `torch.multinomial` and `torch.randint`: the same numbers as our counter-based noise.

    The reference draws a start canvas, then per step a sample and a canvas of fresh noise. A canvas asked for
    twice in a row without a sample between is the start of the next canvas.
    """

    def __init__(self, seeds: list[int], places: int, vocab: int) -> None:
        self.seeds, self.places, self.vocab = seeds, places, vocab
        self.canvas, self.step, self.sampled = -1, 0, False

    def canvas_tokens(self, *_: Any, **__: Any) -> torch.Tensor:
        if self.sampled:
            step, purpose = self.step, noise.RENOISE
            self.step, self.sampled = self.step + 1, False
        else:
            self.canvas, self.step = self.canvas + 1, 0
            step, purpose = 0, noise.START
        keys = [noise.stream(seed, self.canvas, step, purpose) for seed in self.seeds]
        return torch.stack([noise.tokens(key, self.places, self.vocab) for key in keys])

    def multinomial(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        assert num_samples == 1
        self.sampled = True
        rows = probabilities.view(len(self.seeds), self.places, self.vocab).log()
        draws = [draw(s, self.canvas, self.step, self.places, self.vocab, "cpu") for s in self.seeds]
        tokens = [sample(row, one) for row, one in zip(rows, draws, strict=True)]
        return torch.stack(tokens).view(-1, 1)


@contextmanager
def our_draws(draws: Draws) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", draws.multinomial)
        patch.setattr(reference.EntropyBoundSampler, "initialize_canvas", draws.canvas_tokens)
        yield


def run_reference(
    model: Any, prompts: list[list[int]], params: list[Params], eos: tuple[int, ...]
) -> list[tuple[list[int], int]]:
    """(tokens up to the first EOS, denoise steps) of each row of one padded batch."""
    width, first = max(map(len, prompts)), params[0]
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    config = model.config
    draws = Draws([p.seed or 0 for p in params], config.canvas_length, config.text_config.vocab_size)
    with our_draws(draws):
        out = model.generate(
            ids,
            attention_mask=real,
            max_new_tokens=first.max_new_tokens,
            max_denoising_steps=first.max_denoising_steps,
            sampler_config=reference.EntropyBoundSamplerConfig(entropy_bound=first.entropy_bound),
            t_min=first.t_min,
            t_max=first.t_max,
            stability_threshold=first.stability_threshold,
            confidence_threshold=first.confidence_threshold,
            eos_token_id=list(eos),
            pad_token_id=PAD,
        )
    results = []
    for row, rate in zip(out.sequences[:, width:], out.tokens_per_forward, strict=True):
        steps = round(int((row != PAD).sum()) / float(rate))
        tokens = row.tolist()
        ends = [i for i, token in enumerate(tokens) if token in eos]
        results.append((tokens[: ends[0] + 1] if ends else tokens, steps))
    return results


def run_engine(
    engine: Engine, prompts: list[list[int]], params: list[Params], eos: tuple[int, ...]
) -> list[tuple[list[int], int]]:
    ids = [engine.submit(Request(tuple(p), q, eos)) for p, q in zip(prompts, params, strict=True)]
    tokens: dict[int, list[int]] = {i: [] for i in ids}
    steps: dict[int, int] = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Committed):
                tokens[event.request_id] += event.tokens
            elif isinstance(event, Finished):
                steps[event.request_id] = sum(report.steps for report in event.canvases)
    return [(tokens[i], steps[i]) for i in ids]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, DiffusionGemma]:
    theirs = hf_model(tiny_config(), seed=3, scale=1.0)
    ours = load_model(save_hf(theirs, tmp_path_factory.mktemp("tiny")), dtype=torch.float32).model
    assert isinstance(ours, DiffusionGemma)
    return theirs, ours


def eos_never(tokens: list[int]) -> int:
    return next(t for t in range(63, 0, -1) if t not in tokens)


def eos_in_first(tokens: list[int]) -> int:
    return tokens[3] or tokens[4]


def eos_in_second(tokens: list[int]) -> int:
    return next(t for t in tokens[8:16] if t not in tokens[:8] and t != PAD)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("steps", [1, 4, 48])
@pytest.mark.parametrize("stability", [0, 1, 2])
@pytest.mark.parametrize("pick_eos", [eos_never, eos_in_first, eos_in_second])
def test_generations_are_identical(
    models: tuple[Any, DiffusionGemma],
    rows: int,
    steps: int,
    stability: int,
    pick_eos: Callable[[list[int]], int],
) -> None:
    theirs, ours = models
    base = Params(
        max_new_tokens=24, max_denoising_steps=steps, stability_threshold=stability, confidence_threshold=0.5
    )
    params = [replace(base, seed=100 + i) for i in range(rows)]
    free, _ = generate(ours, PROMPTS[0], params[0])
    eos = (pick_eos(free),)
    expected = run_reference(theirs, PROMPTS[:rows], params, eos)
    assert run_engine(Engine(ours), PROMPTS[:rows], params, eos) == expected
    for prompt, one, (tokens, count) in zip(PROMPTS, params, expected, strict=False):
        plain, reports = generate(ours, prompt, one, eos)
        assert (plain, sum(r.steps for r in reports)) == (tokens, count)


def test_the_three_kinds_of_ending_really_occur(models: tuple[Any, DiffusionGemma]) -> None:
    params = Params(max_new_tokens=24, max_denoising_steps=4, confidence_threshold=0.5, seed=100)
    free, _ = generate(models[1], PROMPTS[0], params)
    lengths = [
        len(generate(models[1], PROMPTS[0], params, (pick(free),))[0])
        for pick in (eos_in_first, eos_in_second)
    ]
    assert lengths[0] <= 8 < lengths[1] <= 16
    assert len(free) == 24


def test_some_canvases_converge_early(models: tuple[Any, DiffusionGemma]) -> None:
    params = Params(max_new_tokens=24, max_denoising_steps=48, confidence_threshold=0.5, seed=100)
    _, reports = generate(models[1], PROMPTS[0], params)
    assert any(r.stop == "converged" and r.steps < 48 for r in reports)
