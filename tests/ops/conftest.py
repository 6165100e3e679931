from __future__ import annotations

from collections.abc import Iterator

import pytest

from canvaslm.ops import cpu


@pytest.fixture(params=["plain", "avx2", "avx512", "neon"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Native kernels with each instruction set that this machine has."""
    before = cpu.isa()
    try:
        cpu.use_isa(request.param)
    except ValueError:
        pytest.skip(f"this machine has no {request.param}")
    yield request.param
    cpu.use_isa(before)
