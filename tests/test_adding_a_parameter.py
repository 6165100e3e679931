"""A sampling parameter is added by a line in one table: help, checks, HTTP schema and docs follow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import canvaslm

PACKAGE = Path(canvaslm.__file__).parent
LINE = """\
    warmth: int = parameter(
        3, "How warm it may get, whatever {seed} is.",
        low=1, high=9, unit="degrees", presets={"fast": 2, "cosy": 8}, flags=("--glow",),
        llama_cpp=("--their-warmth",), stored=True, gguf="diffusion.eb_warmth",
    )


def _table()"""
PROGRAM = """
import contextlib, io, json, sys
from canvaslm.cli import docs
from canvaslm.cli.main import main
from canvaslm.cli.parameter_table import table
from canvaslm.diffusion import PRESETS, Params, check_params
from canvaslm.errors import UsageError
from canvaslm.evals.points import grid, read_sweep
from canvaslm.server.dialects.openai.schema import ChatRequest
from canvaslm.server.openapi import schema_of_server
from canvaslm.weights.generation import sampling_defaults
from canvaslm.weights.gguf.fields import GENERATION_KEYS

def said(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()

def refusal(call):
    try:
        call()
    except (UsageError, ValueError) as error:
        return str(error)

chat = {"messages": [{"role": "user", "content": "x"}]}
print(json.dumps({
    "help": said("run", "--help")[1],
    "flag": said("run", "-p", "x", "--glow", "10"),
    "show": json.loads(said("show", "--json")[1])["sampling"]["warmth"],
    "refused": refusal(lambda: check_params(Params(warmth=10))),
    "kind": refusal(lambda: check_params(Params(warmth="hot"))),
    "presets": PRESETS,
    "openapi": schema_of_server()["components"]["schemas"]["ChatRequest"]["properties"]["warmth"],
    "sampling": ChatRequest.model_validate({**chat, "warmth": 4}).params(),
    "http": refusal(lambda: ChatRequest.model_validate({**chat, "warmth": 10})),
    "stored": sampling_defaults({"warmth": 7}),
    "gguf": GENERATION_KEYS["diffusion.eb_warmth"][0],
    "sweep": [[point.label, point.params] for point in grid([read_sweep("glow=2,9")])],
    "cli.md": docs.page(), "http.md": docs.http_page(), "sampling.md": table(),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the package says in which nothing but the table has one line more."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, root / "canvaslm", ignore=shutil.ignore_patterns("__pycache__"))
    path = root / "canvaslm" / "diffusion" / "params.py"
    text = path.read_text(encoding="utf-8")
    assert text.count("\n\ndef _table()") == 1
    path.write_text(text.replace("\n\ndef _table()", LINE), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CANVASLM_")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=root,
        env={**environment, "PYTHONPATH": str(root), "CANVASLM_WARMTH": "5"},
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def test_the_command_line_has_it(found: dict[str, Any]) -> None:
    help = " ".join(found["help"].split())
    assert "--warmth, --glow N How warm it may get, whatever --seed is. [1<=x<=9]" in help
    assert "fast (max_denoising_steps 16, stability_threshold 0, warmth 2), " in help
    assert "cosy (warmth 8)" in help
    code, _, err = found["flag"]
    assert code == 2
    assert "--warmth" in err and "9" in err
    assert found["show"] == {"value": 5, "from": "environment CANVASLM_WARMTH"}


def test_values_are_checked(found: dict[str, Any]) -> None:
    assert found["refused"] == "warmth = 10 is out of range: 1 to 9"
    assert found["kind"] == "warmth should be a whole number, found 'hot'"
    assert found["presets"]["cosy"] == {"warmth": 8}
    assert found["presets"]["fast"] == {
        "max_denoising_steps": 16,
        "stability_threshold": 0,
        "warmth": 2,
    }


def test_the_server_has_it(found: dict[str, Any]) -> None:
    assert found["openapi"]["description"] == "How warm it may get, whatever seed is."
    assert {"type": "integer", "minimum": 1, "maximum": 9} in found["openapi"]["anyOf"]
    assert found["sampling"] == {"warmth": 4}
    assert "less than or equal to 9" in found["http"]


def test_evals_sweep_it(found: dict[str, Any]) -> None:
    assert found["sweep"] == [["glow=2", {"warmth": 2}], ["glow=9", {"warmth": 9}]]


def test_checkpoints_may_set_it(found: dict[str, Any]) -> None:
    chosen, origin = found["stored"]
    assert chosen == {"warmth": 7}
    assert origin["warmth"] == "generation_config.json"
    assert found["gguf"] == "warmth"


def test_the_pages_have_it(found: dict[str, Any]) -> None:
    assert (
        "| `--warmth`, `--glow` N | `CANVASLM_WARMTH` | How warm it may get, whatever --seed is. |"
        in found["cli.md"]
    )
    assert "| `--their-warmth` | `--warmth` |" in found["cli.md"]
    assert "| `warmth` | integer 1..9 | How warm it may get, whatever seed is. |" in found["http.md"]
    row = "| `warmth` | `3` | 1 to 9 degrees | How warm it may get, whatever `seed` is."
    assert f"{row} Presets: `fast` 2, `cosy` 8. |" in found["sampling.md"]
