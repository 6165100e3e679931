"""What a training run is told: the sections and keys of its TOML file, checked before anything is loaded.

Every wrong key, type or combination raises UsageError with the key (`section.key`) and the remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..errors import NotFound, UsageError


@dataclass(frozen=True)
class RunSettings:
    """Where the run lives and when it ends: after `steps` or `max_minutes`, whichever
    comes first (0 = no limit)."""

    folder: str = ""
    seed: int = 0
    steps: int = 0
    max_minutes: float = 0.0
    log_every: int = 10
    checkpoint_every: int = 0  # steps
    checkpoint_minutes: float = 5.0
    keep: int = 2  # checkpoints; older ones are removed
    threads: int = 0  # torch's; 0 leaves it alone
    autocast: str = "none"  # or "bf16"
    compile: bool = False
    recompute: bool = False  # layers keep their inputs alone, and are computed once more on the way back
    device: str = "cpu"


@dataclass(frozen=True)
class ModelSettings:
    """Where to start: from the weights of a checkpoint (`base`), or from fresh ones of the sizes in `config`.

    `config` is a folder with config.json and the tokenizer's files, which the export carries on.
    """

    base: str = ""
    config: str = ""


@dataclass(frozen=True)
class DataSettings:
    """Chat JSONL `files`, or `source`, an importable module or object with `example(seed, index)`."""

    source: str = ""
    files: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the source
    batch: int = 64  # examples per step
    micro_batch: int = 64  # examples per forward
    max_length: int = 4096  # tokens of prompt and response; longer responses are cut
    length_multiple: int = 32  # sequences are padded up to a multiple of this
    encode_fill: bool = True  # whether the encoder also reads the EOS fill of the last block


@dataclass(frozen=True)
class ObjectiveSettings:
    """The loss: see `canvaslm.train.objective`, and `canvaslm.train.preferences` for "dpo"."""

    kind: str = "sft"  # answers; or "dpo": the better one of two answers
    beta: float = 0.1  # of dpo: how little of a nat's preference is enough
    sft_weight: float = 0.0  # of dpo: weight of the better answer's own loss
    t_min: float = 1e-3
    self_conditioning: float = 0.5  # probability per example
    encoder_weight: float = 1.0
    aux_weight: float = 0.0  # Switch load balancing; 0.01 from scratch
    freeze_router: bool = True


@dataclass(frozen=True)
class OptimSettings:
    """Optimiser and schedule. `muon_lr` > 0 gives the hidden matrices to Muon, the rest stays with AdamW."""

    lr: float = 1e-4
    muon_lr: float = 0.0
    muon_momentum: float = 0.95
    betas: list[float] = field(default_factory=lambda: [0.95, 0.99])
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 25
    schedule: str = "cosine"  # or "linear"
    decay: float = 0.6  # last share of the run over which "linear" decays
    final: float = 0.1  # share of the peak rate at the end
    ema: float = 0.0  # decay per step; 0 = off


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank changes instead of all weights, if `rank` > 0; `run.folder/export` is then an adapter."""

    rank: int = 0
    alpha: float = 32.0
    rslora: bool = False  # scale alpha / sqrt(rank) instead of alpha / rank
    targets: list[str] = field(default_factory=lambda: ["attention", "mlp"])
    phases: str = "both"  # or "denoise": canvases only


@dataclass(frozen=True)
class ExportSettings:
    """The folder in Hugging Face layout written at every checkpoint and at the end."""

    dtype: str = "bf16"  # or "fp32"
    generation: dict[str, Any] = field(default_factory=dict)  # entries of generation_config.json


@dataclass(frozen=True)
class Settings:
    """One training run."""

    run: RunSettings = field(default_factory=RunSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    export: ExportSettings = field(default_factory=ExportSettings)


def read_settings(path: Path | str, overrides: Iterable[str] = ()) -> Settings:
    """Reads a TOML file and applies `section.key=value` overrides (values in TOML
    syntax, bare words allowed).

    Relative paths of model and data files are taken from the TOML file's folder, `run.folder` from the
    working one. Raises NotFound without the file, UsageError for anything wrong in it.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"{path}: no such training configuration (docs/training.md shows one)")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _apply(data, override)
    return _anchor(settings_from_dict(data), path.parent)


def _anchor(settings: Settings, folder: Path) -> Settings:
    """Makes paths absolute that exist beside the TOML file; anything else (a hub id) stays."""

    def find(name: str) -> str:
        return str((folder / name).resolve()) if name and (folder / name).exists() else name

    model = dataclasses.replace(
        settings.model, base=find(settings.model.base), config=find(settings.model.config)
    )
    data = dataclasses.replace(settings.data, files=[find(name) for name in settings.data.files])
    return dataclasses.replace(settings, model=model, data=data)


def settings_from_dict(data: Mapping[str, Any]) -> Settings:
    """Builds and checks Settings from nested dictionaries, as tomllib gives them."""
    sections = get_type_hints(Settings)
    _refuse_strays(data, sections, "")
    built = {name: _section(kind, name, data.get(name, {})) for name, kind in sections.items()}
    settings = Settings(**built)
    _check(settings)
    return settings


def _apply(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) < 2:
        raise UsageError(
            f"--set {override}: expected section.key=value, as in --set optim.lr=1e-4", param="set"
        )
    for part in parts[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UsageError(f"--set {override}: {part} is not a section", param="set")
    try:
        data[parts[-1]] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        data[parts[-1]] = text


def _section(kind: Any, name: str, data: Any) -> Any:
    if not isinstance(data, Mapping):
        raise UsageError(f"{name}: should be a section ([{name}]), found {data!r}", param=name)
    hints = get_type_hints(kind)
    _refuse_strays(data, hints, f"{name}.")
    return kind(**{key: _typed(value, hints[key], f"{name}.{key}") for key, value in data.items()})


def _refuse_strays(data: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
    for key in data:
        if key in known:
            continue
        near = difflib.get_close_matches(key, list(known), n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
        raise UsageError(f"{prefix}{key}: unknown key; {hint}", param=f"{prefix}{key}")


def _typed(value: Any, hint: Any, key: str) -> Any:
    kind = getattr(hint, "__origin__", hint)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{key}: should be a {kind.__name__}, found {value!r}", param=key)
    if kind is list:
        return [_typed(item, get_args(hint)[0], key) for item in value]
    return value


# (key, smallest, largest) of everything that is a plain range.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("run.steps", 0, 1e12),
    ("run.max_minutes", 0, 1e7),
    ("run.log_every", 1, 1e9),
    ("run.checkpoint_every", 0, 1e12),
    ("run.checkpoint_minutes", 0, 1e7),
    ("run.keep", 1, 1e6),
    ("data.batch", 1, 1e6),
    ("data.micro_batch", 1, 1e6),
    ("data.max_length", 2, 1e7),
    ("data.length_multiple", 1, 4096),
    ("objective.beta", 1e-6, 1e3),
    ("objective.sft_weight", 0, 1e3),
    ("objective.t_min", 0, 1),
    ("objective.self_conditioning", 0, 1),
    ("objective.encoder_weight", 0, 1e3),
    ("objective.aux_weight", 0, 1e3),
    ("optim.lr", 0, 10),
    ("optim.muon_lr", 0, 10),
    ("optim.clip", 0, 1e6),
    ("optim.warmup", 0, 1e9),
    ("optim.decay", 0, 1),
    ("optim.final", 0, 1),
    ("optim.ema", 0, 0.999999),
    ("lora.rank", 0, 4096),
    ("lora.alpha", 0, 1e6),
)
_CHOICES: dict[str, tuple[str, ...]] = {
    "run.autocast": ("none", "bf16"),
    "objective.kind": ("sft", "dpo"),
    "optim.schedule": ("cosine", "linear"),
    "export.dtype": ("bf16", "fp32"),
    "lora.phases": ("both", "denoise"),
}


def _value(settings: Settings, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)


def _check(settings: Settings) -> None:
    for key, low, high in _RANGES:
        if not low <= _value(settings, key) <= high:
            raise UsageError(f"{key}: {_value(settings, key)} is not in {low:g} .. {high:g}", param=key)
    for key, allowed in _CHOICES.items():
        if _value(settings, key) not in allowed:
            raise UsageError(
                f"{key}: {_value(settings, key)!r} is not one of {', '.join(allowed)}", param=key
            )
    _check_together(settings)


def _check_together(s: Settings) -> None:
    if not s.run.folder:
        raise UsageError(
            "run.folder: missing; name the folder for checkpoints and the export", param="run.folder"
        )
    if not s.run.steps and not s.run.max_minutes:
        raise UsageError("run.steps: set it or run.max_minutes, else the run never ends", param="run.steps")
    if bool(s.model.base) == bool(s.model.config):
        raise UsageError(
            "model.base: give either base, a checkpoint to start from, or config, a folder with config.json",
            param="model.base",
        )
    if bool(s.data.source) == bool(s.data.files):
        raise UsageError("data.files: give either chat files or data.source", param="data.files")
    if s.data.batch % min(s.data.micro_batch, s.data.batch):
        raise UsageError(
            f"data.micro_batch: {s.data.micro_batch} does not divide data.batch = {s.data.batch}",
            param="data.micro_batch",
        )
    if s.run.recompute and s.run.compile:
        raise UsageError("run.compile: not together with run.recompute", param="run.compile")
    if s.lora.rank and s.run.compile:
        raise UsageError("run.compile: not together with lora.rank", param="run.compile")
    if s.objective.kind == "dpo" and not s.lora.rank:
        raise UsageError(
            "lora.rank: objective.kind = dpo compares an adapter with the model without it, so set it above "
            "0 (canvaslm finetune --objective dpo does)",
            param="lora.rank",
        )
    if len(s.optim.betas) != 2 or not all(0 <= b < 1 for b in s.optim.betas):
        raise UsageError(
            "optim.betas: two numbers in [0, 1) are needed, as in [0.95, 0.99]", param="optim.betas"
        )


def settings_to_dict(settings: Settings) -> dict[str, Any]:
    """The nested dictionaries that `settings_from_dict` reads back."""
    return dataclasses.asdict(settings)


__all__ = [
    "DataSettings",
    "ExportSettings",
    "LoraSettings",
    "ModelSettings",
    "ObjectiveSettings",
    "OptimSettings",
    "RunSettings",
    "Settings",
    "read_settings",
    "settings_from_dict",
    "settings_to_dict",
]
