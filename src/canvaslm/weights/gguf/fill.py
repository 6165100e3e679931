"""Puts every weight of a GGUF file into a model on the meta device: matrices quantised, the rest in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ...model.protocol import Model
from ...ops.backend import choose, find
from ...ops.cpu.repacked import BorrowedMemory, RepackedExperts, RepackedMatrix, repacked_bytes
from ...ops.cpu.repacker import STRETCH, Repacker
from ...ops.formats.quant_tensor import FORMATS, QuantTensor
from ..loading.empty import fill_with_memory
from ..loading.loaded import Progress
from ..packed.file import described
from .dequantised import dequantise_into
from .file import GGUFFile
from .places import Places

# The router's projection decides discretely: it is never rounded, whatever the file holds.
_KEPT_EXACT = ("router.proj.weight",)
# Looked up row by row as long as the model runs: our name, and the attribute of the model.
_TABLES = (("embed_tokens.weight", "embed_tokens"), ("lm_head.weight", "lm_head"))
_LARGE_PAGE = 2 << 20


def table_names(places: Places) -> frozenset[str]:
    """The file's tensors that are read as long as the model runs."""
    return frozenset(name for ours, _ in _TABLES for name in places.sources.get(ours, ()))


class FileRepacker(Repacker):
    """Packs into fresh memory, and gives the file's pages back stretch by stretch as it goes.

    With `drop` they leave the system's file cache too: where file and packed copy do not both fit, the system
    would else throw out what is not read yet. What is given back is what the next stretch is packed into; on
    a virtual machine that is ten times cheaper than memory the host has to find first (see docs/log.md).
    """

    def __init__(self, file: GGUFFile, drop: bool, tables: frozenset[str]) -> None:
        """tables: the file's tensors whose pages stay (see `table_names`)."""
        self.file, self.drop, self.tables = file, drop, tables
        self._names = {file.tensor(name).raw.data_ptr(): name for name in file.tensors}
        self._released: dict[str, int] = {}

    def passed(self, source: QuantTensor, count: int) -> None:
        name = self._names[source.raw.data_ptr()]
        self.file.will_need(name, count, STRETCH)
        if self.drop and name not in self.tables:
            # From a little before: a large page that two stretches share goes with the second.
            start = max(0, self._released.get(name, 0) - _LARGE_PAGE)
            self.file.release(name, start=start, stop=count, cache=True)
            self._released[name] = count


class RepackPlan(Repacker):
    """Notes what is asked for, and packs nothing."""

    def __init__(self) -> None:
        self.weights: dict[str, tuple[str, int]] = {}  # name -> kind and sizes, bytes

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.weights.values())

    def memory(self, name: str, kind: str, shape: tuple[int, ...]) -> BorrowedMemory:
        nbytes = repacked_bytes(kind, shape)
        self.weights[name] = described(kind, shape), nbytes
        return BorrowedMemory(0, nbytes, None)

    def finish(self, name: str, made: RepackedMatrix | RepackedExperts, repack: Callable[[], None]) -> None:
        pass


@dataclass
class Filler:
    """Fills `model` with what the table of kernels (`ops.backend`) chooses for each weight on `device`.

    Kernels that want their weights repacked get them from `repacker`; the others read the mapped file as long
    as the model runs, or on another device than the CPU a copy of it.
    """

    file: GGUFFile
    places: Places
    model: Model
    device: torch.device
    repacker: Repacker = field(default_factory=Repacker)
    progress: Progress | None = None
    done: int = 0

    def __post_init__(self) -> None:
        names = (name for sources in self.places.sources.values() for name in sources)
        self.total = sum(self.file.info(name).nbytes for name in names)
        self._left = dict(self.places.sources)

    def matrices(self) -> None:
        """All that stays quantised, in the order of the file: first what stands around the layers.

        What is one kernel's is known by the names of its weights: gate_up_proj and down_proj of experts,
        gate_proj, up_proj and down_proj of a gated MLP (in a module that has a place `fused` for its
        kernel), else a linear layer.
        """
        self._vocabulary()
        around = [name for name, _ in self.model.named_children() if name != "layers"]
        layers = [f"layers.{i}" for i in range(len(self.model.layers))]
        for part in (*around, *layers):
            for path, module in list(self.model.get_submodule(part).named_modules(prefix=part)):
                if f"{path}.gate_up_proj" in self._left:
                    self._experts(path)
                elif f"{path}.gate_proj.weight" in self._left and hasattr(module, "fused"):
                    self._mlp(path, module)
                elif f"{path}.weight" in self._left and self._is_matrix(f"{path}.weight"):
                    self._linear(path)

    @torch.no_grad()
    def floats(self) -> None:
        """What is left, in fp32: norms, scales, the router, and whatever the file holds unquantised."""
        fill_with_memory(self.model, torch.float32, self.device)
        targets = self.model.state_dict(keep_vars=True)
        for ours, names in self._left.items():
            target = targets[ours].detach()
            parts = [target] if len(names) == 1 else target.chunk(2, dim=1)
            for name, part in zip(names, parts, strict=True):
                dequantise_into(self.file, name, part, lambda _: None)
                self._count(name)
        for name, other in self.places.stand_ins.items():
            targets[name].copy_(targets[other])

    def _quantised(self, name: str) -> bool:
        return FORMATS[self.file.info(name).format].block > 1

    def _is_matrix(self, ours: str) -> bool:
        names = self.places.sources[ours]
        plain = any(ours.endswith(end) for end in _KEPT_EXACT)
        return not plain and len(names) == 1 and self._quantised(names[0])

    def _tensor(self, name: str) -> QuantTensor:
        return self.file.tensor(name).to(self.device)

    def _count(self, *names: str, release: bool = False) -> None:
        """Reports bytes read, and gives the file's pages back if the bytes were copied."""
        for name in names:
            self.done += self.file.info(name).nbytes
            if release:
                self.file.release(name)
        if self.progress is not None:
            self.progress(self.done, self.total)

    def _linear(self, path: str) -> None:
        (name,) = self._left.pop(f"{path}.weight")
        weight = self._tensor(name)
        kernel = choose("linear", self.device, weight)
        self._replace(path, kernel.make(path, weight, self.repacker))
        self._count(name, release=kernel.repacks)

    def _replace(self, path: str, module: nn.Module) -> None:
        parent, _, child = path.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

    def _mlp(self, path: str, mlp: nn.Module) -> None:
        """One fused block, where a kernel for these three weights exists."""
        ours = [f"{path}.{part}_proj.weight" for part in ("gate", "up", "down")]
        names = [self._left[name][0] for name in ours]
        if not all(self._is_matrix(name) for name in ours):
            return
        weights = [self._tensor(name) for name in names]
        kernel = find("gated_mlp", self.device, *weights)
        if kernel is None:
            return
        mlp.fused = kernel.make(path, *weights, self.repacker)
        del mlp.gate_proj, mlp.up_proj, mlp.down_proj
        for name in ours:
            del self._left[name]
        self._count(*names, release=kernel.repacks)

    def _experts(self, path: str) -> None:
        names = [f"{path}.gate_up_proj", f"{path}.down_proj"]
        up, down = (self._left[name] for name in names)
        if not all(self._quantised(name) for name in (*up, *down)):
            return
        for name in names:
            del self._left[name]
        weights = tuple(self._tensor(name) for name in up), self._tensor(down[0])
        kernel = choose("experts", self.device, *weights)
        self._replace(path, kernel.make(path, *weights, self.repacker))
        self._count(*up, *down, release=kernel.repacks)

    def _vocabulary(self) -> None:
        for ours, attribute in _TABLES:
            if ours not in self._left or not self._is_matrix(ours):
                continue
            (name,) = self._left.pop(ours)
            table = self._tensor(name)
            kernel = choose("predict", self.device, table)
            setattr(self.model, attribute, kernel.make(attribute, table, self.repacker))
            self._count(name, release=kernel.repacks)


__all__ = ["FileRepacker", "Filler", "RepackPlan", "table_names"]
