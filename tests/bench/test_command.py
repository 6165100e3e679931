"""The command, with a tiny session in the place of the demo model."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from canvaslm.bench import machine
from canvaslm.bench.arithmetic import PARTS
from canvaslm.cli.bench_options import numbers
from canvaslm.cli.main import main
from canvaslm.errors import UsageError
from tests.server.world import tiny_session

from .fake_server import faking

Bench = Callable[..., tuple[int, str, str]]
HEAD = {"canvaslm_bench", "kind", "created", "canvaslm", "machine", "model", "settings", "results"}
RUN = {
    "concurrency", "requests", "failed", "errors", "wall_s", "requests_per_second", "tokens_per_second",
    "prompt_tokens", "cached_tokens", "completion_tokens", "canvases", "steps", "finish_reasons", "metrics",
}  # fmt: skip
METRICS = {
    "request_s", "queued_s", "first_draft_s", "first_commit_s", "between_commits_s", "steps_per_canvas",
    "ms_per_step", "tokens_per_second",
}  # fmt: skip


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Runs `canvaslm bench ARGS`: (exit code, standard output, standard error). Probes are short."""
    for name in [name for name in os.environ if name.startswith("CANVASLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("canvaslm.session.load", lambda source=None, **options: tiny_session())
    monkeypatch.setattr(machine.Probes.__init__, "__defaults__", ("cpu", 0.001, 1 << 20, None, None, None))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["bench", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def whole(out: str) -> Any:
    """The document on standard output, with no value that JSON does not have."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(out, parse_constant=refuse)


def test_the_document_of_a_load(bench: Bench, tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("One?\nTwo?\n")
    code, out, err = bench("--prompts", str(prompts), "-c", "1,2", "-n", "12", "--steps", "3", "--json", "-")
    content = whole(out)
    assert (code, err) == (0, "")
    assert set(content) == HEAD
    assert content["kind"] == "load"
    assert content["settings"]["params"] == {"max_new_tokens": 12, "max_denoising_steps": 3}
    assert set(content["results"]) == {"runs", "ready", "memory", "probes", "ceilings"}
    assert [run["concurrency"] for run in content["results"]["runs"]] == [1, 2]
    for run in content["results"]["runs"]:
        assert set(run) == RUN | {"work"}
        assert set(run["metrics"]) == METRICS
        assert run["metrics"]["steps_per_canvas"]["max"] <= 3
        assert run["work"]["arithmetic_share"] > 0
    assert content["results"]["ready"]["load_s"] >= 0
    assert content["results"]["ceilings"]["kind"] == "float32"


def test_the_table_of_a_load_and_a_file_beside_it(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    code, out, err = bench("-c", "2", "-n", "8", "--steps", "2", "--no-probes", "--json", str(file))
    assert code == 0
    for words in (
        "tiny: p50 / p95 / p99",
        "committed tokens/s",
        "first draft, ms",
        "steps a canvas",
        "ready:",
    ):
        assert words in out
    assert f"written to {file}" in err
    assert whole(file.read_text())["results"]["probes"] is None


def test_the_document_of_steps(bench: Bench) -> None:
    code, out, _ = bench("--step", "--context", "10,30", "--rows", "1,3", "--steps", "2", "--json", "-")
    content = whole(out)
    assert code == 0
    assert (set(content), content["kind"]) == (HEAD, "steps")
    results = content["results"]
    assert set(results) == {"contexts", "rows", "ready", "memory", "notes", "probes", "ceilings"}
    assert [run["context"] for run in results["contexts"]] == [10, 30]
    assert [(run["rows"], run["context"]) for run in results["rows"]] == [(1, 10), (3, 10)]
    for run in results["contexts"]:
        assert list(run["parts"]) == list(PARTS)
        watched = sum(part["ms"] for part in run["parts"].values())
        assert min(map(abs, (watched - ms for ms in run["watched_ms"]))) < 1e-6
    assert results["notes"] == []
    assert results["memory"]["weights"]["memory"] > 0
    assert not any(math.isnan(ms) for run in results["contexts"] for ms in run["steps_ms"])


def test_the_tables_of_steps(bench: Bench) -> None:
    code, out, _ = bench("--step", "--context", "10,30", "--rows", "1,3", "--steps", "1")
    assert code == 0
    for words in ("denoise step, context 10", "experts", "all parts, watched", "by context", "by rows",
        "of float32",
                  "measured ceilings", "memory: peak RSS", "prefill of 30 tokens"):  # fmt: skip
        assert words in out


def test_rows_alone_measure_no_parts(bench: Bench) -> None:
    code, out, _ = bench("--rows", "2", "--context", "10", "--steps", "1", "--no-probes", "--json", "-")
    results = whole(out)["results"]
    assert code == 0
    assert results["contexts"] == []
    assert [run["rows"] for run in results["rows"]] == [2]


def test_a_server_is_measured_without_loading_a_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("canvaslm.session.load", None)
    with faking(key="k") as fake:
        monkeypatch.setenv("CANVASLM_API_KEY", "k")
        code, out, _ = bench("--url", fake.url, "--ready", "-c", "2", "--temp", "0.5", "--json", "-")
    content = whole(out)
    assert code == 0
    assert (content["kind"], content["model"]["name"]) == ("server", "fake-1")
    assert set(content["results"]["runs"][0]) == RUN
    assert content["results"]["ready"]["server_s"] >= 0
    assert fake.bodies[-1]["temperature"] == 0.5
    assert "k" not in str(content["settings"].get("key", ""))


def test_a_key_comes_from_a_file(bench: Bench, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k1\nk2\n")
    with faking(key="k1") as fake:
        code, out, _ = bench("--url", fake.url, "--api-key-file", str(key), "-m", "other")
        assert code == 0
        assert "other: p50 / p95 / p99" in out
        assert {body["model"] for body in fake.bodies} == {"other"}
        assert bench("--url", fake.url)[0] == 2
        key.write_text("\n")
        assert bench("--url", fake.url, "--api-key-file", str(key))[0] == 2
        assert bench("--url", fake.url, "--api-key-file", str(tmp_path / "none"))[0] == 3
    assert bench("--url", fake.url)[0] == 3


def test_two_documents_are_compared(bench: Bench, tmp_path: Path) -> None:
    paths = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    for path in paths:
        assert bench("--rows", "1", "--context", "10", "--steps", "1", "--no-probes", "--json", path)[0] == 0
    code, out, _ = bench("--compare", *paths)
    assert code == 0
    assert "step at 1 rows, ms" in out
    assert bench("--compare", paths[0], str(tmp_path / "none.json"))[0] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--step", "--url", "http://x"], "--url and --step"),
        (["--compare", "a", "b", "--step"], "--step and --compare"),
        (["--rows", "1", "--url", "http://x"], "--rows measures in process"),
        (["--context", "5"], "--context goes with"),
        (["--ready"], "--ready needs --url"),
        (["--start", "x"], "--start needs --url"),
        (["-c", "0"], "--concurrency 0"),
        (["-c", "two"], "--concurrency two"),
        (["--step", "--context", "9999"], "contexts of at most"),
        (["--url", "ftp://x"], "--url ftp://x"),
    ],
)
def test_flags_that_do_not_go_together(bench: Bench, arguments: list[str], says: str) -> None:
    code, out, err = bench(*arguments)
    assert (code, out) == (2, "")
    assert says in err


def test_numbers() -> None:
    assert numbers("--rows", "1, 4,16") == (1, 4, 16)
    for text in ("", ",", "1;2", "-1", "1.5"):
        with pytest.raises(UsageError, match="--rows"):
            numbers("--rows", text)
