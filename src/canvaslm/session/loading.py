"""From a checkpoint to a session: `load`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Unpack

import torch

from ..decisions.calibration import FILE_NAME, read_calibration
from ..engine import Engine
from ..errors import UsageError
from ..model.registry import family_of
from ..ops import cpu
from ..ops.cpu.loader import default_threads
from ..ops.threads import Threads
from ..options import LoadingOptions
from ..text.chat import ChatTemplate
from ..text.tokenizer import Tokenizer
from ..types import Params
from ..weights.describe import format_of
from ..weights.generation import sampling_defaults, source_of, stop_tokens
from ..weights.gguf.fields import family_of_file
from ..weights.gguf.file import GGUFFile
from ..weights.loading.empty import meta_model
from ..weights.loading.load import load_model
from ..weights.loading.loaded import Loaded
from ..weights.resolve import DEMO, Checkpoint, read_config, resolve
from .adapters import find_all, load_all
from .options import check_names
from .session import Session

Progress = Callable[[int, int], None]
# A model this small gains nothing from more threads, and loses ten times its speed waiting for them on a busy
# machine.
ONE_THREAD_BELOW = 10_000_000


def load(source: str | Path | None = None, **options: Unpack[LoadingOptions]) -> Session:
    """Opens a checkpoint: a folder, a `.safetensors` or `.gguf` file, a hub id; None is
    the demo model that ships.

    `device`: "cpu" (the default), "cuda", "cuda:1". `dtype` names a floating-point type ("float32",
    "bfloat16", "float16"); None chooses. `threads` None takes all processors, or one for models below 10 M
    parameters; it holds while this session runs. `progress(done, total)` is called with bytes while weights
    are read. `max_rows` (16): sequences denoised at once. `max_context`: tokens. `kv_memory`,
    `prefix_memory`: bytes for the keys and values of running sequences (None: no limit) and of remembered
    ones (0: none are). `deterministic`: sums in one order, whatever else runs. `kv_type` is "float32",
    "bfloat16" or "int8"; `self_conditioning` "exact" lets native kernels leave nothing out of the soft
    embedding ("auto" is the default). `adapters`: folders of LoRA adapters as PEFT writes them, GGUF files or
    hub ids, by the names that the option `adapter` calls them by, as {"terse": "runs/terse"};
    `adapter_memory`: bytes for all adapters (None: no limit).

    Raises NotFound, Offline, BadModelFile, OutOfMemory, UsageError.

    >>> session = canvaslm.load(max_rows=4)
    >>> session.name
    'demo'
    """
    check_names(options, LoadingOptions.__annotations__)
    return _load(source, **options)


def _load(
    source: str | Path | None,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    max_rows: int = 16,
    max_context: int | None = None,
    kv_memory: int | None = None,
    prefix_memory: int = 2**30,
    deterministic: bool = False,
    kv_type: str | None = None,
    self_conditioning: str = "auto",
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
    adapter_memory: int | None = None,
) -> Session:
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"threads = {threads} is out of range: 1 to 1024", "threads")
    checkpoint, places = resolve(source), find_all(adapters, adapter_memory)
    # Beside the weights, which wait for the disk: a vocabulary of 262,144 tokens takes a second.
    with ThreadPoolExecutor(1) as beside, _threads(threads, checkpoint).in_use():
        text = beside.submit(_open_text, checkpoint)
        loaded = load_model(checkpoint, device=device, dtype=dtype, progress=progress)
    if threads is None and _is_tiny(loaded):
        threads = 1
    tokenizer, template = text.result()
    given, origins = sampling_defaults(loaded.generation, source_of(checkpoint.kind))
    is_demo = checkpoint.source == DEMO
    session = Session(
        Engine(
            loaded.model,
            max_rows=max_rows,
            max_context=max_context,
            kv_memory=kv_memory,
            prefix_memory=prefix_memory,
            deterministic=deterministic,
            kv_type=_kv_type(kv_type),
            exact=_is_exact(self_conditioning),
        ),
        tokenizer,
        template,
        params=Params(**given),
        eos_token_ids=stop_tokens(loaded.generation, loaded.config.eos_token_ids),
        name=DEMO if is_demo else Path(checkpoint.source).name,
        origins=dict(origins),
        notes=(*loaded.notes, *(cpu.notes() if checkpoint.kind == "gguf" else ())),
        is_demo=is_demo,
        format=format_of(checkpoint),
        threads=_threads(threads, checkpoint),
        calibration=read_calibration(checkpoint.path(FILE_NAME)),
    )
    load_all(session.adapters, places, adapter_memory)
    return session


def _threads(count: int | None, checkpoint: Checkpoint) -> Threads:
    """As many for torch, and for the native kernels, which serve GGUF files alone."""
    if checkpoint.kind != "gguf" or not cpu.available():
        return Threads(count)
    return Threads(count, count or default_threads())


def _is_tiny(loaded: Loaded) -> bool:
    """Whether one thread is best. Repacked weights are no parameters: then the shapes of all are counted."""
    if sum(p.numel() for p in loaded.model.parameters()) >= ONE_THREAD_BELOW:
        return False
    shapes = meta_model(loaded.config)
    return sum(p.numel() for p in shapes.parameters()) < ONE_THREAD_BELOW


def _kv_type(name: str | None) -> torch.dtype | None:
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
    if name is not None and name not in types:
        raise UsageError(f"unknown kv_type {name!r}: choose one of {', '.join(types)}", "kv_type")
    return None if name is None else types[name]


def _is_exact(choice: str) -> bool:
    if choice not in ("auto", "exact"):
        raise UsageError(f"unknown self_conditioning {choice!r}: choose auto or exact", "self_conditioning")
    return choice == "exact"


def _open_text(checkpoint: Checkpoint) -> tuple[Tokenizer, ChatTemplate]:
    if checkpoint.kind == "gguf":
        with GGUFFile(checkpoint.files[0]) as file:
            metadata, markers = file.plain("tokenizer."), family_of_file(file).markers
        tokenizer = Tokenizer.from_gguf(metadata, checkpoint.source, markers)
        return tokenizer, ChatTemplate.from_gguf(metadata, tokenizer)
    tokenizer = Tokenizer.from_folder(checkpoint.folder, family_of(read_config(checkpoint)).markers)
    return tokenizer, ChatTemplate.from_folder(checkpoint.folder, tokenizer)


__all__ = ["Progress", "load"]
