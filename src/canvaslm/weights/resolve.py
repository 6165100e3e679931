"""From what the user typed after `-m` to the files of a model: a folder, a file, a hub id, or the demo model.

No file outside the model's folder is ever opened on the word of a file inside it: names in the
shard index are plain names, and links may lead only into the hub cache's own store of blobs.
Finding a model imports no torch.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import BadConfig, BadModelFile, NotFound, UsageError
from .hub import cached_ids, download, gguf_stem, looks_like_hub_id, parse_hub_id
from .safetensors_.header import shown

if TYPE_CHECKING:
    from ..model.config import ModelConfig

DEMO = "demo"
INDEX = "model.safetensors.index.json"
_MAX_JSON = 64 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLE_REMEDY = (
    "canvaslm never loads pickle, since that runs code; ask its author for safetensors, "
    "or convert it where you trust it "
    "(transformers: model.save_pretrained(folder))"
)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A model's files. `folder` holds config.json and the tokenizer; `weight_map` is the
    shard index, if there is one."""

    kind: Literal["folder", "file", "gguf"]
    source: str
    folder: Path
    files: tuple[Path, ...]
    weight_map: dict[str, str] = field(default_factory=dict)

    def path(self, name: str) -> Path | None:
        """The path of a file in the folder, None if it is not there. Raises
        BadModelFile if it leads outside."""
        path = self.folder / name
        return inside(self.folder, name) if os.path.lexists(path) else None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file of the folder, None if the file is not there.
        Raises BadConfig naming it."""
        path = self.path(name)
        return None if path is None else read_json(path)


def resolve(source: str | Path | None = None) -> Checkpoint:
    """Finds a model, downloading it if `source` is a hub id; None (or "demo") is the demo model.

    Raises NotFound, Offline, UsageError (an id or a folder that could mean several things) or BadModelFile.
    """
    if source is None or (source == DEMO and not os.path.lexists(DEMO)):
        return _demo()
    text = os.fspath(source)
    path = _existing(text)
    if path is not None:
        return _from_folder(text, path) if path.is_dir() else _from_file(text, path)
    if isinstance(source, str) and looks_like_hub_id(text) and not text.endswith((".gguf", ".safetensors")):
        found = download(parse_hub_id(text))
        return _from_folder(text, found) if found.is_dir() else _from_hub_file(text, found)
    raise NotFound(_not_there(text))


def inside(folder: Path, name: str) -> Path:
    """`folder / name` for a name that a file in the folder gave. Raises BadModelFile
    unless it stays in there."""
    escaped = "%" in name or "\\" in name or "\0" in name
    if escaped or name != os.path.basename(name) or name in ("", ".", "..") or Path(name).is_absolute():
        raise BadModelFile(
            f"{folder}: {shown(name)} is not a plain file name; the model's files name each other only so"
        )
    path = folder / name
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in _roots(folder)):
        raise BadModelFile(
            f"{path}: is a link that leads out of the model's folder; put the file itself there, "
            "or name the folder it is in"
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BadConfig naming the file and the line."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise BadConfig(f"{path}: is larger than {_MAX_JSON} bytes")
        data = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read ({error.strerror or error})") from error
    except json.JSONDecodeError as error:
        raise BadConfig(f"{path}: is not JSON (line {error.lineno}: {error.msg})") from error
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path}: is not JSON ({type(error).__name__})") from error
    if not isinstance(data, dict):
        raise BadConfig(f"{path}: the top level is not an object")
    return data


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model's sizes, from the config.json beside the weights."""
    from ..model import registry

    data = checkpoint.read_json("config.json")
    if data is None:
        raise NotFound(f"{checkpoint.source}: there is no config.json")
    return registry.read_config(data)


def _roots(folder: Path) -> list[Path]:
    """Where a model's files may really lie: its folder, and the blobs beside it if it
    is a hub cache's snapshot."""
    real = folder.resolve()
    stores = [
        place.parent.parent / "blobs" for place in (real, real.parent) if place.parent.name == "snapshots"
    ]
    return [real, *stores]


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None  # a name no file system takes


def _demo() -> Checkpoint:
    from importlib.resources import files

    folder = Path(str(files("canvaslm.demo") / "model"))
    if not (folder / "config.json").is_file():
        raise NotFound("the demo model is not part of this installation; name a model with -m")
    return _from_folder(DEMO, folder)


def _from_file(text: str, path: Path) -> Checkpoint:
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return Checkpoint("gguf", text, path.parent, (path,))
    if suffix in _PICKLES:
        raise BadModelFile(f"{text}: is a pickle; {_PICKLE_REMEDY}")
    if suffix != ".safetensors":
        raise BadModelFile(
            f"{text}: is not a model; give a folder, a .safetensors or .gguf file, or a hub id org/name"
        )
    if not (path.parent / "config.json").exists():
        raise NotFound(
            f"{text}: there is no config.json beside it, and the weights alone do not tell the model's shape"
        )
    return Checkpoint("file", text, path.parent, (path,))


def _from_hub_file(text: str, path: Path) -> Checkpoint:
    """A GGUF file in a hub cache's snapshot, or in a folder of it."""
    return Checkpoint("gguf", text, path.parent, (inside(path.parent, path.name),))


def _from_folder(text: str, folder: Path) -> Checkpoint:
    names = _listing(text, folder)
    found = [
        name for name in names if name.endswith(".safetensors") and not name.startswith(("adapter_", "."))
    ]
    if not found and INDEX not in names:
        return _without_safetensors(text, folder, names)
    if "config.json" not in names:
        raise NotFound(
            f"{text}: there is no config.json in this folder; copy it there from where the weights came from"
        )
    if "model.safetensors" in found:
        return Checkpoint("folder", text, folder, (inside(folder, "model.safetensors"),))
    if INDEX in names:
        weight_map = _weight_map(folder)
        shards = sorted(set(weight_map.values()))
    else:
        weight_map, shards = {}, _unindexed(text, found)
    paths = tuple(inside(folder, name) for name in shards)
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise BadModelFile(
            f"{text}: {len(absent)} of {len(shards)} shards are not there ({', '.join(absent[:3])} ...); "
            "finish the download"
        )
    return Checkpoint("folder", text, folder, paths, weight_map)


def _listing(text: str, folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise NotFound(f"{text}: the folder cannot be read ({error.strerror})") from error


def _without_safetensors(text: str, folder: Path, names: list[str]) -> Checkpoint:
    ggufs = [name for name in names if name.lower().endswith(".gguf") and not name.startswith("mmproj")]
    if (
        len({gguf_stem(name) for name in ggufs}) == 1
    ):  # one file, or the parts of one; the first stands for all
        return Checkpoint("gguf", text, folder, (inside(folder, ggufs[0]),))
    if ggufs:
        raise UsageError(
            f"{text}: holds several GGUF files, name one of them: {', '.join(ggufs[:8])}", param="model"
        )
    if "adapter_config.json" in names:
        raise UsageError(
            f"{text}: holds an adapter, not a model: name its model, and this with --adapter (or "
            "`canvaslm adapter merge` makes one of both)",
            param="model",
        )
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise BadModelFile(f"{text}: holds no safetensors, only {', '.join(pickles[:3])}; {_PICKLE_REMEDY}")
    raise NotFound(f"{text}: holds no model (no .safetensors or .gguf file)" + _near(text))


def _weight_map(folder: Path) -> dict[str, str]:
    data = read_json(inside(folder, INDEX))
    weight_map = data.get("weight_map")
    good = isinstance(weight_map, dict) and all(isinstance(name, str) for name in weight_map.values())
    if not good or not weight_map:
        raise BadModelFile(f"{folder / INDEX}: weight_map should be an object of tensor name: file name")
    for name in set(weight_map.values()):
        inside(folder, name)
        if not name.endswith(".safetensors"):
            raise BadModelFile(f"{folder / INDEX}: {shown(name)} is not a safetensors file")
    return dict(weight_map)


def _unindexed(text: str, found: list[str]) -> list[str]:
    """Files to read where no index says so: the only one, or a full numbered set."""
    if len(found) == 1 and not _SHARD.fullmatch(found[0]):
        return found
    matches = [match for name in found if (match := _SHARD.fullmatch(name))]
    sets = {(match[1], match[3]) for match in matches}
    if len(matches) == len(found) and len(sets) == 1:
        stem, count = sets.pop()
        return [f"{stem}-{i:05}-of-{count}.safetensors" for i in range(1, min(int(count), 10_000) + 1)]
    raise UsageError(
        f"{text}: holds several safetensors files and no {INDEX}; name one of them: {', '.join(found[:8])}",
        param="model",
    )


def _not_there(text: str) -> str:
    typed = text if text.isprintable() else shown(text)
    hint = "; give a folder, a .safetensors or .gguf file, or a hub id org/name"
    return f"{typed}: there is no such file or folder{_near(text)}{'' if looks_like_hub_id(text) else hint}"


def _near(text: str) -> str:
    """ " (did you mean ...?)" with names beside the typed path and ids in the hub cache, or nothing."""
    path, beside = Path(text), []
    try:
        path = path.expanduser()
        some = itertools.islice(path.parent.iterdir(), 2000)
        beside = [str(path.parent / entry.name) for entry in some]
    except (OSError, ValueError, RuntimeError):
        pass  # no such folder, or a name no file system takes
    close = difflib.get_close_matches(str(path), [*beside, *cached_ids(), DEMO], n=3, cutoff=0.7)
    close = [name for name in close if name != str(path) and name.isprintable()]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


__all__ = ["DEMO", "INDEX", "Checkpoint", "inside", "read_config", "read_json", "resolve"]
