from __future__ import annotations

from typing import Any

import pytest

from canvaslm.bench.arithmetic import PARTS, denoise_macs
from canvaslm.bench.commits import CommitTimes, measure_commits
from canvaslm.bench.machine import Ceilings
from canvaslm.bench.steps import Stepper, contexts_that_fit, measure_steps, step_report, warm_up
from canvaslm.engine import Engine
from canvaslm.engine.runner import Runner
from canvaslm.engine.scheduler import Row
from canvaslm.errors import EngineFailure, PromptTooLong
from tests.tiny import tiny_model

WORK = {
    "gmac", "gmac_per_second", "arithmetic_share", "weights_gb", "gb_per_second", "bandwidth_share"
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine(tiny_model())
    warm_up(engine)
    return engine


def test_canvases_never_converge_and_all_rows_step_together(engine: Engine) -> None:
    stepper = Stepper(engine, 20, rows=3, limit=40)
    stepper.start()
    for number in range(2, 41):
        stepper.step()
        rows = stepper.engine.scheduler.denoising()
        assert [row.progress.step for row in rows if row.canvas] == [number] * 3
        assert all(row.canvas and row.canvas.soft is not None for row in rows)


def test_a_long_context_is_encoded_in_chunks_before_the_first_step(engine: Engine) -> None:
    stepper = Stepper(engine, 1100, rows=1, limit=1)
    took = [stepper.step(), stepper.step(), stepper.step()]
    assert [bool(one.denoise) for one in took] == [False, False, True]
    assert all(one.encode > 0 for one in took)
    (row,) = stepper.engine.scheduler.running
    assert row.cache is not None
    assert row.cache.length == 1100


def test_steps_are_measured_plain_and_watched(engine: Engine) -> None:
    said: list[str] = []
    found = measure_steps(engine, 20, steps=3, tell=said.append)
    assert len(found.steps) == len(found.watched) == 3
    assert found.prefill > 0
    assert found.first > 0
    assert sum(found.parts.values()) == pytest.approx(found.watched[1])  # the median one
    assert list(found.watched) == sorted(found.watched)
    assert said == [
        "context 20: encoding",
        *(f"context 20: step {i} of 3" for i in (1, 2, 3)),
        "context 20: encoding, by part",
        "context 20: commits",
    ]
    assert found.commits is not None
    assert len(found.commits.plain) == len(found.commits.read) == 3
    plain = measure_steps(engine, 20, rows=2, steps=2, parts=False)
    assert (plain.parts, plain.watched) == ({}, ())


def test_a_report_has_the_fields_that_it_promises(engine: Engine) -> None:
    found = measure_steps(engine, 20, steps=2)
    report = step_report(engine.runner.model, found, Ceilings("float32", 10.0, 5.0))
    assert set(report) == {
        "context", "rows", "prefill", "first_step_ms", "step_ms", "steps_ms", "watched_ms", "parts", "commit",
        *WORK,
    }  # fmt: skip
    assert set(report["prefill"]) == {"seconds", "tokens_per_second", "parts", *WORK}
    assert list(report["parts"]) == list(PARTS)
    assert all(set(part) == {"ms", "share", *WORK} for part in report["parts"].values())
    assert sum(part["share"] for part in report["parts"].values()) == pytest.approx(1)
    assert sum(part["gmac"] for part in report["parts"].values()) == pytest.approx(report["gmac"])


def test_rates_and_shares_follow_from_times(engine: Engine) -> None:
    found = measure_steps(engine, 20, rows=2, steps=2)
    report: dict[str, Any] = step_report(engine.runner.model, found, Ceilings("float32", 10.0, 5.0))
    macs = 2 * sum(denoise_macs(engine.config, 20).values())
    assert report["gmac"] == pytest.approx(macs / 1e9)
    assert report["gmac_per_second"] == pytest.approx(macs / 1e6 / report["step_ms"])
    assert report["arithmetic_share"] == pytest.approx(report["gmac_per_second"] / 10)
    assert report["bandwidth_share"] == pytest.approx(report["gb_per_second"] / 5)
    assert report["prefill"]["tokens_per_second"] == pytest.approx(40 / found.prefill)
    bare = step_report(engine.runner.model, found)
    assert bare["arithmetic_share"] is None
    assert bare["bandwidth_share"] is None


def test_what_does_not_fit_is_refused(engine: Engine) -> None:
    room = engine.max_context - engine.config.canvas_length
    assert contexts_that_fit(engine, (5, room, room + 1)) == [5, room]
    with pytest.raises(PromptTooLong):
        Stepper(engine, room + 1, rows=1, limit=1)


def test_a_failing_row_fails_the_measurement(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = Stepper(engine, 20, rows=1, limit=3)
    stepper.start()

    def broken(sequences: Any) -> Any:
        raise ValueError("broken kernel")

    monkeypatch.setattr(stepper.engine.runner, "run", broken)
    with pytest.raises(EngineFailure, match="broken kernel"):
        stepper.step()


def test_commits_are_measured_behind_a_context_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over a canvas of tokens alone, in turn without and with the reader."""
    engine = Engine(tiny_model(), prefix_memory=0)
    counts: list[tuple[int, bool]] = []
    run = Runner.run

    def counted(self: Runner, rows: list[Row]) -> Any:
        counts.extend((row.count, row.read) for row in rows if row.count)
        return run(self, rows)

    monkeypatch.setattr(Runner, "run", counted)
    found = measure_commits(engine, 20, pairs=2)
    assert found is not None
    canvas = engine.config.canvas_length
    assert [read for _, read in counts] == [False, True] * 3
    assert counts[0][0] == 20 + canvas
    assert all(count <= canvas + 1 for count, _ in counts[1:])
    told = CommitTimes((1.0, 2.0, 3.0), (2.0, 3.0, 7.0)).to_dict(4.0)
    assert told == {
        "plain_ms": 2000, "read_ms": 3000, "reading_ms": 1000, "reading_share_of_step": 0.25
    }  # fmt: skip
