"""Models and adapters from a hub: ids such as `org/name@revision`, downloaded by huggingface_hub into its
cache.

A repository of GGUF files holds the same model many times over: `org/name:Q4_K_M` takes the file (or all
parts of it) of that type, which is told by its name or its folder's.

The environment is huggingface_hub's own: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT. Nothing here runs
unless the user named a hub id.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CanvasError, NotFound, Offline, UsageError
from .safetensors_.header import shown

# Top-level files only: weights, configuration and tokenizer. Never .bin, .pt or Python.
ALLOW = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model")
IGNORE = ("*/*", "consolidated*", "adapter_*", "*training_args*")
# What an adapter is, as PEFT writes it; nothing else of its repository is fetched.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"{_PART}/{_PART}")
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_GGUF_END = re.compile(r"(-\d{5}-of-\d{5})?\.gguf$", re.IGNORECASE)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True)
class HubId:
    """`org/name`, the type of GGUF file after a `:`, and the branch, tag or commit after an `@`. `what`: of
    what it is, for errors."""

    repository: str
    revision: str | None = None
    file_type: str | None = None
    what: str = "model"

    def __str__(self) -> str:
        return (
            self.repository
            + (f":{self.file_type}" if self.file_type else "")
            + (f"@{self.revision}" if self.revision else "")
        )


def looks_like_hub_id(source: str) -> bool:
    """One slash, and nothing that only paths have."""
    head = source.partition("@")[0]
    return head.count("/") == 1 and not head.startswith((".", "/", "~")) and not head.endswith("/")


def parse_hub_id(source: str, what: str = "model") -> HubId:
    """Checks an id, of a model or an adapter, before any of it becomes a path in the cache or part of an
    address.

    Raises UsageError for traversal ("..", "%2e"), backslashes and other characters no hub uses.
    """
    name, at, revision = source.partition("@")
    repository, colon, file_type = name.partition(":")
    good = _ID.fullmatch(repository) and ".." not in repository and "--" not in repository
    if not good or repository.endswith((".git", ".", "-")):
        raise UsageError(
            f"{shown(source)} is not {_an(what)} id; one looks like org/name, "
            f"{'org/name:Q4_K_M ' if what == 'model' else ''}or org/name@revision, "
            "in letters, digits, '-', '_' and '.'",
            param=what,
        )
    if colon and what != "model":
        raise UsageError(
            f"{shown(source)}: a type of GGUF file, behind ':', is of models alone: leave it out", param=what
        )
    if colon and (not _TYPE.fullmatch(file_type) or ".." in file_type):
        raise UsageError(
            f"{shown(source)}: after ':' comes the type of a GGUF file, such as Q4_K_M", param=what
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise UsageError(f"{shown(source)}: after '@' comes a branch, a tag or a commit", param=what)
    return HubId(repository, revision if at else None, file_type if colon else None, what)


def _an(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def download(hub_id: HubId) -> Path:
    """The model in the hub cache, downloaded first where needed (progress on stderr): its folder, or its GGUF
    file (the first part of several).

    Raises Offline without a network, NotFound for an unknown, private or gated model, UsageError when the
    repository has several GGUF files and the id does not say which; the message says what to do.
    """
    if not hub_id.file_type:
        folder = _snapshot(hub_id, ALLOW, IGNORE)
        if any(folder.glob("*.safetensors")):
            return folder
    files = _gguf_files(hub_id)
    if not files and not hub_id.file_type:
        return folder
    chosen = _choose(hub_id, files)
    return _snapshot(hub_id, [glob.escape(name) for name in chosen]) / chosen[0]


def download_adapter(hub_id: HubId) -> Path:
    """The folder in the hub cache with an adapter's two files, downloaded first where needed.

    Raises Offline without a network, NotFound for an unknown, private or gated repository, and for one that
    has no such files.
    """
    folder = _snapshot(hub_id, ADAPTER_FILES)
    missing = next((name for name in ADAPTER_FILES if not (folder / name).is_file()), None)
    if missing is None:
        return folder
    names = _listed(hub_id)  # raises Offline where only the cache lacks it
    pickled = any(name.startswith("adapter_model") and name.endswith(".bin") for name in names)
    inner = [name.rpartition("/")[0] for name in names if name.endswith(f"/{ADAPTER_FILES[0]}")]
    more = ""
    if pickled:
        more = "; it is a pickle (.bin), which canvaslm never loads, since that runs code"
    elif inner:
        more = f"; there are adapters in its folders {', '.join(inner[:8])}: download one and give its path"
    raise NotFound(f"{hub_id}: is no adapter: there is no {missing} in it{more}")


def _library() -> None:
    """To be called before huggingface_hub is imported, which then reads its environment."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _snapshot(hub_id: HubId, allow: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    _library()
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            hub_id.repository,
            revision=hub_id.revision,
            allow_patterns=list(allow),
            ignore_patterns=list(ignore),
            library_name="canvaslm",
        )
    except Exception as error:
        raise explained(hub_id, error) from error
    return Path(folder)


def _gguf_files(hub_id: HubId) -> dict[str, str]:
    """The repository's GGUF files and their types; those in the cache where the hub cannot be asked."""
    try:
        names = _listed(hub_id)
    except Offline:
        folder = _snapshot(hub_id, ["config.json"])  # small or absent: only the folder is wanted
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    return {name: kind for name in sorted(names) if (kind := _gguf_type(name))}


def _listed(hub_id: HubId) -> list[str]:
    """The paths of all files of a repository. Raises Offline, NotFound."""
    _library()
    from huggingface_hub import HfApi

    try:
        listed = HfApi(library_name="canvaslm").list_repo_tree(
            hub_id.repository, revision=hub_id.revision, recursive=True
        )
        return [entry.path for entry in listed]
    except Exception as error:
        raise explained(hub_id, error) from error


def _choose(hub_id: HubId, files: dict[str, str]) -> list[str]:
    """The one file, or all parts of the one, that the id means. Raises NotFound, UsageError."""
    wanted = hub_id.file_type
    chosen = [name for name, kind in files.items() if wanted is None or kind.lower() == wanted.lower()]
    types = sorted(set(files.values()))
    if not chosen:
        there = f"there are {', '.join(types[:30])}" if types else "it has no GGUF files"
        raise NotFound(f"{hub_id}: has no GGUF file of type {wanted}; {there}")
    if len({gguf_stem(name) for name in chosen}) == 1:
        return chosen
    if wanted is not None:
        raise UsageError(
            f"{hub_id}: several files are of this type: {', '.join(chosen[:8])}; "
            "download one and give its path",
            param="model",
        )
    example = next((kind for kind in ("Q4_K_M", "Q8_0") if kind in types), types[0])
    raise UsageError(
        f"{hub_id}: holds several GGUF files, name one by its type, as {hub_id.repository}:{example}; "
        f"there are {', '.join(types[:30])}",
        param="model",
    )


def gguf_stem(name: str) -> str:
    """A GGUF file's name without its end, and without the number of the part it is."""
    return _GGUF_END.sub("", name)


def _gguf_type(name: str) -> str | None:
    """The type that ends a GGUF file's name; None for other files, and for what is no
    model (a vision projector)."""
    if not name.lower().endswith(".gguf"):
        return None
    stem = gguf_stem(Path(name).name)
    match = _TYPE_AT_END.search(stem)
    if not match or stem.startswith("mmproj"):
        return None
    return match[1]


# Q4_K_M, UD-Q4_K_XL, IQ4_XS, BF16, F16, MXFP4_MOE ...
_TYPE_AT_END = re.compile(
    r"(?:^|[-.])((?:UD-)?(?:I?Q\d|TQ\d|BF16|F16|F32|MXFP4)[A-Za-z0-9_]*)$", re.IGNORECASE
)


def cached_ids() -> list[str]:
    """Models already in the hub cache, for "did you mean"."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    try:
        names = [entry.name for entry in cache.iterdir() if entry.name.startswith("models--")]
    except OSError:
        return []
    return [name.removeprefix("models--").replace("--", "/", 1) for name in names]


def explained(hub_id: HubId, error: Exception) -> Exception:
    """The error to raise instead: ours where we know what went wrong, the original otherwise."""
    from huggingface_hub import constants, errors

    where = f"{constants.ENDPOINT}/{hub_id.repository}"
    if isinstance(error, errors.GatedRepoError):
        return NotFound(
            f"{hub_id}: is gated; accept its terms at {where} and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(
            f"{hub_id}: {where} has no revision {hub_id.revision!r}; see its branches and tags there"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFound(
            f"{hub_id}: there is no such {hub_id.what} at {where}, and no such folder here "
            f"(a private {hub_id.what} needs HF_TOKEN)"
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{shown(str(hub_id))} is not {_an(hub_id.what)} id ({error})", param=hub_id.what)
    return _connection(hub_id, error, constants.ENDPOINT) or error


def _connection(hub_id: HubId, error: Exception, endpoint: str) -> CanvasError | None:
    """What went wrong on the way, from the error and its causes."""
    from huggingface_hub import constants, errors

    causes = _causes(error)
    if constants.HF_HUB_OFFLINE or any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return Offline(
            f"{hub_id}: is not (completely) in the cache and HF_HUB_OFFLINE is set; "
            "unset it once to download it"
        )
    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
        return CanvasError(f"{hub_id}: the disk is full; free some space or point HF_HOME to another disk")
    found = [getattr(getattr(cause, "response", None), "status_code", None) for cause in causes]
    status = next((code for code in found if code is not None), None)
    if status in (401, 403):
        return NotFound(
            f"{hub_id}: {endpoint} refused access ({status}); set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.LocalEntryNotFoundError) or any(is_of_network(cause) for cause in causes):
        answer = f" (it answered {status})" if status else ""
        return Offline(
            f"{hub_id}: cannot be downloaded from {endpoint}{answer}; "
            "check the connection (HF_ENDPOINT, proxy), or give a local folder"
        )
    return None


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < 20:
        causes.append(cause)
    return causes


def is_of_network(error: BaseException) -> bool:
    """Whether it says that a hub was not reached, or failed."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or library in (
        "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3",
    ) or type(error).__name__ == "HfHubHTTPError"  # fmt: skip


__all__ = [
    "ADAPTER_FILES",
    "ALLOW",
    "HubId",
    "cached_ids",
    "download",
    "download_adapter",
    "explained",
    "gguf_stem",
    "is_of_network",
    "looks_like_hub_id",
    "parse_hub_id",
]
