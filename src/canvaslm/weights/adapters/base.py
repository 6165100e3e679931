"""What adapters' files need to know of the model that they are for."""

from __future__ import annotations

from torch import Tensor

from ...model.config import ModelConfig
from ..gguf.fields import read_gguf_config
from ..gguf.file import GGUFFile
from ..gguf.places import place_weights
from ..loading.plan import make_plan
from ..resolve import Checkpoint, read_config
from ..safetensors_.file import TensorFile
from ..safetensors_.header import read_header

_SCALE = ".router.per_expert_scale"


def base_config(checkpoint: Checkpoint) -> ModelConfig:
    """The sizes of a checkpoint's model. Raises as its readers do."""
    if checkpoint.kind != "gguf":
        return read_config(checkpoint)
    with GGUFFile(checkpoint.files[0]) as file:
        return read_gguf_config(file)


def expert_scales(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, Tensor]:
    """Every layer's scales of its experts, [E] by the weight's name, without reading other weights."""
    if checkpoint.kind == "gguf":
        with GGUFFile(checkpoint.files[0]) as file:
            sources = place_weights(file, config).sources
            return {
                name: file.tensor(found).dequantise()
                for name, (found, *_) in sources.items()
                if name.endswith(_SCALE)
            }
    headers = [read_header(path) for path in checkpoint.files]
    plan = make_plan(checkpoint, headers, config)
    scales = {}
    for name, info in plan.weights.items():
        if name.endswith(_SCALE):
            with TensorFile(info.path) as file:
                scales[name] = file.read(info.name)
    return scales


__all__ = ["base_config", "expert_scales"]
