"""Models from a hub: ids such as `org/name@revision`, downloaded by huggingface_hub into its cache.

The environment is huggingface_hub's own: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT. Nothing here runs unless the
user named a hub id.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import CanvasError, NotFound, Offline, UsageError
from .header import shown

# Top-level files only: weights, configuration and tokenizer. Never .bin, .pt or Python.
ALLOW = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model")
IGNORE = ("*/*", "consolidated*", "adapter_*", "*training_args*")

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True)
class HubId:
    """`org/name`, and the branch, tag or commit after an `@`."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")


def looks_like_hub_id(source: str) -> bool:
    """One slash, and nothing that only paths have."""
    head = source.partition("@")[0]
    return head.count("/") == 1 and not head.startswith((".", "/", "~")) and not head.endswith("/")


def parse_hub_id(source: str) -> HubId:
    """Checks an id before any of it becomes a path in the cache or part of an address.

    Raises UsageError for traversal ("..", "%2e"), backslashes and other characters no hub uses.
    """
    repository, at, revision = source.partition("@")
    good = _ID.fullmatch(repository) and ".." not in repository and "--" not in repository
    if not good or repository.endswith((".git", ".", "-")):
        raise UsageError(
            f"{shown(source)} is not a model id; one looks like org/name or org/name@revision, "
            "in letters, digits, '-', '_' and '.'",
            param="model",
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise UsageError(f"{shown(source)}: after '@' comes a branch, a tag or a commit", param="model")
    return HubId(repository, revision if at else None)


def download(hub_id: HubId) -> Path:
    """The folder of the model in the hub cache, downloaded first where needed (progress on stderr).

    Raises Offline without a network, NotFound for an unknown, private or gated model; the message says which.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            hub_id.repository,
            revision=hub_id.revision,
            allow_patterns=list(ALLOW),
            ignore_patterns=list(IGNORE),
            library_name="canvaslm",
        )
    except Exception as error:
        raise _explained(hub_id, error) from error
    return Path(folder)


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


def _explained(hub_id: HubId, error: Exception) -> Exception:
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
            f"{hub_id}: there is no such model at {where}, and no such folder here "
            "(a private model needs HF_TOKEN)"
        )
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{shown(str(hub_id))} is not a model id ({error})", param="model")
    return _connection(hub_id, error, constants.ENDPOINT) or error


def _connection(hub_id: HubId, error: Exception, endpoint: str) -> CanvasError | None:
    """What went wrong on the way, from the error and its causes."""
    from huggingface_hub import constants, errors

    causes = _causes(error)
    if constants.HF_HUB_OFFLINE or any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return Offline(
            f"{hub_id}: is not (completely) in the cache and HF_HUB_OFFLINE is set; unset it once to download it"
        )
    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
        return CanvasError(f"{hub_id}: the disk is full; free some space or point HF_HOME to another disk")
    found = [getattr(getattr(cause, "response", None), "status_code", None) for cause in causes]
    status = next((code for code in found if code is not None), None)
    if status in (401, 403):
        return NotFound(
            f"{hub_id}: {endpoint} refused access ({status}); set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, errors.LocalEntryNotFoundError) or any(_of_network(cause) for cause in causes):
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


def _of_network(error: BaseException) -> bool:
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or library in (
        "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3",
    ) or type(error).__name__ == "HfHubHTTPError"  # fmt: skip


__all__ = ["ALLOW", "HubId", "cached_ids", "download", "looks_like_hub_id", "parse_hub_id"]
