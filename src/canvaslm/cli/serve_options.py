"""Flags of `canvaslm serve`, in groups (see `options`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ..diffusion.params import PARAMETERS
from .adapter_options import PANEL, AdapterFiles
from .options import checked

_SERVER, _ACCESS, _LIMITS = "Server", "Access", "Limits"
MIB = 2**20


@dataclass(frozen=True)
class Listening:
    """Where, and until when."""

    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", rich_help_panel=_SERVER, help="The address to listen at."),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, metavar="N", rich_help_panel=_SERVER,
            help="The port; 0 takes a free one."),
    ] = 8642  # fmt: skip
    drain_seconds: Annotated[
        float,
        typer.Option(
            "--drain-seconds", min=0.0, metavar="X", rich_help_panel=_SERVER,
            help="How long Ctrl-C waits for the answers being written.",
        ),
    ] = 30.0  # fmt: skip
    access_log: Annotated[
        bool,
        typer.Option(
            "--access-log/--no-access-log", rich_help_panel=_SERVER,
            help="A line on standard error for every request; without prompts and keys.",
        ),
    ] = True  # fmt: skip


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    api_key_file: Annotated[
        str | None,
        typer.Option(
            "--api-key-file", metavar="FILE", rich_help_panel=_ACCESS,
            help="Keys that clients need one of, one a line. Or one key in the variable CANVASLM_API_KEY.",
        ),
    ] = None  # fmt: skip
    allowed_hosts: Annotated[
        str | None,
        typer.Option(
            "--allowed-hosts", metavar="NAMES", rich_help_panel=_ACCESS,
            help="More names that clients may call the server by, with commas between them; * for any.",
        ),
    ] = None  # fmt: skip
    allowed_origins: Annotated[
        str | None,
        typer.Option(
            "--allowed-origins", metavar="ORIGINS", rich_help_panel=_ACCESS,
            help="Pages that may ask from a browser, as https://example.org, with commas between them.",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How much at a time."""

    max_rows: Annotated[
        int,
        typer.Option("--max-rows", min=1, max=4096, metavar="N", rich_help_panel=_LIMITS,
            help="Answers written at a time."),
    ] = 16  # fmt: skip
    max_queue: Annotated[
        int,
        typer.Option("--max-queue", min=0, metavar="N", rich_help_panel=_LIMITS,
            help="Requests that may wait; more get 429."),
    ] = 64  # fmt: skip
    max_context: Annotated[
        int | None,
        typer.Option(
            "--max-context", min=1, metavar="N", rich_help_panel=_LIMITS,
            help="Tokens of prompt and answer together. Without it: what the model allows.",
        ),
    ] = None  # fmt: skip
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens", "-n", min=-1, metavar="N", rich_help_panel=_LIMITS,
            callback=checked(PARAMETERS["max_new_tokens"]),
            help=("Tokens an answer may have when the client does not say; the end of the answer comes "
                "first as a rule. -1: as many as the context holds."),
        ),
    ] = 2048  # fmt: skip
    default_temperature: Annotated[
        float | None,
        typer.Option(
            "--default-temperature", min=0.0, max=100.0, metavar="X", rich_help_panel=_LIMITS,
            help="Temperature of requests that say none. Without it: the checkpoint's schedule.",
        ),
    ] = None  # fmt: skip
    kv_memory: Annotated[
        int | None,
        typer.Option(
            "--kv-memory", min=1, metavar="MIB", rich_help_panel=_LIMITS,
            help="MiB for keys and values of the answers being written; what does not fit waits.",
        ),
    ] = None  # fmt: skip
    prefix_memory: Annotated[
        int,
        typer.Option(
            "--prefix-memory", min=0, metavar="MIB", rich_help_panel=_LIMITS,
            help="MiB for remembered prompts; 0 remembers none.",
        ),
    ] = 1024  # fmt: skip
    max_body: Annotated[
        int,
        typer.Option(
            "--max-body", min=1, metavar="MIB", rich_help_panel=_LIMITS, help="MiB of a request's body."
        ),
    ] = 8

    def params(self) -> dict[str, Any]:
        """Fields of `Params` for requests that do not set them."""
        return {"max_new_tokens": self.max_new_tokens, "temperature": self.default_temperature}

    def engine(self) -> dict[str, Any]:
        """What `canvaslm.load` takes of it."""
        return {
            "max_rows": self.max_rows,
            "max_context": self.max_context,
            "kv_memory": None if self.kv_memory is None else self.kv_memory * MIB,
            "prefix_memory": self.prefix_memory * MIB,
        }


@dataclass(frozen=True)
class Served(AdapterFiles):
    """What `model` in requests may say."""

    adapter_dir: Annotated[
        str | None,
        typer.Option(
            "--adapter-dir", metavar="FOLDER", rich_help_panel=PANEL,
            help="Whoever may ask may load adapters from below this folder, and unload any.",
        ),
    ] = None  # fmt: skip
    adapter_memory: Annotated[
        int | None,
        typer.Option(
            "--adapter-memory", min=0, metavar="MIB", rich_help_panel=PANEL,
            help="MiB for adapters. Those of --adapter stay; of others the longest unused are dropped, and "
            "read again when asked for.",
        ),
    ] = None  # fmt: skip
    any_model: Annotated[
        bool,
        typer.Option(
            "--any-model", rich_help_panel=PANEL,
            help="Answer requests for a model that is not here with the one that is. Without it: 404.",
        ),
    ] = False  # fmt: skip

    def loading(self) -> dict[str, Any]:
        limit = None if self.adapter_memory is None else self.adapter_memory * MIB
        return {**super().loading(), **({} if limit is None else {"adapter_memory": limit})}

    def serving(self) -> dict[str, Any]:
        """What `create_app` takes of it."""
        return {"any_model": self.any_model, "adapter_folder": self.adapter_dir}


__all__ = ["MIB", "Access", "Budget", "Listening", "Served"]
