"""Optimisers, learning-rate schedule and weight averaging.

Muon takes the hidden matrices (experts one by one, out of their 3-D tensors); AdamW takes embeddings, head,
norms, scales and router. Muon: Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .settings import OptimSettings

# Coefficients of the quintic iteration that pushes singular values towards 1 (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Newton-Schulz: [N, rows, columns] -> about U V^T of each, singular values within about 0.7 .. 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised. Every parameter is a matrix [r, c] or a
    stack of them [E, r, c].

    `lr` is the size of the update's singular values; tall matrices get sqrt(rows / columns) times as much.
    `low_precision` iterates in bf16, which changes the singular values by a percent.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        low_precision: bool = False,
    ) -> None:
        self.dtype = torch.bfloat16 if low_precision else torch.float32
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient. Matrices of one shape are iterated together."""
        for group in self.param_groups:
            for same in _by_shape(p for p in group["params"] if p.grad is not None).values():
                directions = torch.cat([self._direction(p, group["momentum"]) for p in same])
                updates = orthogonalised(directions.to(self.dtype)).float()
                scale = max(1.0, updates.shape[-2] / updates.shape[-1]) ** 0.5
                self._apply(same, updates, group["lr"] * scale, 1 - group["lr"] * group["weight_decay"])

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov momentum as a stack [E, r, c]."""
        gradient = parameter.grad
        assert gradient is not None
        buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(buffer, momentum)
        return direction if direction.ndim == 3 else direction[None]

    @staticmethod
    def _apply(parameters: list[nn.Parameter], updates: Tensor, lr: float, keep: float) -> None:
        start = 0
        for parameter in parameters:
            count = parameter.shape[0] if parameter.ndim == 3 else 1
            parameter.mul_(keep).add_(updates[start : start + count].view_as(parameter), alpha=-lr)
            start += count


def _by_shape(parameters: Iterable[nn.Parameter]) -> dict[torch.Size, list[nn.Parameter]]:
    shapes: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape[-2:], []).append(parameter)
    return shapes


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes this parameter: hidden matrices, but not embedding, head or router."""
    return parameter.ndim >= 2 and not any(part in name for part in ("embed_tokens", "lm_head", "router"))


class Optimizers:
    """Muon and AdamW over one model, driven as one. Parameter states are addressed by parameter name."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        settings: OptimSettings,
        *,
        low_precision: bool = False,
    ) -> None:
        self.named = {name: p for name, p in named if p.requires_grad}
        self.settings = settings
        matrices = {n: p for n, p in self.named.items() if settings.muon_lr > 0 and is_matrix(n, p)}
        rest = [p for n, p in self.named.items() if n not in matrices]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = []
        if matrices:
            muon = Muon(
                matrices.values(),
                settings.muon_lr,
                settings.muon_momentum,
                settings.weight_decay,
                low_precision=low_precision,
            )
            self.parts.append((muon, settings.muon_lr))
        if rest:
            beta1, beta2 = settings.betas
            adam = torch.optim.AdamW(
                rest, settings.lr, (beta1, beta2), weight_decay=settings.weight_decay, foreach=True
            )
            self.parts.append((adam, settings.lr))

    def clip(self) -> Tensor:
        """Clips the gradients to the norm wanted (0 = not at all); returns the norm before."""
        limit = self.settings.clip or math.inf
        return nn.utils.clip_grad_norm_(self.named.values(), limit, foreach=True)

    def step(self, factor: float) -> None:
        """Updates with `factor` times the peak learning rates, then forgets the gradients."""
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All state tensors as `parameter name/entry`."""
        return {f"{name}/{key}": torch.as_tensor(value) for name, key, value in self._entries()}

    def _entries(self) -> Iterator[tuple[str, str, Tensor]]:
        for optimizer, _ in self.parts:
            for name, parameter in self.named.items():
                for key, value in optimizer.state.get(parameter, {}).items():
                    yield name, key, value

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave. Raises KeyError for a parameter that is not there."""
        owner = {
            id(p): optimizer
            for optimizer, _ in self.parts
            for g in optimizer.param_groups
            for p in g["params"]
        }
        for path, value in tensors.items():
            name, _, key = path.rpartition("/")
            parameter = self.named[name]
            owner[id(parameter)].state[parameter][key] = value.to(
                parameter.device if value.ndim else "cpu"
            ).clone()


def factor(settings: OptimSettings, step: int, progress: float) -> float:
    """Share of the peak learning rate at 0-based `step`; `progress` is the share of the run that is done.

    Linear warm-up over `warmup` steps; then cosine down to `final`, or constant and
    linear over the last `decay`.
    """
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    progress = min(max(progress, 0.0), 1.0)
    if settings.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = min(1.0, (1 - progress) / settings.decay) if settings.decay else 1.0
    return warm * (settings.final + (1 - settings.final) * left)


class Average:
    """Exponential moving average of a model's weights and buffers, in fp32.

    The first steps average less, min(decay, (1 + n) / (10 + n)), so that the start is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.tensors = {name: value.detach().float().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves towards the model's present weights."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        now = [value.float() for value in model.state_dict().values()]
        torch._foreach_lerp_(list(self.tensors.values()), now, 1 - decay)


__all__ = ["Average", "Muon", "Optimizers", "factor", "is_matrix", "orthogonalised"]
