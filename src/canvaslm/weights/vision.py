"""The vision tower of a checkpoint: from its safetensors files, or from the mmproj GGUF beside a GGUF file.

All of it is checked before any is used: what is missing, left over or of another shape is one error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadConfig, BadModelFile
from ..model.vision.config import VisionConfig
from ..model.vision.names import from_hf, from_mmproj
from ..model.vision.tower import VisionTower
from ..ops.formats.quant_tensor import dequantise
from .gguf.file import GGUFFile
from .safetensors_.file import TensorFile
from .safetensors_.header import SafetensorsHeader, shown

_LISTED = 10  # problems that an error names
_PROJECTOR = "gemma4v"

# Our name of a tensor, its own name in the file, and what reads it.
Found = tuple[str | None, str, Callable[[], Tensor]]


def load_safetensors_tower(
    headers: Iterable[SafetensorsHeader], vision_config: Mapping[str, Any], text_hidden_size: int,
    dtype: torch.dtype = torch.float32,
) -> VisionTower:  # fmt: skip
    """From the files of a Hugging Face checkpoint; tensors of the text model are passed over.

    Raises BadConfig for `vision_config`, BadModelFile for weights that do not fit it.
    """
    config = VisionConfig.from_dict(vision_config)
    checked = list(headers)

    def found() -> Iterator[Found]:
        for header in checked:
            with TensorFile(header) as file:
                for name in header.tensors:
                    if (own := from_hf(name)) is not None:
                        yield own, name, lambda file=file, name=name: file.read(name)  # type: ignore[misc]

    where = str(checked[0].path) if checked else "the checkpoint"
    return _filled(VisionTower(config, text_hidden_size, dtype=dtype), found(), where)


def load_mmproj_tower(
    path: Path | str, text_hidden_size: int, dtype: torch.dtype = torch.float32
) -> VisionTower:
    """From an mmproj GGUF file of any format of tensors; what is quantised is unpacked.

    Raises BadModelFile for a file that is none, is broken, or belongs to a model of another size.
    """
    with GGUFFile(path) as file:
        config = _mmproj_config(file)
        made = VisionTower(config, text_hidden_size, dtype=dtype)
        return _filled(made, _mmproj_tensors(file, config), str(file.path))


def _mmproj_config(file: GGUFFile) -> VisionConfig:
    kind = file.text("clip.vision.projector_type", file.text("clip.projector_type", ""))
    if file.text("general.architecture", "") != "clip" or kind != _PROJECTOR:
        raise BadModelFile(
            f"{file.path}: is no vision tower of this model (clip.vision.projector_type is {shown(kind)}, "
            f"not '{_PROJECTOR}'); name the mmproj file that belongs to it"
        )
    key = "clip.vision.{}".format
    heads = file.integer(key("attention.head_count"))
    try:
        return VisionConfig.from_dict(
            {
                "hidden_size": file.integer(key("embedding_length")),
                "intermediate_size": file.integer(key("feed_forward_length")),
                "num_hidden_layers": file.integer(key("block_count")),
                "num_attention_heads": heads,
                "head_dim": file.info("v.blk.0.attn_q_norm.weight").shape[0],
                "patch_size": file.integer(key("patch_size")),
                "pooling_kernel_size": file.integer(key("projector.scale_factor"), 3),
                "position_embedding_size": file.info("v.position_embd.weight").shape[1],
                "rms_norm_eps": file.number(key("attention.layer_norm_epsilon"), 1e-6),
                "standardize": "v.std_bias" in file.tensors,
                "use_clipped_linears": "v.blk.0.attn_q.input_min" in file.tensors,
            }
        )
    except (BadConfig, IndexError) as error:
        raise BadModelFile(f"{file.path}: its metadata contradict each other: {error}") from error


def _mmproj_tensors(file: GGUFFile, config: VisionConfig) -> Iterator[Found]:
    for name, info in file.tensors.items():
        own = from_mmproj(name)

        def read(name: str = name, own: str | None = own, shape: tuple[int, ...] = info.shape) -> Tensor:
            tensor = file.tensor(name)
            values = dequantise(tensor.format, tensor.raw, tensor.shape)
            if own == "patch_embedder.input_proj.weight" and len(shape) == 4:
                return values.permute(0, 2, 3, 1).flatten(1)  # channels last, as pixels come
            return (
                values[0] if shape == (1,) and own is not None and own.endswith(("_min", "_max")) else values
            )

        yield own, name, read


def _filled(tower: VisionTower, found: Iterator[Found], where: str) -> VisionTower:
    wanted, seen, problems = tower.state_dict(), set[str](), []
    for own, name, read in found:
        if own not in wanted:
            problems.append(f"{shown(name)}: left over, the tower has no such weight")
            continue
        if own in seen:
            problems.append(f"{shown(name)}: the same weight a second time")
            continue
        seen.add(own)
        values = read()
        if values.shape != wanted[own].shape:
            problems.append(f"{name}: shape {list(values.shape)}, expected {list(wanted[own].shape)}")
        elif not _bounds(own) and not bool(values.float().isfinite().all()):
            problems.append(f"{name}: has NaN or infinite values")
        else:
            wanted[own].copy_(values)
    problems += [f"{name}: missing" for name in wanted if name not in seen]
    if problems:
        more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        lines = "\n  ".join([*problems[:_LISTED], *more])
        raise BadModelFile(f"{where}: the vision tower does not fit its config\n  {lines}")
    return tower.eval()


def _bounds(name: str) -> bool:
    """Whether a weight is a bound, which may be infinite."""
    return name.endswith(("put_min", "put_max"))


__all__ = ["load_mmproj_tower", "load_safetensors_tower"]
