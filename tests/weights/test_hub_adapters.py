"""Adapters by hub ids, against a hub made up on 127.0.0.1: only their files are fetched, and every refusal is
told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from canvaslm.errors import NotFound, UsageError
from canvaslm.weights.adapters.find import adapter_name, find_adapter
from canvaslm.weights.adapters.peft_write import write_peft
from canvaslm.weights.hub import HubId, parse_hub_id

from ..adapters import random_adapter
from ..tiny import tiny_model
from .fake_hub import SHA, Hub, ask_hub, serving_hub

FILES = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = tiny_model(0)
    folder = write_peft(random_adapter(model), tmp_path_factory.mktemp("hub") / "a", model.config)
    files = {name: (folder / name).read_bytes() for name in FILES}
    more = {"README.md": b"hi", "training_args.bin": b"\x80\x02.", "config.json": b"{}", "run.py": b"raise"}
    repositories = {
        "terse": {**files, **more, "checkpoint-1/adapter_config.json": b"{}"},
        "pickled": {FILES[0]: files[FILES[0]], "adapter_model.bin": b"\x80\x02."},
        "inner": {f"one/{name}": data for name, data in files.items()},
        "model": {"config.json": b"{}", "model.safetensors": files[FILES[1]]},
    }
    with serving_hub(repositories) as address:
        yield address


SCRIPT = """
import json, sys
from canvaslm.errors import CanvasError
from canvaslm.weights.adapters.find import find_adapter
answers = []
for source in sys.argv[1:]:
    try:
        found = find_adapter(source)
        answers.append([str(found), *sorted(path.name for path in found.path.iterdir())])
    except CanvasError as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


def ask(home: Path, *sources: str, **environment: str) -> list[list[str]]:
    return ask_hub(SCRIPT, home, *sources, **environment)[0]


def test_an_adapters_files_are_fetched_and_no_others(hub: str, tmp_path: Path) -> None:
    Hub.asked.clear()
    sources = ("org/terse", f"org/terse@{SHA}", "org/terse@v9")
    answers = ask(tmp_path, *sources, HF_ENDPOINT=hub, HF_TOKEN="hf_secret")
    assert answers[:2] == [["org/terse", *FILES], [f"org/terse@{SHA}", *FILES]]
    assert answers[2][0] == "NotFound" and "no revision 'v9'" in answers[2][1]
    fetched = {path.rpartition(f"{SHA}/")[2] for _, path, _ in Hub.asked if "/resolve/" in path}
    assert fetched == set(FILES)
    assert {token for _, _, token in Hub.asked} == {"Bearer hf_secret"}


def test_offline_there_is_what_was_fetched(hub: str, tmp_path: Path) -> None:
    ask(tmp_path, "org/terse", HF_ENDPOINT=hub)
    Hub.asked.clear()
    answers = ask(tmp_path, "org/terse", "org/other", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert answers[0] == ["org/terse", *FILES]
    assert answers[1][0] == "Offline" and "HF_HUB_OFFLINE is set" in answers[1][1]
    assert Hub.asked == []
    answers = ask(tmp_path, "org/terse", "org/other", HF_ENDPOINT="http://127.0.0.1:9")
    assert answers[0] == ["org/terse", *FILES]
    assert answers[1][0] == "Offline" and "check the connection" in answers[1][1]


def test_half_of_one_in_the_cache_is_not_taken_for_one(hub: str, tmp_path: Path) -> None:
    ask(tmp_path, "org/terse", HF_ENDPOINT=hub)
    (file,) = (tmp_path / "hub").rglob(FILES[1])
    file.unlink()
    ((kind, told),) = ask(tmp_path, "org/terse", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert kind == "Offline" and "is not (completely) in the cache" in told


def test_a_folder_of_that_name_wins(hub: str, tmp_path: Path) -> None:
    (tmp_path / "org" / "terse").mkdir(parents=True)
    Hub.asked.clear()
    assert ask(tmp_path, "org/terse", HF_ENDPOINT=hub) == [[str(tmp_path / "org" / "terse")]]
    assert Hub.asked == []


def test_what_is_no_adapter_is_told(hub: str, tmp_path: Path) -> None:
    sources = ("org/model", "org/pickled", "org/inner", "org/none", "org/gated", "org/broken", "org/private")
    answers = ask(tmp_path, *sources, HF_ENDPOINT=hub)
    words = (
        "org/model: is no adapter: there is no adapter_config.json in it",
        "there is no adapter_model.safetensors in it; it is a pickle (.bin), which canvaslm never loads",
        "there are adapters in its folders one: download one",
        "org/none: there is no such adapter at",
        "accept its terms at",
        "it answered 500",
        "(a private adapter needs HF_TOKEN)",
    )
    kinds = ["NotFound"] * 5 + ["Offline", "NotFound"]
    assert [kind for kind, _ in answers] == kinds
    for (_, told), word in zip(answers, words, strict=True):
        assert word in told


@pytest.mark.parametrize(
    "source", ["org/..", "org/a%2e", "org/a\\b", "org/a@..", "org/a.git", "org/a:Q4_K_M"]
)
def test_ids_that_are_refused_name_the_adapter(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_adapter(source)
    assert caught.value.param == "adapter" and "org/name:Q4" not in str(caught.value)


def test_paths_are_not_looked_for_on_a_hub() -> None:
    for source in (
        "/nothing/here",
        "./nothing",
        "nothing",
        "some/nothing.gguf",
        "a/b/c",
        Path("org/nothing"),
    ):
        with pytest.raises(NotFound, match="there is no such file or folder"):
            find_adapter(source)
    assert parse_hub_id("org/a@main", "adapter") == HubId("org/a", "main", what="adapter")


def test_names_of_those_that_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert adapter_name("org/terse@refs/pr/1") == adapter_name("org/terse") == "terse"
    assert adapter_name(".") == tmp_path.name and adapter_name("a/b/c/") == "c"
    (tmp_path / "org" / "v@1").mkdir(parents=True)
    assert adapter_name("org/v@1") == "v@1"


LOADING = """
import json, sys
import canvaslm
from canvaslm.errors import CanvasError
from tests.server.world import tiny_session
session = tiny_session()
session.adapters.load("one", "org/terse")
plain, one = (session.generate("Hello", seed=3, adapter=name).tokens for name in (None, "one"))
told = []
try:
    canvaslm.load(progress=lambda *_: told.append("read"), adapters={"x": "org/none"})
except CanvasError as error:
    told.append(type(error).__name__)
print(json.dumps([[str(plain != one)], told]))
"""


def test_a_session_loads_one_and_what_is_missing_is_told_before_the_model_is_read(
    hub: str, tmp_path: Path
) -> None:
    here = str(Path(__file__).parents[2])
    paths = {"PYTHONPATH": f"{here}/src:{here}"}
    differs, told = ask_hub(LOADING, tmp_path, HF_ENDPOINT=hub, **paths)[0]
    assert differs == ["True"] and told == ["NotFound"]


def test_the_program_takes_them(hub: str, tmp_path: Path) -> None:
    script = """
import contextlib, io, json, sys
from canvaslm.cli.main import main
answers = []
for flags in (["run", "-p", "Hello", "-q", "--adapter", "org/terse"],
              ["run", "-p", "Hello", "-q", "--adapter", "x=org/none"],
              ["adapter", "show", "org/terse"]):
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = main(flags)
    answers.append([str(code), told.getvalue()])
print(json.dumps(answers))
"""
    answers = ask_hub(script, tmp_path, HF_ENDPOINT=hub)[0]
    assert [code for code, _ in answers] == ["6", "3", "6"]  # it is of another model than the demo's
    assert "does not fit this model" in answers[0][1] and "no such adapter at" in answers[1][1]
