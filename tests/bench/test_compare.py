from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from canvaslm.bench.compare import compare, comparison
from canvaslm.bench.document import document, read, write
from canvaslm.bench.samples import Sample, summarise
from canvaslm.errors import NotFound, UsageError

SAMPLE = Sample(2.0, 10, 0, 100, 0.0, 0.5, 1.0, (0.25,), (4.0, 6.0), 40.0, "stop")


def run_document(seconds: float = 4.0) -> dict[str, Any]:
    results = {"runs": [{"concurrency": 4, **summarise([SAMPLE, SAMPLE], seconds)}]}
    return document(
        "server", machine={"processor": "X"}, model={"name": "m"}, settings={"repeats": 1}, results=results
    )


def step_document(ms: float, **changes: Any) -> dict[str, Any]:
    run = {
        "context": 128, "step_ms": ms, "first_step_ms": 2.0, "prefill": {"tokens_per_second": 10.0},
        "parts": {"experts": {"ms": ms / 2}, "rest": {"ms": 0.0}},
    }  # fmt: skip
    results = {
        "contexts": [run],
        "rows": [{"rows": 4, "step_ms": 3 * ms}],
        "ready": {"process_s": 5.0},
        **changes,
    }
    return document("steps", machine={"processor": "X"}, model={"name": "m"}, settings={}, results=results)


def drawn(a: dict[str, Any], b: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=120)
    for part in comparison(a, b, ("a.json", "b\x1b.json")):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_ratios_are_exact_and_know_which_way_is_better() -> None:
    rows, single = compare(run_document(4.0), run_document(5.0))
    found = {row.name: row for row in rows}
    rate = found["4 in flight: committed tokens/s"]
    assert (rate.a, rate.b, rate.ratio, rate.gain) == (50.0, 40.0, 0.8, 0.8)
    assert found["4 in flight: whole answer, ms, p50"].a == 2000.0
    assert found["4 in flight: whole answer, ms, p50"].gain == 1.0
    assert not single
    rows, _ = compare(step_document(100.0), step_document(80.0))
    found = {row.name: row for row in rows}
    assert found["context 128: step, ms"].ratio == pytest.approx(0.8)
    assert found["context 128: step, ms"].gain == pytest.approx(1.25)
    assert found["step at 4 rows, ms"].gain == pytest.approx(1.25)
    assert found["context 128: rest, ms"].ratio is None


def test_what_only_one_has_is_named_and_not_compared() -> None:
    a, b = step_document(1.0), step_document(1.0, rows=[])
    rows, single = compare(a, b)
    assert single == ["step at 4 rows, ms"]
    assert all(row.name != "step at 4 rows, ms" for row in rows)
    assert compare(b, a)[1] == single


def test_a_server_and_an_engine_can_be_compared() -> None:
    other = copy.deepcopy(run_document())
    other["kind"] = "load"
    del other["results"]["runs"][0]["metrics"]["queued_s"]
    rows, single = compare(other, run_document())
    assert len(rows) > 10
    assert single == ["4 in flight: in the queue, ms, p50", "4 in flight: in the queue, ms, p95"]


def test_the_table_says_it_in_words_and_what_else_differs() -> None:
    faster = step_document(50.0)
    faster["machine"]["processor"] = "Y"
    text = drawn(step_document(100.0), faster)
    assert "2.00 times better" in text
    assert "equal" in text
    assert "different machine processor: X | Y" in text
    assert "\x1b" not in text
    assert "2.00 times worse" in drawn(step_document(100.0), step_document(200.0))


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    content = run_document()
    write(tmp_path / "a.json", content)
    assert read(tmp_path / "a.json") == content
    with pytest.raises(UsageError, match="no such folder"):
        write(tmp_path / "missing" / "a.json", content)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "not written by"),
        ('{"kind": "load"}', "not written by"),
        ('{"canvaslm_bench": 2, "kind": "load", "results": {}}', "another version"),
        ('{"canvaslm_bench": 1, "kind": "other", "results": {}}', "another version"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=says):
        read(tmp_path / "x.json")
    with pytest.raises(NotFound):
        read(tmp_path / "y.json")
