"""The plan of memory against what autograd keeps, and what is told when it is too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from canvaslm.train import memory
from canvaslm.train.data import Shuffled, TrainingExample
from canvaslm.train.memory import plan_memory, weight_count
from canvaslm.train.settings import settings_from_dict
from canvaslm.train.sft import Trainer
from tests.tiny import tiny_model

LENGTH = 40
EXAMPLES = [TrainingExample((2, *range(10, 9 + LENGTH - 8)), (10,) * 7 + (7,)) for _ in range(8)]
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_layers": 4,
    "layer_types": ("full_attention",) * 4,
}


def trainer(folder: Path, *, recompute: bool = False, batch: int = 4, **lora: Any) -> Trainer:
    chosen = settings_from_dict(
        {
            "run": {"folder": str(folder), "steps": 6, "recompute": recompute}, "model": {"base": "unused"},
            "data": {"source": "unused", "batch": batch, "length_multiple": 16}, "lora": {"rank": 3, **lora},
        }
    )  # fmt: skip
    return Trainer(tiny_model(1, **SIZES), Shuffled(EXAMPLES), chosen)


def kept_bytes(made: Trainer) -> int:
    """Of the tensors that one micro-batch's graph holds, weights apart."""
    weights = (*made.model.parameters(), *made.model.buffers(), *made.trained.parameters())
    known, kept = {p.untyped_storage().data_ptr() for p in weights}, list[Any]()

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage())  # held, so that no address is used twice
        return tensor

    batch = made.batcher.step(0)[0]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        made.objective.terms(batch, made.objective.draw(batch, 0, 0, 0))
    sizes = {storage.data_ptr(): storage.nbytes() for storage in kept}
    return sum(size for address, size in sizes.items() if address not in known)


@pytest.mark.parametrize(
    ("lora", "recompute", "most"),
    [
        ({}, False, 2.0),
        ({}, True, 7.0),  # a layer whole besides, which these few layers make a large part
        ({"phases": "denoise"}, False, 5.0),  # as does a layer of the encoder
        ({"targets": ["attention", "mlp", "experts"]}, False, 2.0),
    ],
)
def test_the_plan_follows_what_is_kept(
    tmp_path: Path, lora: dict[str, Any], recompute: bool, most: float
) -> None:
    for batch in (1, 4):
        made = trainer(tmp_path, recompute=recompute, batch=batch, **lora)
        planned, kept = plan_memory(made, LENGTH).activations - memory._START, kept_bytes(made)
        assert kept < planned < most * kept, (planned, kept)


def test_recomputing_and_canvases_alone_take_less(tmp_path: Path) -> None:
    whole = plan_memory(trainer(tmp_path), LENGTH).activations
    assert plan_memory(trainer(tmp_path, recompute=True), LENGTH).activations < whole
    assert plan_memory(trainer(tmp_path, phases="denoise"), LENGTH).activations < whole


def test_what_is_short_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path)
    for free, short in ((10**12, False), (10**6, True), (None, False)):
        monkeypatch.setattr(memory, "available_memory", lambda device, free=free: free)
        assert plan_memory(made, LENGTH).is_short == short


def test_all_weights_are_counted(tmp_path: Path) -> None:
    model = tiny_model(1)
    assert weight_count(model) == sum(p.numel() for p in model.parameters())
