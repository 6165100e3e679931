from __future__ import annotations

import inspect
from typing import Any

import torch

from canvaslm.bench.engines import fresh
from canvaslm.engine import Engine
from canvaslm.types import Params, Request
from tests.tiny import tiny_model


def test_an_engine_to_measure_is_set_up_like_the_one_it_stands_for() -> None:
    """Every argument of an engine has another value than its default, and is there in the copy."""
    options: dict[str, Any] = {
        "max_context": 300, "prefix_memory": 12345, "kv_memory": 10**7, "deterministic": True,
        "kv_type": torch.bfloat16, "exact": True, "mixed": False,
    }  # fmt: skip
    assert {"model", "max_rows", *options} == set(inspect.signature(Engine).parameters)
    engine = Engine(tiny_model(), max_rows=2, **options)
    copy = fresh(engine, rows=5, prefix_cache=True)
    assert copy.runner.model is engine.runner.model
    assert {**vars(copy.runner)} == {**vars(engine.runner)}
    assert (copy.max_context, copy.prefixes.limit) == (300, 12345)
    assert (copy.scheduler.max_rows, copy.scheduler.kv_memory) == (5, 10**7)
    assert fresh(engine, rows=1).prefixes.limit == 0


def test_what_the_other_engine_does_is_left_alone() -> None:
    engine = Engine(tiny_model())
    engine.submit(Request((1, 2), Params(seed=0)))
    assert not fresh(engine, rows=1).has_work
    assert engine.has_work
