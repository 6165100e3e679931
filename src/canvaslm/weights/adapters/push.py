"""An adapter's folder to a hub: its two files and its page, and nothing else that lies there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import BadModelFile, CanvasError, NotFound, Offline, UsageError
from ..hub import ADAPTER_FILES, explained, is_of_network, parse_hub_id
from ..resolve import inside
from .card import CARD

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def push_files(folder: Path) -> tuple[Path, ...]:
    """What of a folder is uploaded. Raises NotFound where a file is missing, BadModelFile for a link that
    leads out of the folder."""
    missing = next((name for name in ADAPTER_FILES if not (folder / name).is_file()), None)
    if missing is not None:
        raise NotFound(f"{folder}: there is no {missing} in it; what is pushed is a folder as PEFT writes it")
    names = [*ADAPTER_FILES, *([CARD] if os.path.lexists(folder / CARD) else [])]
    paths = tuple(inside(folder, name) for name in names)
    if not all(path.is_file() for path in paths):
        raise BadModelFile(f"{folder / CARD}: is no file: a page is a text in Markdown")
    return paths


def target_of(text: str) -> str:
    """The repository to push to. Raises UsageError for what is none, or says more."""
    hub_id = parse_hub_id(text, "adapter")
    if hub_id.revision is not None:
        raise UsageError(f"{text}: push goes to the main branch: leave out what is behind '@'", param="out")
    return hub_id.repository


def token_from(variable: str | None) -> str:
    """The token to write with: in the variable named, else huggingface_hub's own. Raises UsageError."""
    from huggingface_hub import get_token

    if variable is not None:
        token = os.environ.get(variable, "").strip()
        if not token:
            raise UsageError(
                f"--token-env {variable}: there is no such variable, or nothing in it", "token_env"
            )
        return token
    found = get_token()
    if not found:
        raise UsageError(f"there is no token for the hub: {_LOGIN}")
    return found


def push(folder: Path, files: Sequence[Path], repository: str, *, token: str, private: bool = False) -> str:
    """Makes the repository if there is none, uploads, and gives the address of the commit.

    Raises Offline; UsageError where the hub refuses to write there, and where `private` is asked for and the
    repository that is there is public.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise Offline(f"{repository}: HF_HUB_OFFLINE is set: unset it to push")
    api = HfApi(token=token, library_name="canvaslm")
    try:
        api.create_repo(repository, private=True if private else None, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise UsageError(
                f"{repository}: is there already, and public: make it private on its page, or leave out "
                "--private",
                "private",
            )
        made = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[path.name for path in files],
            commit_message="An adapter, uploaded by canvaslm",
        )
    except CanvasError:
        raise
    except Exception as error:
        raise _refusal(repository, error, constants.ENDPOINT) from error
    return str(getattr(made, "commit_url", f"{constants.ENDPOINT}/{repository}"))


def _refusal(repository: str, error: Exception, endpoint: str) -> Exception:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        owner = repository.partition("/")[0]
        return UsageError(
            f"{repository}: {endpoint} refuses to write there ({status}): {_LOGIN} to what is of {owner}"
        )
    if is_of_network(error):
        answer = f" (it answered {status})" if status else ""
        return Offline(
            f"{repository}: cannot be uploaded to {endpoint}{answer}; check the connection (HF_ENDPOINT, "
            "proxy)"
        )
    return explained(parse_hub_id(repository, "adapter"), error)


__all__ = ["push", "push_files", "target_of", "token_from"]
