from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import canvaslm
from canvaslm.errors import BadModelFile, OutOfMemory, UsageError

from .conftest import Program
from .fake import FakeSession


def test_piped_standard_output_is_the_answer_and_one_newline(program: Program) -> None:
    shown = program("run", "-p", "hi", session=FakeSession(["Two words.\nTwo lines."], places=2))
    assert (shown.code, shown.out) == (0, "Two words.\nTwo lines.\n")


def test_a_newline_at_the_end_is_not_doubled(program: Program) -> None:
    assert program("run", "-p", "hi", session=FakeSession(["done\n"])).out == "done\n"


def test_thoughts_stay_off_standard_output(program: Program) -> None:
    session = FakeSession(["42"], thought="six times seven")
    assert program("run", "-p", "hi", "--thinking", session=session).out == "42\n"
    assert session.asked[0][1]["thinking"] is True


def test_into_a_pipe_control_characters_go_unchanged(program: Program) -> None:
    assert program("run", "-p", "hi", session=FakeSession(["\x1b[1m"])).out == "\x1b[1m\n"


def test_the_last_line_of_the_log_has_honest_figures(program: Program) -> None:
    shown = program("run", "-p", "hi", "--seed", "7", session=FakeSession(["a b c"], places=2, steps=3))
    form = r"4 tokens in [\d.]+ s: [\d.]+ tokens/s · [\d.]+ ms/step · steps per canvas 3\+3 · seed 7\n"
    assert re.fullmatch(form, shown.err)


def test_quiet_leaves_standard_error_empty(program: Program) -> None:
    assert program("run", "-p", "hi", "-q").err == ""


def test_an_old_name_of_a_sampler_works_and_is_told(program: Program) -> None:
    shown = program("run", "-p", "hi", "--sampler", "confidence_threshold")
    assert (shown.code, shown.err.splitlines()[0]) == (
        0,
        "note: the sampler confidence_threshold is called probability_threshold now; the old name works",
    )
    assert program("run", "-p", "hi", "-q", "--sampler", "confidence_threshold").err == ""
    assert "note" not in program("run", "-p", "hi", "--sampler", "probability_threshold").err


@pytest.mark.parametrize("seed", [[], ["--seed", "-1"]])
def test_a_random_seed_is_printed(program: Program, seed: list[str]) -> None:
    assert "seed 1234" in program("run", "-p", "hi", *seed).err


def test_json_has_everything(program: Program) -> None:
    session = FakeSession(["a b c"], thought="hm", places=2, steps=3)
    shown = program("run", "-p", "hi", "--json", "--steps", "5", "--seed", "7", session=session)
    found = shown.object
    assert shown.out.count("\n") == 1
    assert (found["text"], found["thinking"], found["tool_calls"]) == ("a b c", "hm", [])
    assert found["tokens"] == [1, 2, 3, 0]
    assert (found["steps"], found["stop_reasons"]) == ([3, 3], ["converged", "converged"])
    assert (found["seed"], found["finish_reason"], found["model"]) == (7, "stop", "fake")
    assert found["usage"]["completion_tokens"] == 4
    assert found["timings"]["tokens_per_second"] == pytest.approx(4 / found["timings"]["total"])
    assert found["params"]["max_denoising_steps"] == 5
    assert found["params"]["seed"] == 7


FLAGS: list[tuple[list[str], dict[str, Any]]] = [
    (["-n", "5"], {"max_new_tokens": 5}),
    (["--max-new-tokens", "5"], {"max_new_tokens": 5}),
    (["--steps", "6"], {"max_denoising_steps": 6}),
    (["--max-denoising-steps", "6"], {"max_denoising_steps": 6}),
    (["--seed", "3"], {"seed": 3}),
    (["--temp", "0"], {"temperature": 0.0}),
    (["--t-min", "0.1", "--t-max", "0.9"], {"t_min": 0.1, "t_max": 0.9}),
    (["--sampler", "ancestral"], {"sampler": "ancestral"}),
    (["--entropy-bound", "0.2"], {"entropy_bound": 0.2}),
    (["--accept-threshold", "0.8"], {"accept_threshold": 0.8}),
    (["--stability-threshold", "2"], {"stability_threshold": 2}),
    (["--confidence-threshold", "0.01"], {"confidence_threshold": 0.01}),
    (["--eos-aware-stopping"], {"eos_aware_stopping": True}),
    (["--top-k", "64", "--top-k-tail-correction"], {"top_k": 64, "top_k_tail_correction": True}),
    (["--top-k-start", "256", "--top-k-end", "16"], {"top_k_start": 256, "top_k_end": 16}),
    (["--no-top-k-tail-correction"], {"top_k_tail_correction": False}),
    (["--settle-steps", "3", "--settle-entropy", "0.1"], {"settle_steps": 3, "settle_entropy": 0.1}),
    (["--diffusion-eb-max-steps", "6"], {"max_denoising_steps": 6}),
    (["--diffusion-eb-t-max=0.9", "--diffusion-eb-t-min", "0.1"], {"t_min": 0.1, "t_max": 0.9}),
    (["--diffusion-eb-entropy-bound", "0.2"], {"entropy_bound": 0.2}),
    (["--diffusion-eb-confidence", "0.01"], {"confidence_threshold": 0.01}),
    (["--diffusion-kv-cache", "--n-predict", "5"], {"max_new_tokens": 5}),
    ([], {}),
]


@pytest.mark.parametrize(("flags", "options"), FLAGS)
def test_flags_reach_the_session_and_nothing_else_does(
    program: Program, flags: list[str], options: dict[str, Any]
) -> None:
    session = FakeSession()
    assert program("run", "-p", "hi", *flags, session=session).code == 0
    sent = session.asked[0][1]
    assert {k: v for k, v in sent.items() if k not in ("drafts", "system", "thinking", "raw")} == options


def test_flag_beats_environment(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANVASLM_MAX_DENOISING_STEPS", "9")
    monkeypatch.setenv("CANVASLM_SYSTEM", "be brief")
    session = FakeSession()
    program("run", "-p", "hi", session=session)
    program("run", "-p", "hi", "--steps", "4", session=session)
    assert [options["max_denoising_steps"] for _, options in session.asked] == [9, 4]
    assert session.asked[0][1]["system"] == "be brief"


def test_a_preset_flag_beats_what_it_rules_in_the_environment_only(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANVASLM_MAX_DENOISING_STEPS", "9")
    monkeypatch.setenv("CANVASLM_T_MAX", "0.7")
    session = FakeSession(name="x")
    session.merge = lambda preset, params: session.params  # type: ignore[method-assign]
    program("run", "-p", "hi", "--preset", "fast", session=session)
    program("run", "-p", "hi", "--preset", "fast", "--steps", "4", session=session)
    sent = [
        {k: v for k, v in o.items() if k in ("preset", "max_denoising_steps", "t_max")}
        for _, o in session.asked
    ]
    assert sent[0] == {"preset": "fast", "t_max": 0.7}
    assert sent[1] == {"preset": "fast", "t_max": 0.7, "max_denoising_steps": 4}


def test_an_unknown_preset_is_refused_before_loading(program: Program) -> None:
    session = FakeSession()
    shown = program("run", "-p", "hi", "--preset", "best", session=session)
    assert shown.code == 2
    assert "best" in shown.err
    assert session.asked == []


def test_loading_flags_reach_load(program: Program) -> None:
    session = FakeSession()
    program(
        "run",
        "-m",
        "a.gguf",
        "-p",
        "x",
        "--device",
        "cuda",
        "--dtype",
        "bfloat16",
        "-t",
        "3",
        session=session,
    )
    loaded: dict[str, Any] = session.loaded  # type: ignore[attr-defined]
    assert (loaded["source"], loaded["device"], loaded["dtype"], loaded["threads"]) == (
        "a.gguf",
        "cuda",
        "bfloat16",
        3,
    )


def test_dash_reads_the_prompt_from_standard_input(program: Program) -> None:
    session = FakeSession()
    program("run", "-p", "-", session=session, stdin="line one\nline two\n")
    assert session.asked[0][0] == "line one\nline two\n"


def test_a_prompt_file(program: Program, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("from a file", encoding="utf-8")
    session = FakeSession()
    program("run", "-f", str(tmp_path / "p.txt"), session=session)
    assert session.asked[0][0] == "from a file"


def test_raw_prompts_are_marked(program: Program) -> None:
    session = FakeSession()
    program("run", "-p", "x", "--raw", session=session)
    assert session.asked[0][1]["raw"] is True


@pytest.mark.parametrize(
    ("arguments", "session", "code", "message"),
    [
        (["run", "-m", "missing.gguf", "-p", "x"], None, 3, "missing.gguf"),
        (["run", "-m", "a.gguf"], None, 2, "no prompt"),
        (["run", "-p", "-"], None, 2, "empty"),
        (["run", "-p", "x", "-f", "y"], None, 2, "--file"),
        (["run", "-f", "/no/such/file"], None, 3, "/no/such/file"),
        (["run", "-p", "x" * 100], FakeSession(limit=10), 2, "too many tokens"),
        (["run", "-p", "x"], BadModelFile("a.gguf: broken header"), 6, "broken header"),
        (["run", "-p", "x"], OutOfMemory("needs 40 GB, 23 GB are free"), 4, "40 GB"),
        (["run", "-p", "x"], UsageError("t_min is above t_max", "t_min"), 2, "t_min"),
        (["run", "-p", "x", "--live"], None, 2, "--live"),
        (["run", "-p", "x", "--color", "pink"], None, 2, "pink"),
        (["run", "-p", "x"], FakeSession([""]), 1, "empty answer"),
        (["run", "-p", "x"], FakeSession([""], thought="hm"), 1, "still thinking"),
    ],
)
def test_failures_are_one_clean_line(
    program: Program, arguments: list[str], session: Any, code: int, message: str
) -> None:
    shown = program(*arguments, session=session)
    assert (shown.code, shown.out) == (code, "")
    last = shown.err.splitlines()[-1]
    assert last.startswith("canvaslm: error: ")
    assert message in last
    assert "Traceback" not in shown.err


def test_notes_of_the_loader_are_passed_on(program: Program) -> None:
    shown = program("run", "-p", "x", session=FakeSession(notes=("the vision tower is left out",)))
    assert shown.err.startswith("note: the vision tower is left out\n")


def test_without_a_prompt_the_demo_solves_a_puzzle_and_is_checked(program: Program) -> None:
    from canvaslm.demo.puzzle import random_puzzle

    puzzle = random_puzzle(5)
    rows = "\n".join(puzzle.solution[i : i + 4] for i in range(0, 16, 4))
    session = FakeSession([rows])
    shown = program("run", "--seed", "5", session=session)
    assert (shown.code, shown.out) == (0, rows + "\n")
    assert session.asked[0][0] == puzzle.prompt
    assert puzzle.pretty() in shown.err
    assert "Solved" in shown.err.splitlines()[-2]


def test_a_wrong_solution_is_a_failure(program: Program) -> None:
    shown = program("run", session=FakeSession(["1 2 3 4"]))
    assert shown.code == 1
    assert "Solved" not in shown.err
    assert shown.err.splitlines()[-2].startswith("Not solved")


def test_the_puzzle_in_json(program: Program) -> None:
    shown = program("run", "--json", session=FakeSession(["1 2 3 4"]))
    assert shown.object["puzzle"]["solved"] is False
    assert shown.code == 1


def test_the_stream_is_closed(program: Program) -> None:
    session = FakeSession()
    program("run", "-p", "x", session=session)
    assert session.closed == 1


def test_a_prompt_from_a_locale_that_is_not_utf8(program: Program) -> None:
    session = FakeSession()
    program("run", "-p", "caf\udcc3\udca9 日本", session=session)
    assert session.asked[0][0] == "café 日本"


def test_what_the_answer_has_to_be_reaches_the_session(program: Program, tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "list.gbnf"
    schema.write_text('{"type": "integer"}')
    grammar.write_text('root ::= "a"\n')
    cases: list[tuple[list[str], dict[str, Any]]] = [
        (["--schema", str(schema)], {"schema": {"type": "integer"}}),
        (["--regex", "[a-z]+"], {"regex": "[a-z]+"}),
        (["--choice", "yes", "--choice", "no"], {"choice": ["yes", "no"]}),
        (["--grammar", str(grammar)], {"grammar": 'root ::= "a"\n'}),
    ]
    for flags, wanted in cases:
        session = FakeSession(["1"])
        assert program("run", "-p", "hi", *flags, session=session).code == 0
        assert session.asked[0][1].items() >= wanted.items()


def test_a_schema_that_is_no_json_is_named(program: Program, tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    shown = program("run", "-p", "hi", "--schema", str(broken))
    assert (shown.code, shown.out) == (2, "")
    assert f"{broken} is no JSON: Expecting property name" in shown.err
    assert program("run", "-p", "hi", "--schema", str(tmp_path / "none")).code == 3
    assert program("run", "--regex", "a").code == 2, "a wish without a prompt is not for the Sudoku"


def test_the_best_of_several_answers_is_shown(program: Program) -> None:
    """With seed 1 alone the demo model is wrong; its causal reader knows."""
    with canvaslm.load() as session:
        asked = ("run", "-p", "Sort: 46 40 25", "--seed", "1")
        assert program(*asked, session=session).out != "25 40 46\n"
        best = program(*asked, "--best-of", "4", session=session)
        assert best.out == "25 40 46\n"
        assert re.search(r"^4\. -\d\.\d\d nats a token, seed 1$", best.err, re.MULTILINE)
        retried = program(*asked, "--retry-doubtful", "--json", session=session)
        assert json.loads(retried.out)["notes"][0]["kind"] == "doubt_retried"
    refused = program("run", "-p", "hi", "--best-of", "0", session=FakeSession([""]))
    assert refused.code == 2
