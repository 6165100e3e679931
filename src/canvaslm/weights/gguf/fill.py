"""Puts every weight of a GGUF file into a model on the meta device: matrices quantised, the rest in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ...model.diffusion_gemma.gguf_names import to_gguf
from ...model.diffusion_gemma.text import GatedMLP, TextLayer
from ...model.protocol import Model
from ...ops.cpu.repacked import BorrowedMemory, RepackedExperts, RepackedMatrix, repacked_bytes
from ...ops.cpu.repacker import STRETCH, Repacker
from ...ops.formats.quant_tensor import FORMATS, QuantTensor
from ...ops.quantised import QuantExperts, QuantLinear, QuantVocabulary
from ..loading.empty import fill_with_memory
from ..loading.loaded import Progress
from ..packed.file import described
from .dequantised import dequantise_into
from .file import GGUFFile
from .places import Places

# The router's projection decides discretely: it is never rounded, whatever the file holds.
_KEPT_EXACT = ("router.proj.weight",)
# Looked up row by row as long as the model runs.
_TABLES = (("embed_tokens.weight", "embed_tokens"), ("lm_head.weight", "lm_head"))
_TABLE_NAMES = frozenset(to_gguf(ours) for ours, _ in _TABLES)
_LARGE_PAGE = 2 << 20


class FileRepacker(Repacker):
    """Packs into fresh memory, and gives the file's pages back stretch by stretch as it goes.

    With `drop` they leave the system's file cache too: where file and packed copy do not both fit, the system would else
    throw out what is not read yet. What is given back is what the next stretch is packed into; on a virtual machine
    that is ten times cheaper than memory the host has to find first (see docs/log.md).
    """

    def __init__(self, file: GGUFFile, drop: bool) -> None:
        self.file, self.drop = file, drop
        self._names = {file.tensor(name).raw.data_ptr(): name for name in file.tensors}
        self._released: dict[str, int] = {}

    def passed(self, source: QuantTensor, count: int) -> None:
        name = self._names[source.raw.data_ptr()]
        self.file.will_need(name, count, STRETCH)
        if self.drop and name not in _TABLE_NAMES:
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
    """Fills `model`. `fast`: for the native kernels, by way of `packer`; otherwise weights stay in the mapped file."""

    file: GGUFFile
    places: Places
    model: Model
    fast: bool
    packer: Repacker = field(default_factory=Repacker)
    progress: Progress | None = None
    done: int = 0

    def __post_init__(self) -> None:
        names = (name for sources in self.places.sources.values() for name in sources)
        self.total = sum(self.file.info(name).nbytes for name in names)
        self._left = dict(self.places.sources)

    def matrices(self) -> None:
        """All that stays quantised, in the order of the file: blocks with kernels of their own whole."""
        self._vocabulary()
        assert isinstance(self.model.self_conditioning, GatedMLP)
        self._mlp("self_conditioning", self.model.self_conditioning)
        for i, layer in enumerate(self.model.layers):
            assert isinstance(layer, TextLayer)
            prefix = f"layers.{i}."
            self._linears(f"{prefix}self_attn.")
            self._mlp(f"{prefix}mlp", layer.mlp)
            self._experts(f"{prefix}experts", layer)
        self._linears("")

    @torch.no_grad()
    def floats(self) -> None:
        """What is left, in fp32: norms, scales, the router, and whatever the file holds unquantised."""
        fill_with_memory(self.model, torch.float32)
        targets = self.model.state_dict(keep_vars=True)
        for ours, names in self._left.items():
            target = targets[ours].detach()
            parts = [target] if len(names) == 1 else target.chunk(2, dim=1)
            for name, part in zip(names, parts, strict=True):
                dequantise_into(self.file, name, part, lambda _: None)
                self._count(name)
        for name, other in self.places.stand_ins.items():
            targets[name].copy_(targets[other])

    def tables(self) -> list[str]:
        """The file's tensors that are read as long as the model runs."""
        return [name for name in _TABLE_NAMES if name in self.file.tensors]

    def _quantised(self, name: str) -> bool:
        return FORMATS[self.file.info(name).format].block > 1

    def _is_matrix(self, ours: str) -> bool:
        names = self.places.sources[ours]
        plain = any(ours.endswith(end) for end in _KEPT_EXACT)
        return not plain and len(names) == 1 and self._quantised(names[0])

    def _count(self, *names: str) -> None:
        """Reports bytes read, and gives the file's pages back if the bytes were packed."""
        for name in names:
            self.done += self.file.info(name).nbytes
            if self.fast:
                self.file.release(name)
        if self.progress is not None:
            self.progress(self.done, self.total)

    def _linears(self, prefix: str) -> None:
        for ours in [n for n in self._left if n.startswith(prefix) and self._is_matrix(n)]:
            (name,) = self._left.pop(ours)
            path = ours.removesuffix(".weight")
            parent, _, child = path.rpartition(".")
            module = self._make_linear(path, self.file.tensor(name))
            setattr(self.model.get_submodule(parent), child, module)
            self._count(name)

    def _make_linear(self, path: str, weight: QuantTensor) -> nn.Module:
        if not self.fast:
            return QuantLinear(weight)
        from ...ops.cpu.layers import RepackedLinear

        return RepackedLinear(path, weight, self.packer)

    def _mlp(self, path: str, mlp: GatedMLP) -> None:
        """One fused block, where gate and up are of one format and the sizes suit the kernel."""
        ours = [f"{path}.{part}_proj.weight" for part in ("gate", "up", "down")]
        names = [self._left[name][0] for name in ours]
        gate, up, down = (self.file.tensor(name) for name in names)
        same = gate.format == up.format and down.shape[1] % 32 == 0
        if not (self.fast and same and all(self._is_matrix(name) for name in ours)):
            return
        from ...ops.cpu.layers import RepackedMLP

        mlp.fused = RepackedMLP(path, gate, up, down, self.packer)
        del mlp.gate_proj, mlp.up_proj, mlp.down_proj
        for name in ours:
            del self._left[name]
        self._count(*names)

    def _experts(self, path: str, layer: TextLayer) -> None:
        names = [f"{path}.gate_up_proj", f"{path}.down_proj"]
        up, down = (self._left[name] for name in names)
        if not all(self._quantised(name) for name in (*up, *down)):
            return
        for name in names:
            del self._left[name]
        parts, inner = tuple(self.file.tensor(name) for name in up), self.file.tensor(down[0])
        same = len({part.format for part in parts}) == 1 and inner.shape[-1] % 32 == 0
        if self.fast and same:
            from ...ops.cpu.layers import RepackedExpertsLayer

            layer.experts = RepackedExpertsLayer(path, parts, inner, self.packer)
        else:
            layer.experts = QuantExperts(parts, inner)
        self._count(*up, *down)

    def _vocabulary(self) -> None:
        for ours, attribute in _TABLES:
            if ours not in self._left or not self._is_matrix(ours):
                continue
            (name,) = self._left.pop(ours)
            table = self.file.tensor(name)
            if self.fast:
                from ...ops.cpu.layers import RepackedVocabulary

                setattr(self.model, attribute, RepackedVocabulary(attribute, table, self.packer))
            else:
                setattr(self.model, attribute, QuantVocabulary(table))
            self._count(name)


__all__ = ["FileRepacker", "Filler", "RepackPlan"]
