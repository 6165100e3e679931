"""How much memory a run takes, by arithmetic: told before anything is trained.

Figures a token are counts of what autograd keeps of one layer, fitted to models of many sizes; docs/log.md
compares the sums with peaks that were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..model.protocol import Model
from ..ops import head_loss
from ..ops.cpu.repacked import RepackedExperts, RepackedMatrix
from ..ops.formats.quant_tensor import QuantTensor
from ..ops.frozen import SLICE_VALUES
from ..weights.loading.memory import available_memory, gigabytes
from .objective import head_in_tiles

if TYPE_CHECKING:
    from .sft import Trainer

_OF_ADAM = 16  # bytes of a trained parameter: weight, gradient and two moments in fp32
_START = 15_000_000  # what the first pass back loads and keeps, whatever the model
_PACKED = (QuantTensor, RepackedMatrix, RepackedExperts)
_SCATTERED = 1.6  # of activations on a CPU: freed blocks between those in use are no memory of the system's


@dataclass(frozen=True)
class TuningMemory:
    """Bytes that a run takes, by arithmetic: see `plan_memory`."""

    weights: int
    trained: int
    activations: int
    available: int | None

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.activations

    @property
    def is_short(self) -> bool:
        """Whether more is needed than is free. The weights lie in memory already."""
        return self.available is not None and self.trained + self.activations > self.available

    def text(self) -> str:
        parts = ", ".join(
            f"{name} {gigabytes(size)}"
            for name, size in (
                ("weights", self.weights),
                ("what is trained", self.trained),
                ("activations", self.activations),
            )
        )
        free = "" if self.available is None else f"; {gigabytes(self.available)} free beside the weights"
        return f"memory: about {gigabytes(self.total)} ({parts}{free})"


def plan_memory(trainer: Trainer, longest: int) -> TuningMemory:
    """Weights as they lie; 16 bytes a trained parameter; activations of a micro-batch of the longest
    examples, as the graph keeps them. longest: tokens of prompt and answer."""
    run = trainer.settings.run
    trained = sum(p.numel() for p in trainer.trained.parameters() if p.requires_grad)
    kept = 4 * _kept(trainer, longest)
    if not run.device.startswith("cuda"):
        kept = int(_SCATTERED * kept)
    return TuningMemory(
        weight_bytes(trainer.model), _OF_ADAM * trained, _START + kept, available_memory(run.device)
    )


def _kept(trainer: Trainer, longest: int) -> int:
    """Numbers that a pass keeps for the way back, and makes on it."""
    config, run, data = trainer.model.config, trainer.settings.run, trainer.settings.data
    lora, model = trainer.settings.lora, trainer.model
    both = not lora.rank or lora.phases == "both"
    rows, canvas = min(data.micro_batch, data.batch) * trainer.objective.answers, config.canvas_length
    whole = min(longest, data.max_length) + canvas - 1  # with the fill of the last block
    length = -(-whole // data.length_multiple) * data.length_multiple
    encoded = length if both else 0
    tokens, pairs = encoded + canvas, encoded * length + canvas * (length + canvas)
    layers = range(config.num_layers)
    one, inputs = (sum(_a_token(trainer, layer, held) for layer in layers) for held in (False, True))
    per_token = inputs + one // config.num_layers if run.recompute else one
    keys = sum(2 * config.kv_heads_of(layer) * config.head_dim_of(layer) for layer in layers)
    # Of an encoder without gradients: one layer at a time, keys and values, and these before a canvas's own.
    of_encoder = 0 if both else length * (one // config.num_layers + 2 * keys)
    answer = min(longest, encoded)  # places of the encoder's loss: less, where prompts are long
    columns = min(head_loss.TILE, config.vocab_size) if head_in_tiles(model) else config.vocab_size
    logits = 3 * columns * (canvas + answer)
    kept = rows * (tokens * per_token + of_encoder + config.num_layers * pairs + logits)
    return kept + (2 * SLICE_VALUES if _packed(model) else 0)


def _a_token(trainer: Trainer, layer: int, held: bool) -> int:
    """Of one token in one layer; held: with `run.recompute`, only what the layer is computed from again."""
    config: Any = trainer.model.config
    hidden, head = config.hidden_size, config.head_dim_of(layer)
    queries, keys = config.num_heads * head, config.kv_heads_of(layer) * head
    if held:
        return 2 * hidden + 3 * queries + 4 * keys
    chosen, _ = config.active_experts()
    inner = chosen * getattr(config, "moe_intermediate_size", 0)
    adapted = "experts" in trainer.settings.lora.targets and trainer.settings.lora.rank > 0
    dense = 8 * hidden + 4 * queries + 6 * keys + 4 * getattr(config, "intermediate_size", 4 * hidden)
    # One expert after the other keeps as much, but in small pieces, which lie closer.
    return dense + (1 if adapted else 2) * chosen * hidden + (3 if adapted else 4) * inner


def _packed(model: Model) -> list[QuantTensor | RepackedMatrix | RepackedExperts]:
    """What stays quantised, each once."""
    values = (value for module in model.modules() for value in vars(module).values())
    parts = (part for v in values for part in (v if isinstance(v, tuple) else (v,)))
    return list({id(part): part for part in parts if isinstance(part, _PACKED)}.values())


def weight_bytes(model: Model) -> int:
    """Floats, and what stays quantised."""
    floats = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    return floats + sum(part.nbytes for part in _packed(model))


def weight_count(model: Model) -> int:
    """Numbers, quantised ones too."""
    floats = sum(p.numel() for p in model.parameters())
    return floats + sum(_numbers(part) for part in _packed(model))


def _numbers(part: QuantTensor | RepackedMatrix | RepackedExperts) -> int:
    if isinstance(part, QuantTensor):
        return math.prod(part.shape)
    return part.n * part.k * (part.experts if isinstance(part, RepackedExperts) else 1)


__all__ = ["TuningMemory", "plan_memory", "weight_bytes", "weight_count"]
