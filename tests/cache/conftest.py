"""Two tiny models: one in plain torch, one packed for the native kernels, both with a short sliding
window."""

from __future__ import annotations

import pytest

from canvaslm.model.diffusion_gemma import DiffusionGemma
from canvaslm.ops import cpu
from canvaslm.weights.gguf.load import load_quantised
from tests.tiny import tiny_model, write_tiny_gguf

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 160,
    "moe_intermediate_size": 96,
    "sliding_window": 24,
    "canvas_length": 16,
}


@pytest.fixture(scope="session")
def plain_model() -> DiffusionGemma:
    return tiny_model(canvas_length=16, sliding_window=24)


@pytest.fixture(scope="session")
def packed_model(tmp_path_factory: pytest.TempPathFactory) -> DiffusionGemma:
    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    path = write_tiny_gguf(tiny_model(seed=2, **SIZES), tmp_path_factory.mktemp("packed") / "m.gguf", "Q8_0")
    loaded = load_quantised(path).model
    assert isinstance(loaded, DiffusionGemma)
    return loaded


@pytest.fixture(params=["plain", "packed"])
def model(request: pytest.FixtureRequest) -> DiffusionGemma:
    return request.getfixturevalue(f"{request.param}_model")
