from __future__ import annotations

from canvaslm.bench.samples import Sample, summarise

GOOD = Sample(
    seconds=2.0, prompt_tokens=10, cached_tokens=4, completion_tokens=100, queued=0.5, first_draft=0.6,
    first_commit=1.0, gaps=(0.4, 0.6), steps=(4.0, 6.0, 5.0), ms_per_step=30.0, finish_reason="stop",
)  # fmt: skip


def test_rates_are_committed_tokens_over_wall_time() -> None:
    found = summarise([GOOD, GOOD], 4.0)
    assert (found["requests"], found["failed"], found["canvases"], found["steps"]) == (2, 0, 6, 30)
    assert found["tokens_per_second"] == 50.0
    assert found["requests_per_second"] == 0.5
    assert (found["prompt_tokens"], found["cached_tokens"]) == (20, 8)
    assert found["finish_reasons"] == {"stop": 2}
    assert found["metrics"]["between_commits_s"]["count"] == 4
    assert found["metrics"]["steps_per_canvas"]["p50"] == 5.0
    assert found["metrics"]["tokens_per_second"]["mean"] == 50.0


def test_what_failed_counts_as_failed_and_nowhere_else() -> None:
    failed = Sample(9.0, error="HTTP 500: broken")
    found = summarise([GOOD, failed, failed], 4.0)
    assert (found["requests"], found["failed"]) == (3, 2)
    assert found["errors"] == {"HTTP 500: broken": 2}
    assert found["tokens_per_second"] == 25.0
    assert found["metrics"]["request_s"]["max"] == 2.0


def test_what_is_not_told_is_not_made_up() -> None:
    found = summarise([GOOD, Sample(seconds=1.0, finish_reason="stop")], 4.0)
    assert found["tokens_per_second"] is None
    assert found["completion_tokens"] is None
    assert found["metrics"]["first_draft_s"]["count"] == 1
    silent = summarise([Sample(seconds=1.0)], 1.0)
    assert silent["metrics"]["first_draft_s"] is None
    assert summarise([], 0.0)["requests_per_second"] is None
