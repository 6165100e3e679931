"""`canvaslm show --kernels`: which kernel runs each quantised format on this machine,
from the table of kernels."""

from __future__ import annotations

from typing import Any


def kernels_json() -> dict[str, Any]:
    """Device -> its backends, those first that are asked first, and for each format
    and operation the kernel."""
    import torch

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    return {"devices": {device: _device(device) for device in devices}}


def _device(device: str) -> dict[str, Any]:
    from ..ops.backend import BACKENDS, kernel_table

    return {
        "backends": {
            backend.name: backend.summary() if backend.available() else "not available here"
            for backend in BACKENDS
            if backend.device in (None, device)
        },
        "formats": {
            format: {
                operation: None
                if kernel is None
                else {"backend": kernel.backend, "how": kernel.label(format)}
                for operation, kernel in entries.items()
            }
            for format, entries in kernel_table(device).items()
        },
    }


def kernels_text() -> str:
    """The same for people: a page for each device, a line for each format."""
    pages = []
    for device, found in kernels_json()["devices"].items():
        backends = [f"  {name:<10}{how}" for name, how in found["backends"].items()]
        columns = ["format", *next(iter(found["formats"].values()))]
        lines = [[format, *map(_cell, entries.values())] for format, entries in found["formats"].items()]
        pages.append("\n".join([f"Kernels on {device}", *backends, "", *_aligned([columns, *lines])]))
    return "\n\n".join(pages)


def _cell(kernel: dict[str, str] | None) -> str:
    return "-" if kernel is None else f"{kernel['backend']} {kernel['how']}".rstrip()


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


__all__ = ["kernels_json", "kernels_text"]
