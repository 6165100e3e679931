"""`canvaslm adapter push`: an adapter to a hub, with a page that says what it is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..files import write_text

if TYPE_CHECKING:
    from ..model.adapters import Adapter
    from ..weights.adapters.find import AdapterPlace

_PANEL = "Push"


@dataclass(frozen=True)
class Pushing:
    """How an adapter is pushed."""

    private: Annotated[
        bool, typer.Option("--private", rich_help_panel=_PANEL, help="Make a repository that is private.")
    ] = False
    token_env: Annotated[
        str | None,
        typer.Option(
            "--token-env", metavar="NAME", rich_help_panel=_PANEL,
            help="The environment variable with the token. Without it: HF_TOKEN, or that of `hf auth login`.",
        ),
    ] = None  # fmt: skip
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=_PANEL, help="List what would be uploaded; change nothing."
        ),
    ] = False

    def refuse(self, action: str) -> None:
        """Raises UsageError for flags of `push` with another action."""
        given = {"private": self.private, "token_env": self.token_env is not None, "dry_run": self.dry_run}
        for name, there in given.items():
            if there:
                raise UsageError(f"--{name.replace('_', '-')} is of push, not of {action}", name)


def push_adapter(
    place: AdapterPlace, adapter: Adapter, model: str, target: str, how: Pushing, as_json: bool
) -> None:
    """Uploads an adapter that was read, and so checked, already. Raises as `weights.adapters.push` does."""
    from ..weights.adapters.card import CARD, base_of, card_of
    from ..weights.adapters.peft import stored_base
    from ..weights.adapters.push import push, push_files, target_of, token_from

    if place.hub_id is not None:
        raise UsageError(f"{place}: is on a hub already; push a folder that is here", "adapter")
    folder = place.path
    repository, files = target_of(target), push_files(folder)
    base = base_of(model, stored_base(folder))
    card = None if any(path.name == CARD for path in files) else card_of(adapter, repository, base)
    token = "" if how.dry_run else token_from(how.token_env)
    sizes = {path.name: path.stat().st_size for path in files}
    if card is not None:
        sizes[CARD] = len(card.encode())
    url = None
    if not how.dry_run:
        if card is not None:
            write_text(folder / CARD, card)
        url = push(folder, push_files(folder), repository, token=token, private=how.private)
    _told(repository, sizes, base, url, card is not None, as_json)


def _told(
    repository: str, sizes: dict[str, int], base: str | None, url: str | None, new: bool, as_json: bool
) -> None:
    from ..weights.loading.memory import gigabytes
    from .fill import print_object
    from .output import log

    if as_json:
        print_object(
            {"repository": repository, "base_model": base, "files": sizes, "new_card": new, "url": url}
        )
        return
    for name, size in sizes.items():
        print(f"{name:<28}{gigabytes(size)}")
    print(f"{repository}: {url or 'nothing was uploaded (--dry-run)'}")
    if base is None:
        log("note: the base is on no hub as far as the adapter and -m say, so its page does not name it")


__all__ = ["Pushing", "push_adapter"]
