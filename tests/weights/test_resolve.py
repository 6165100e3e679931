"""What `-m` may name: folders, files, hub ids, the demo model; and what is refused on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canvaslm.errors import BadConfig, BadModelFile, CanvasError, NotFound, UsageError
from canvaslm.weights import resolve as module
from canvaslm.weights.resolve import INDEX, inside, resolve

from .files import entry, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    return made


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    def refuse(hub_id: object) -> None:
        raise NotFound(f"asked the hub for {hub_id}")

    monkeypatch.setattr(module, "download", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))


def weights(path: Path) -> Path:
    return write(path, {"a": entry()})


def index(folder: Path, **weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_a_folder_with_one_file(folder: Path) -> None:
    weights(folder / "model.safetensors")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    found = resolve(folder)
    assert (found.kind, found.folder, found.files) == ("folder", folder, (folder / "model.safetensors",))
    assert found.read_json("config.json") == {}
    assert found.read_json("generation_config.json") is None


def test_one_file_of_another_name(folder: Path) -> None:
    weights(folder / "weights.safetensors")
    assert resolve(str(folder)).files == (folder / "weights.safetensors",)


def test_shards_in_the_order_of_their_names(folder: Path) -> None:
    for name in ("b.safetensors", "a.safetensors"):
        weights(folder / name)
    index(folder, x="b.safetensors", y="a.safetensors", z="b.safetensors")
    found = resolve(folder)
    assert [path.name for path in found.files] == ["a.safetensors", "b.safetensors"]
    assert found.weight_map == {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}


def test_a_shard_is_missing(folder: Path) -> None:
    weights(folder / "a.safetensors")
    index(folder, x="a.safetensors", y="b.safetensors")
    with pytest.raises(BadModelFile, match=r"1 of 2 shards are not there \(b.safetensors"):
        resolve(folder)
    (folder / INDEX).unlink()
    (folder / "a.safetensors").rename(folder / "m-00001-of-00002.safetensors")
    with pytest.raises(BadModelFile, match="m-00002-of-00002"):
        resolve(folder)


def test_several_files_and_no_index(folder: Path) -> None:
    weights(folder / "a.safetensors")
    weights(folder / "b.safetensors")
    with pytest.raises(UsageError, match=r"name one of them: a.safetensors, b.safetensors"):
        resolve(folder)


def test_single_files(folder: Path) -> None:
    path = weights(folder / "any.safetensors")
    assert (resolve(path).kind, resolve(path).folder, resolve(path).files) == ("file", folder, (path,))
    (folder / "config.json").unlink()
    with pytest.raises(NotFound, match=r"no config.json beside it"):
        resolve(path)


def test_gguf(folder: Path) -> None:
    path = folder / "m.Q4_K_M.gguf"
    path.write_bytes(b"GGUF")
    (folder / "mmproj.gguf").write_bytes(b"GGUF")
    assert resolve(path).kind == "gguf"
    assert resolve(folder).files == (path,)
    (folder / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="several GGUF files"):
        resolve(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "x.ckpt", "optimizer.pkl"])
def test_pickles_are_refused_with_a_remedy(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80\x02.")
    for source in (folder, folder / name):
        with pytest.raises(BadModelFile, match=r"never loads pickle.*save_pretrained"):
            resolve(source)


def test_an_empty_folder_and_another_kind_of_file(folder: Path) -> None:
    with pytest.raises(NotFound, match="holds no model"):
        resolve(folder)
    with pytest.raises(BadModelFile, match="is not a model"):
        resolve(folder / "config.json")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd.safetensors",
        "../secret.safetensors",
        "sub/a.safetensors",
        "..\\secret.safetensors",
        "C:\\a.safetensors",
        "%2e%2e%2fsecret.safetensors",
        "a\x00.safetensors",
        "..",
        "",
        "model.bin",
    ],
)
def test_names_in_the_index_stay_in_the_folder(folder: Path, name: str) -> None:
    weights(folder.parent / "secret.safetensors")
    weights(folder / "a.safetensors")
    index(folder, x="a.safetensors", y=name)
    with pytest.raises(BadModelFile, match=r"not a plain file name|is not a safetensors file"):
        resolve(folder)


@pytest.mark.parametrize("data", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"x": 3}}])
def test_an_index_that_is_none(folder: Path, data: object) -> None:
    (folder / INDEX).write_text(json.dumps(data))
    with pytest.raises(BadModelFile):
        resolve(folder)


def test_links_that_lead_outside(folder: Path) -> None:
    secret = weights(folder.parent / "secret.safetensors")
    (folder / "model.safetensors").symlink_to(secret)
    with pytest.raises(BadModelFile, match="a link that leads out"):
        resolve(folder)
    (folder / "model.safetensors").unlink()
    weights(folder / "model.safetensors")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(BadModelFile, match="a link that leads out"):
        resolve(folder).read_json("config.json")


def test_links_of_the_hub_cache_are_fine(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    weights(repository / "blobs" / "1")
    (repository / "blobs" / "2").write_text('{"x": 1}')
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    (snapshot / "config.json").symlink_to("../../blobs/2")
    assert resolve(snapshot).read_json("config.json") == {"x": 1}
    (tmp_path / "link").symlink_to(snapshot)  # the user's own link to the folder
    assert resolve(tmp_path / "link").files == (tmp_path / "link" / "model.safetensors",)
    (snapshot / "generation_config.json").symlink_to("../../refs")
    with pytest.raises(BadModelFile, match="a link that leads out"):
        resolve(snapshot).read_json("generation_config.json")


def test_json_of_absurd_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights(folder / "model.safetensors")
    monkeypatch.setattr(module, "_MAX_JSON", 1)
    with pytest.raises(BadConfig, match="larger than"):
        resolve(folder).read_json("config.json")


def test_a_typing_error_is_answered_with_near_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights(folder / "model.safetensors")
    with pytest.raises(NotFound, match=r"no such file or folder \(did you mean .*/model\?\)"):
        resolve(folder.parent / "modle")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(NotFound, match=r"did you mean demo\?"):
        resolve("dem")


def test_near_ids_of_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models--acme--diffusion-tiny").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound, match="did you mean acme/diffusion-tiny"):
        resolve("acme-diffusion-tiny")


def test_a_hub_id_goes_to_the_hub_and_a_path_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for source in ("org/name", "org/name@v1.0"):
        with pytest.raises(NotFound, match=f"asked the hub for {source}"):
            resolve(source)
    for source in (
        "./org/name",
        "/org/name",
        "~/name",
        "a/b/c",
        "name",
        "org/m.gguf",
        "org/m.safetensors",
        "org/",
    ):
        with pytest.raises(NotFound, match="no such file or folder"):
            resolve(source)
    with pytest.raises(NotFound, match="no such file or folder"):
        resolve(Path("org/name"))  # a Path is a path


def test_a_local_folder_beats_a_hub_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    weights(folder / "model.safetensors")
    assert resolve(f"{folder.parent.name}/model").kind == "folder"


@pytest.mark.parametrize(
    "source",
    ["org/..", "../x@y", "org/na..me", "org/%2e%2e", "org\\x/name", "org/na me", "org/name@../../x",
     "org/name@", "org/name@a//b",
     "org/name@-x", "org/-x", "org/\x1b[2J", "org/a--b", "org/" + "a" * 200],
)  # fmt: skip
def test_traversal_in_ids(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, NotFound, BadModelFile)) as caught:
        resolve(source)
    assert "asked the hub" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_demo_model(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "package" / "model")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path / "package")
    assert resolve().folder == resolve("demo").folder == tmp_path / "package" / "model"
    shutil.rmtree(tmp_path / "package")
    with pytest.raises(NotFound, match="name a model with -m"):
        resolve(None)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40) | st.text(alphabet="./~%\\@a\x00", max_size=12))
def test_fuzz_sources(text: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        try:
            resolve(text)
        except CanvasError as error:
            assert str(error)  # noqa: PT017


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=20) | st.text(alphabet="./%\\a\x00", max_size=8))
def test_fuzz_names_stay_inside(name: str, tmp_path: Path) -> None:
    try:
        path = inside(tmp_path, name)
    except BadModelFile:
        return
    assert path.resolve().parent == tmp_path.resolve()
