"""A progress bar on standard error: what is done, of how much, and how long the rest takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[..., None]


@contextmanager
def progress_bar(total: int, text: str) -> Iterator[Tick]:
    """Yields `tick(count=1, text=None)`: so many more are done, and what is being worked on now.

    Drawn on a terminal only, and gone when the block ends.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(text, total=total)

        def tick(count: int = 1, text: str | None = None) -> None:
            progress.update(bar, advance=count, description=text)

        yield tick


__all__ = ["Tick", "progress_bar"]
