"""`canvaslm adapter push`, with a hub that only takes notes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest

from canvaslm.weights.adapters.base import base_config
from canvaslm.weights.adapters.peft_write import write_peft
from canvaslm.weights.resolve import resolve
from tests.weights.adapters.made import adapter_of

from .conftest import Program

FILES = ["adapter_config.json", "adapter_model.safetensors", "README.md"]


class NotingHub:
    """In the place of HfApi. `public`: the repository is there; `error`: what writing to it raises."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    public = False
    error: Exception | None = None

    def __init__(self, **options: Any) -> None:
        self.calls.append(("HfApi", options))

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.error is not None:
            raise self.error

    def repo_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=not self.public)

    def upload_folder(self, **options: Any) -> Any:
        self.calls.append(("upload_folder", options))
        return SimpleNamespace(commit_url="https://hub/org/terse/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[NotingHub]:
    made = type("Hub", (NotingHub,), {"calls": [], "public": False, "error": None})
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_own")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of an adapter for the demo model, with files beside it that are nobody's business."""
    config = base_config(resolve("demo"))
    made = write_peft(
        adapter_of(config, "q_proj"),  # type: ignore[arg-type]
        tmp_path / "adapter",
        config,
        base="demo",
    )
    (made / "optimizer.pt").write_bytes(b"secret")
    (made / "checkpoint-1").mkdir()
    (made / "checkpoint-1" / "adapter_config.json").write_text("{}")
    return made


def test_the_two_files_and_a_page_are_uploaded(program: Program, hub: type[NotingHub], folder: Path) -> None:
    shown = program("adapter", "push", str(folder), "org/terse")
    assert shown.code == 0, shown.err
    assert hub.calls[0] == ("HfApi", {"token": "hf_own", "library_name": "canvaslm"})
    assert hub.calls[1] == ("create_repo", {"repo_id": "org/terse", "private": None, "exist_ok": True})
    name, uploaded = hub.calls[2]
    assert name == "upload_folder" and uploaded["allow_patterns"] == FILES
    assert (uploaded["repo_id"], Path(uploaded["folder_path"])) == ("org/terse", folder)
    assert "org/terse: https://hub/org/terse/commit/1" in shown.out and "hf_own" not in shown.out + shown.err
    card = (folder / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- canvaslm\n"
    )
    assert "canvaslm run --adapter org/terse -p" in card and "base_model" not in card
    assert "its page does not name it" in shown.err


def test_the_page_names_a_base_that_is_on_a_hub(program: Program, hub: type[NotingHub], folder: Path) -> None:
    config = base_config(resolve("demo"))
    write_peft(
        adapter_of(config, "q_proj"),  # type: ignore[arg-type]
        folder,
        config,
        base="google/base-26B",
        force=True,
    )
    found = program("adapter", "push", str(folder), "org/terse", "--private", "--json").object
    assert found["base_model"] == "google/base-26B" and found["new_card"] and list(found["files"]) == FILES
    assert hub.calls[1][1]["private"] is True
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nbase_model: google/base-26B\n")
    assert "canvaslm run -m google/base-26B --adapter org/terse" in card


def test_a_page_that_is_there_stays(program: Program, hub: type[NotingHub], folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    found = program("adapter", "push", str(folder), "org/terse", "--json").object
    assert not found["new_card"] and (folder / "README.md").read_text() == "mine"
    assert hub.calls[-1][1]["allow_patterns"] == FILES


def test_a_dry_run_changes_nothing_and_needs_no_token(
    program: Program, hub: type[NotingHub], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    shown = program("adapter", "push", str(folder), "org/terse", "--dry-run")
    assert shown.code == 0 and hub.calls == [] and not (folder / "README.md").exists()
    assert [line.split()[0] for line in shown.out.splitlines()] == [*FILES, "org/terse:"]


def test_without_a_token_one_error_names_the_remedies(
    program: Program, hub: type[NotingHub], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    shown = program("adapter", "push", str(folder), "org/terse")
    assert shown.code == 2 and "hf auth login" in shown.err and "HF_TOKEN" in shown.err
    shown = program("adapter", "push", str(folder), "org/terse", "--token-env", "MY_TOKEN")
    assert shown.code == 2 and "--token-env MY_TOKEN: there is no such variable" in shown.err
    assert hub.calls == [] and not (folder / "README.md").exists()
    monkeypatch.setenv("MY_TOKEN", "hf_other")
    assert program("adapter", "push", str(folder), "org/terse", "--token-env", "MY_TOKEN").code == 0
    assert hub.calls[0][1]["token"] == "hf_other"


def test_what_cannot_be_pushed_is_told(
    program: Program, hub: type[NotingHub], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code, told in (
        ((str(tmp_path / "nothing"), "org/terse"), 3, "there is no such file or folder"),
        ((str(tmp_path / "empty"), "org/terse"), 3, "there is no adapter_model.safetensors"),
        ((str(folder),), 2, "needs OUT, org/name on a hub"),
        ((str(folder), "terse"), 2, "is not an adapter id"),
        ((str(folder), "org/terse@v1"), 2, "main branch"),
    ):
        shown = program("adapter", "push", *arguments)
        assert shown.code == code and told in shown.err, shown.err
    shown = program("adapter", "show", str(folder), "--private")
    assert shown.code == 2 and "--private is of push, not of show" in shown.err
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    assert program("adapter", "push", str(folder), "org/terse").code == 6
    assert hub.calls == []


def test_a_page_that_is_a_link_out_of_the_folder_is_not_followed(
    program: Program, hub: type[NotingHub], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    shown = program("adapter", "push", str(folder), "org/terse")
    assert shown.code == 6 and "leads out of" in shown.err and hub.calls == []


def test_a_public_repository_is_not_taken_for_a_private_one(
    program: Program, hub: type[NotingHub], folder: Path
) -> None:
    hub.public = True
    shown = program("adapter", "push", str(folder), "org/terse", "--private")
    assert shown.code == 2 and "is there already, and public" in shown.err
    assert [name for name, _ in hub.calls] == ["HfApi", "create_repo"]


def test_refusals_of_the_hub(
    program: Program, hub: type[NotingHub], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(Exception):
        """As the library's, with the hub's answer."""

        response = SimpleNamespace(status_code=403)

    hub.error = Refused()
    shown = program("adapter", "push", str(folder), "org/terse")
    assert shown.code == 2 and "refuses to write there (403)" in shown.err and "what is of org" in shown.err
    hub.error = ConnectionError("no route")
    shown = program("adapter", "push", str(folder), "org/terse")
    assert shown.code == 5 and "cannot be uploaded to" in shown.err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    shown = program("adapter", "push", str(folder), "org/terse")
    assert shown.code == 5 and "unset it to push" in shown.err
