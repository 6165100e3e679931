"""generation_config.json: what it sets, where each parameter comes from, what is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from canvaslm.errors import BadConfig
from canvaslm.types import Params
from canvaslm.weights.generation import sampling_defaults, stop_tokens

FULL = {
    "max_new_tokens": 512,
    "max_denoising_steps": 16,
    "sampler_config": {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.2},
    "t_min": 0.5,
    "t_max": 1,
    "stability_threshold": 2,
    "confidence_threshold": 0.01,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
    "transformers_version": "5.23.0",
}


def test_a_full_file_sets_everything_it_names() -> None:
    chosen, origin = sampling_defaults(FULL)
    params = Params(**chosen)
    assert (params.max_new_tokens, params.max_denoising_steps, params.entropy_bound) == (512, 16, 0.2)
    assert (params.t_min, params.t_max, params.stability_threshold, params.confidence_threshold) == (
        0.5,
        1.0,
        2,
        0.01,
    )
    assert isinstance(params.t_max, float)
    assert {name for name, source in origin.items() if source == "default"} == {
        "accept_threshold",
        "temperature",
        "seed",
        "eos_aware_stopping",
        "settle_steps",
        "settle_entropy",
        "top_k",
        "top_k_start",
        "top_k_end",
        "top_k_tail_correction",
        "canvas_length",
        "min_new_tokens",
        "thinking_budget",
        "retry_empty",
        "stop_on_repetition",
        "repair",
        "mask",
        "decoding",
        "top_p",
        "verify",
        "verify_steps",
        "verify_threshold",
        "first_places",
        "keep_steps",
        "keep_entropy",
    }


@pytest.mark.parametrize(
    "generation", [{}, {"t_min": None, "sampler_config": None}, {"temperature": 1.7, "top_k": 64}]
)
def test_null_and_unrelated_fields_change_nothing(generation: dict[str, Any]) -> None:
    chosen, origin = sampling_defaults(generation)
    assert chosen == {}
    assert origin == {field.name: "default" for field in fields(Params)}


def test_what_transformers_writes(tmp_path: Path) -> None:
    from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
        DiffusionGemmaGenerationConfig,
        EntropyBoundSamplerConfig,
    )

    theirs = DiffusionGemmaGenerationConfig(
        max_denoising_steps=7,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.3),
        t_min=0.1,
        t_max=0.2,
    )
    theirs.save_pretrained(tmp_path)
    chosen, _ = sampling_defaults(json.loads((tmp_path / "generation_config.json").read_text()))
    assert chosen == {
        "max_denoising_steps": 7,
        "sampler": "entropy_bound",
        "entropy_bound": 0.3,
        "t_min": 0.1,
        "t_max": 0.2,
    }


@pytest.mark.parametrize(
    ("generation", "named"),
    [
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_denoising_steps": 4.5}, "max_denoising_steps"),
        ({"t_min": float("nan")}, "t_min"),
        ({"t_max": 10**400}, "t_max"),
        ({"t_max": [1]}, "t_max"),
        ({"sampler_config": 3}, "sampler_config"),
        ({"sampler_config": {"_cls_name": "os.system"}}, "sampler_config._cls_name is 'os.system'"),
        ({"sampler_config": {"_cls_name": ["x"]}}, "_cls_name"),
        ({"sampler_config": {"entropy_bound": "x"}}, "sampler_config.entropy_bound"),
        ({"sampler_config": {"beta": 1}}, "sampler_config.beta"),
    ],
)
def test_refused(generation: dict[str, Any], named: str) -> None:
    with pytest.raises(BadConfig, match=r"generation_config.json") as caught:
        sampling_defaults(generation)
    assert named in str(caught.value)


def test_stop_tokens() -> None:
    assert stop_tokens(FULL, (7,)) == (1, 106)
    assert stop_tokens({"eos_token_id": 5}, (7,)) == (5,)
    assert stop_tokens({"eos_token_id": [5, 5]}, (7,)) == (5,)
    assert stop_tokens({}, (7,)) == (7,)
    with pytest.raises(BadConfig, match="eos_token_id"):
        stop_tokens({"eos_token_id": ["</s>"]}, ())
