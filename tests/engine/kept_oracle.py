"""Denoising with kept places, written out plainly: one canvas, no cache, no batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from canvaslm.diffusion import Canvas, RowParams, advance, start_canvas
from canvaslm.engine.reference import predict_plainly
from canvaslm.model import Model, PlainContext
from canvaslm.types import Params


class KeepingContext(PlainContext):
    """A canvas sees, of places that are not `computed`, the keys and values that it last had of them."""

    computed: Tensor | None = None

    def __init__(self, model: Model) -> None:
        super().__init__(model.config)
        self.own: dict[int, tuple[Tensor, Tensor]] = {}

    def denoise_attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        if layer in self.own and self.computed is not None:
            where = self.computed[:, None]
            k, v = (torch.where(where, new, old) for new, old in zip((k, v), self.own[layer], strict=True))
        self.own[layer] = k, v
        return super().denoise_attention(layer, q, k, v, positions)


def keep_generate(
    model: Model,
    prompt: Sequence[int],
    params: Params,
    ends: Sequence[int],
    fewest: int,
    given: Mapping[int, int] | None = None,
) -> tuple[list[int], list[int]]:
    """Tokens of the first canvas, and how many places each of its steps computed."""
    assert params.seed is not None
    places, row = model.config.canvas_length, RowParams.of(params, ends)
    canvas = start_canvas(params.seed, 0, places, model.config.vocab_size, given=given)
    memory, counts = KeepingContext(model), []
    model.encode(torch.tensor([list(prompt)]), torch.arange(len(prompt))[None], memory)
    while not int(canvas.stop):
        computed = ~canvas.kept[0]
        for place in range(places):  # as many as are computed to the same bits as all
            if int(computed.sum()) < fewest:
                computed[place] = True
        memory.computed = computed
        counts.append(int(computed.sum()))
        canvas = _step(model, canvas, memory, params, row, len(prompt))
    return canvas.argmax[0].tolist(), counts


def _step(
    model: Model, canvas: Canvas, memory: KeepingContext, params: Params, row: RowParams, start: int
) -> Canvas:
    positions = start + torch.arange(canvas.tokens.shape[1])[None]
    hidden = model.denoise(canvas.tokens, positions, memory, canvas.soft)[0]
    said = predict_plainly(model, hidden, params, canvas, int(canvas.step))
    kept = canvas.kept
    if bool(kept.any()):
        assert canvas.soft is not None and said.soft is not None and canvas.logprob is not None
        said = replace(
            said,
            argmax=torch.where(kept, canvas.argmax, said.argmax),
            soft=torch.where(kept[..., None], canvas.soft, said.soft),
            logprob=torch.where(kept, canvas.logprob, said.logprob),
        )
    return advance(canvas, said, row, model.config.vocab_size)


__all__ = ["keep_generate"]
