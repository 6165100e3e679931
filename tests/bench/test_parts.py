from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from canvaslm.bench.arithmetic import PARTS, REST, is_packed, weight_bytes
from canvaslm.bench.parts import DENOISE, ENCODE, Instrument, PartClock
from canvaslm.bench.steps import Stepper
from canvaslm.engine import Driver, Engine
from canvaslm.engine import runner as runner_module
from canvaslm.ops import cpu
from canvaslm.types import Committed, Params, Request
from canvaslm.weights.gguf.load import load_quantised
from tests.tiny import tiny_model, write_tiny_gguf

HEAVY = [part for part in PARTS if part != REST]


def test_time_belongs_to_the_innermost_part() -> None:
    ticks: Iterator[float] = iter([0, 1, 3, 6, 10, 15, 21])
    clock = PartClock(lambda: next(ticks))  # starts at 0
    clock.enter("glue")  # at 1: 1 of rest
    with clock.part("experts"):  # from 3 to 6
        pass
    clock.leave()  # at 10
    found = clock.end()  # at 15
    assert {name: seconds for name, seconds in found[DENOISE].items() if seconds} == {
        "rest": 1 + 5, "glue": 2 + 4, "experts": 3
    }  # fmt: skip


def test_encoding_has_a_sum_of_its_own() -> None:
    ticks: Iterator[float] = iter([0, 1, 3, 7, 12])
    clock = PartClock(lambda: next(ticks))
    with clock.phase(ENCODE):
        clock.enter("glue")
    found = clock.end()
    assert found[DENOISE]["rest"] == 1
    assert (found[ENCODE]["rest"], found[ENCODE]["glue"]) == (2, 4)
    assert found[DENOISE]["glue"] == 5


def counted_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A clock that goes on by one whenever it is read, so that a busy machine changes nothing."""
    readings = itertools.count()
    for module in ("steps", "parts"):
        monkeypatch.setattr(f"canvaslm.bench.{module}.clock_of", lambda _: lambda: float(next(readings)))
    return readings


def test_parts_add_up_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = counted_clock(monkeypatch)
    stepper = Stepper(Engine(tiny_model()), 20, rows=1, limit=3)
    stepper.start()
    with Instrument(stepper.engine) as watch:
        begin = next(readings)
        took = stepper.step(watch)
        wall = next(readings) - begin
    parts = took.parts[DENOISE]
    assert set(parts) == set(PARTS)
    assert all(parts[part] > 0 for part in HEAVY)
    assert abs(took.denoise - sum(parts.values())) <= 2  # the readings at both ends
    assert sum(parts.values()) <= wall
    assert not watch.notes


def test_a_slow_part_shows_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = counted_clock(monkeypatch)
    model = tiny_model()
    stepper = Stepper(Engine(model), 20, rows=1, limit=3)
    stepper.start()
    plain = model.layers[1].experts.compute

    def slow(*tensors: torch.Tensor) -> torch.Tensor:
        for _ in range(1_000_000):
            next(readings)
        return plain(*tensors)

    monkeypatch.setattr(model.layers[1].experts, "compute", slow)
    with Instrument(stepper.engine) as watch:
        parts = stepper.step(watch).parts[DENOISE]
    assert parts["experts"] >= 1_000_000
    assert sum(seconds for part, seconds in parts.items() if part != "experts") < 1_000_000


def test_encoding_does_no_work_of_the_head() -> None:
    stepper = Stepper(Engine(tiny_model()), 20, rows=2, limit=1)
    with Instrument(stepper.engine) as watch:
        parts = stepper.start(watch).parts[ENCODE]
    assert parts["head_sampling"] == parts["self_conditioning"] == 0
    assert all(parts[part] > 0 for part in ("projections", "dense_mlp", "experts", "attention", "glue"))


def traces(engine: Engine) -> dict[str, Any]:
    model = engine.runner.model
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return {"hooks": sum(hooks), "model": set(vars(model)), "runner": dict(vars(engine.runner)),
            **{name: getattr(runner_module, name) for name in ("predict", "draws_of")}}  # fmt: skip


def test_nothing_is_left_behind_and_no_token_changes() -> None:
    engine = Engine(tiny_model())
    request = Request((1, 2, 3), Params(max_new_tokens=16, max_denoising_steps=6, seed=5))
    before = traces(engine)
    plain = [e.tokens for e in Driver(engine).events(request) if isinstance(e, Committed)]
    with Instrument(engine):
        assert traces(engine)["hooks"] > before["hooks"]
        watched = [e.tokens for e in Driver(engine).events(request) if isinstance(e, Committed)]
    assert watched == plain
    assert traces(engine) == before


def test_a_failure_inside_leaves_nothing_behind_either() -> None:
    engine = Engine(tiny_model())
    before = traces(engine)
    with pytest.raises(RuntimeError, match="stop"), Instrument(engine):
        raise RuntimeError("stop")
    assert traces(engine) == before


def test_what_is_not_found_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(runner_module, "draws_of")
    with Instrument(Engine(tiny_model())) as watch:
        assert watch.notes == ["canvaslm.engine.runner.draws_of is not there: its time is in rest"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A random model in Q8_0 on native kernels."""
    if not cpu.available():
        pytest.skip(f"no native kernels: {cpu.problem()}")
    sizes = {"vocab_size": 2048, "hidden_size": 256, "intermediate_size": 160, "moe_intermediate_size": 96}
    path = write_tiny_gguf(tiny_model(**sizes), tmp_path_factory.mktemp("packed") / "m.gguf", "Q8_0")
    return Engine(load_quantised(path).model)


def test_packed_models_have_the_same_parts(packed: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    counted_clock(monkeypatch)
    stepper = Stepper(packed, 20, rows=1, limit=4)
    stepper.start()
    from canvaslm.bench.parts import native_library

    kernels = dict(vars(native_library()))
    stepper.step()
    with Instrument(stepper.engine) as watch:
        took = stepper.step(watch)
    parts = took.parts[DENOISE]
    assert all(parts[part] > 0 for part in HEAVY)
    assert abs(took.denoise - sum(parts.values())) <= 2  # the readings at both ends
    assert vars(native_library()) == kernels


def test_packed_weights_are_counted(packed: Engine) -> None:
    model = packed.runner.model
    assert is_packed(model)
    assert not is_packed(tiny_model())
    read = weight_bytes(model, 10_000)
    values = 2048 * 256
    assert 1.0 * values < read["head_sampling"] < 1.2 * values  # a byte each and scales
    assert all(read[part] > 0 for part in ("projections", "dense_mlp", "experts", "self_conditioning"))


def test_int8_is_probed_with_the_kernels(packed: Engine) -> None:
    """Plain emulation of int8 would be far below fp32."""
    from canvaslm.bench.machine import probe_products

    found = probe_products(seconds=0.02)
    assert found.int8 is not None
    assert found.int8 > found.float32 / 2
