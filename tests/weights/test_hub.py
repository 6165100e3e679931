"""Downloads, against a hub made up on 127.0.0.1: what is asked for, and what each refusal turns into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from canvaslm.errors import UsageError
from canvaslm.weights.hub import HubId, looks_like_hub_id, parse_hub_id

from .fake_hub import SHA, Hub, ask_hub, serving_hub
from .files import entry, write


def test_ids() -> None:
    assert parse_hub_id("org/name") == HubId("org/name")
    assert parse_hub_id("org/name.v2@refs/pr/1") == HubId("org/name.v2", "refs/pr/1")
    assert str(parse_hub_id("org/name@main")) == "org/name@main"
    assert parse_hub_id("org/name:Q4_K_M@main") == HubId("org/name", "main", "Q4_K_M")
    assert str(parse_hub_id("org/name:Q4_K_M@main")) == "org/name:Q4_K_M@main"
    assert not looks_like_hub_id("a/b/c")
    assert looks_like_hub_id("a/b@refs/pr/1")


@pytest.mark.parametrize(
    "source",
    [
        "org/..",
        "org/a%2e",
        "org/a\\b",
        "org/a@..",
        "org/a@b/../c",
        "org/a.git",
        "org/a ",
        "org/a:",
        "org/a:../b",
    ],
)
def test_ids_that_are_refused(source: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_hub_id(source)
    assert caught.value.param == "model"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a hub that serves org/tiny."""
    weights = write(tmp_path_factory.mktemp("hub") / "m", {"a": entry()}).read_bytes()
    files = {
        "config.json": b"{}",
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"hi",
        "pytorch_model.bin": b"\x80\x02.",
        "modeling.py": b"raise SystemExit",
        "onnx/config.json": b"{}",
        "adapter_model.safetensors": weights,
        "README.md": b"hi",
    }
    ggufs = {
        "README.md": b"hi",
        "mmproj-BF16.gguf": b"vision",
        "tiny-Q4_K_M.gguf": b"four",
        "tiny-UD-Q4_K_M.gguf": b"dynamic",
        "Q8_0/tiny-Q8_0-00001-of-00002.gguf": b"eight, first",
        "Q8_0/tiny-Q8_0-00002-of-00002.gguf": b"eight, second",
    }
    with serving_hub({"tiny": files, "ggufs": ggufs}) as address:
        yield address


SCRIPT = """
import json, sys
from canvaslm.errors import CanvasError
from canvaslm.weights.resolve import resolve
answers = []
for source in sys.argv[1:]:
    try:
        found = resolve(source)
        if found.kind == "gguf":
            answers.append([found.kind, found.files[0].name, found.files[0].read_text()])
        else:
            answers.append(sorted(path.name for path in found.folder.iterdir()))
    except CanvasError as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


def ask(home: Path, *sources: str, **environment: str) -> tuple[list[list[str]], str]:
    """(what each source resolved to, stderr) in a process with this cache."""
    return ask_hub(SCRIPT, home, *sources, **environment)


TINY = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]


def test_download_then_offline(hub: str, tmp_path: Path) -> None:
    Hub.asked.clear()
    answers, progress = ask(
        tmp_path, "org/tiny", f"org/tiny@{SHA}", "org/tiny@v9", HF_ENDPOINT=hub, HF_TOKEN="hf_secret"
    )
    assert answers[:2] == [TINY, TINY]
    assert answers[2][0] == "NotFound"
    assert "no revision 'v9'" in answers[2][1]
    assert "Fetching 4 files" in progress  # the progress bar, on stderr
    paths = {path for _, path, _ in Hub.asked}
    assert not [
        path for path in paths if path.endswith((".bin", ".py", ".md")) or "onnx" in path or "adapter" in path
    ]
    assert {token for _, _, token in Hub.asked} == {"Bearer hf_secret"}

    Hub.asked.clear()
    answers, _ = ask(tmp_path, "org/tiny", "org/other", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert answers[0] == TINY
    assert answers[1][0] == "Offline"
    assert "HF_HUB_OFFLINE is set" in answers[1][1]
    assert Hub.asked == []

    answers, _ = ask(tmp_path, "org/tiny", "org/other", HF_ENDPOINT="http://127.0.0.1:9")
    assert answers[0] == TINY  # the cache serves without a network
    assert answers[1][0] == "Offline"
    assert "check the connection" in answers[1][1]


def test_refusals(hub: str, tmp_path: Path) -> None:
    answers, _ = ask(tmp_path, "org/none", "org/gated", "org/broken", "org/private", HF_ENDPOINT=hub)
    assert [kind for kind, _ in answers] == ["NotFound", "NotFound", "Offline", "NotFound"]
    for (_, message), words in zip(
        answers, ("there is no such model", "accept its terms at", "it answered 500", "HF_TOKEN"), strict=True
    ):
        assert words in message
    assert f"{hub}/org/gated" in answers[1][1]


def test_a_gguf_file_by_its_type(hub: str, tmp_path: Path) -> None:
    Hub.asked.clear()
    Hub.agents.clear()
    sources = ("org/ggufs:q4_k_m", "org/ggufs:Q8_0", "org/ggufs:Q2_K", "org/ggufs", "org/tiny:Q4_K_M")
    answers, _ = ask(tmp_path, *sources, HF_ENDPOINT=hub)
    assert answers[0] == ["gguf", "tiny-Q4_K_M.gguf", "four"]
    assert answers[1] == ["gguf", "tiny-Q8_0-00001-of-00002.gguf", "eight, first"]
    assert (tmp_path / "hub").is_dir()
    assert list((tmp_path / "hub").rglob("*00002-of-00002.gguf"))
    assert answers[2][0] == "NotFound"
    assert "has no GGUF file of type Q2_K; there are Q4_K_M, Q8_0, UD-Q4_K_M" in answers[2][1]
    assert answers[3][0] == "UsageError"
    assert "name one by its type, as org/ggufs:Q4_K_M" in answers[3][1]
    assert answers[4][0] == "NotFound"
    assert not [agent for agent in Hub.agents if "torch/" in agent]  # what telemetry would tell
    fetched = {path.rpartition("/")[2] for _, path, _ in Hub.asked if "/org/ggufs/resolve/" in path}
    parts = {f"tiny-Q8_0-0000{i}-of-00002.gguf" for i in (1, 2)}
    assert fetched == {"tiny-Q4_K_M.gguf", *parts}  # nothing but what was asked for

    answers, _ = ask(tmp_path, "org/ggufs:Q4_K_M", "org/ggufs:Q2_K", HF_ENDPOINT=hub, HF_HUB_OFFLINE="1")
    assert answers[0] == ["gguf", "tiny-Q4_K_M.gguf", "four"]
    assert answers[1][0] in ("NotFound", "Offline")
