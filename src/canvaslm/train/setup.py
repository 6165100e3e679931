"""From Settings to a Trainer: loads or makes the model, finds the data, and says how to export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UsageError
from ..model import registry
from ..model.protocol import Model
from ..weights.loading.load import load_model
from ..weights.resolve import read_json, resolve
from ..weights.safetensors_.export import save_folder
from .data import Source
from .settings import Settings
from .sft import Export, Trainer
from .sources import chat_encoder, load_source, read_chats

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_trainer(settings: Settings) -> Trainer:
    """Everything a run needs. Raises the errors of config, checkpoint, tokenizer and data as they are, and
    UsageError for an adapter, which `train.finetune` trains and exports."""
    if settings.lora.rank:
        raise UsageError(
            "lora.rank: adapters are trained by canvaslm finetune; here all weights are", param="lora.rank"
        )
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    model, folder = _model(settings)
    return Trainer(model, _source(settings, folder), settings, export=_export(settings, folder))


def _model(settings: Settings) -> tuple[Model, Path]:
    """The model in fp32 and the folder its config and tokenizer come from."""
    if settings.model.base:
        checkpoint = resolve(settings.model.base)
        if checkpoint.kind == "gguf":
            raise UsageError(
                "model.base: a GGUF file cannot be trained; name the safetensors folder", param="model.base"
            )
        return load_model(checkpoint, dtype=torch.float32).model, checkpoint.folder
    folder = Path(settings.model.config)
    torch.manual_seed(settings.run.seed)
    model = registry.build(registry.read_config(read_json(folder / "config.json")))
    initialise(model)
    return model, folder


@torch.no_grad()
def initialise(model: Model) -> None:
    """Fresh weights: matrices N(0, 1/fan_in), embedding N(0, 1/H), norms 1, q and k
    norms 1.5 * head_dim^-1/4.

    The attention's softmax scale is 1, so unit q and k norms would give scores of standard
    deviation sqrt(head_dim).
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.fill_(1.5 * parameter.shape[0] ** -0.25)
        elif parameter.ndim >= 2:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        else:
            parameter.fill_(1.0)


def _source(settings: Settings, folder: Path) -> Source:
    if settings.data.source:
        return load_source(settings.data.source, settings.data.options)
    from ..text.chat import ChatTemplate
    from ..text.tokenizer import Tokenizer

    family = registry.family_of(registry.read_config(read_json(folder / "config.json")))
    tokenizer = Tokenizer.from_folder(folder, family.markers)
    template = ChatTemplate.from_folder(folder, tokenizer)
    turn_end = tokenizer.marker_id(tokenizer.markers.turn_end)
    if turn_end is None:
        raise UsageError(
            f"data.files: the tokenizer in {folder} has no {tokenizer.markers.turn_end}, which closes a turn",
            param="data.files",
        )
    return read_chats(settings.data.files, chat_encoder(tokenizer, template, turn_end))


def _export(settings: Settings, folder: Path) -> Export:
    """Writes `run.folder/export`: weights, config.json as it came, generation
    defaults and tokenizer files."""
    config: dict[str, Any] = read_json(folder / "config.json")
    generation = {**_generation(folder), **settings.export.generation}
    files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    dtype = torch.bfloat16 if settings.export.dtype == "bf16" else torch.float32

    def export(model: nn.Module) -> None:
        assert isinstance(model, Model)
        save_folder(
            model, config, Path(settings.run.folder) / "export",
            dtype=dtype, generation=generation or None, files=files, overwrite=True,
        )  # fmt: skip

    return export


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


__all__ = ["initialise", "make_trainer"]
