"""Muon for the matrices of the layers, Adam for the embedding and the norms, in float32.

Muon: momentum, then the nearest orthogonal matrix by a Newton-Schulz iteration (Keller Jordan, "Muon: an optimizer for hidden
layers in neural networks", 2024). A small model learns in about half as many steps as with Adam alone. Matrices of one
shape are turned together.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Optimizer:
    """Both optimizers over a model; `state` is all that resuming needs."""

    def __init__(self, model: nn.Module, *, matrix_rate: float, other_rate: float, weight_decay: float = 0.01) -> None:
        self._matrix_rate, self._other_rate, self._decay = matrix_rate, other_rate, weight_decay
        self._matrices: dict[torch.Size, list[str]] = defaultdict(list)
        self._parameters = dict(model.named_parameters())
        for name, parameter in self._parameters.items():
            if parameter.dim() == 2 and "embed" not in name:
                self._matrices[parameter.shape].append(name)
        in_muon = {name for names in self._matrices.values() for name in names}
        self._others = [name for name in self._parameters if name not in in_muon]
        self.state = {f"{name}.momentum": torch.zeros_like(parameter) for name, parameter in self._parameters.items()}
        self.state |= {f"{name}.square": torch.zeros_like(self._parameters[name]) for name in self._others}

    def tasks(self, number: int, gradients: Mapping[str, Tensor], *, share: float) -> list[Callable[[], None]]:
        """Step number 1, 2, ... with `share` of the full learning rates: parts that may run side by side, the longest first."""
        turns = [partial(self._turn, names, gradients, rate=self._matrix_rate * share) for names in self._matrices.values()]
        rate = self._other_rate * share
        return [*turns, *(partial(self._adam, name, gradients[name], number=number, rate=rate) for name in self._others)]

    @torch.no_grad()
    def _turn(self, names: list[str], gradients: Mapping[str, Tensor], *, rate: float) -> None:
        updates = []
        for name in names:
            gradient, momentum = gradients[name], self.state[f"{name}.momentum"]
            momentum.lerp_(gradient, 1 - MOMENTUM)
            updates.append(gradient.lerp(momentum, MOMENTUM))  # Nesterov
        turned = orthogonal(torch.stack(updates))
        scale = max(1.0, turned.shape[1] / turned.shape[2]) ** 0.5
        for name, update in zip(names, turned, strict=True):
            self._parameters[name].mul_(1 - rate * self._decay).add_(update, alpha=-rate * scale)

    @torch.no_grad()
    def _adam(self, name: str, gradient: Tensor, *, number: int, rate: float) -> None:
        momentum, square = self.state[f"{name}.momentum"], self.state[f"{name}.square"]
        momentum.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.02)
        size = (square / (1 - 0.98**number)).sqrt() + 1e-8
        self._parameters[name].sub_(momentum / (1 - 0.9**number) / size, alpha=rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest orthogonal matrix to each of [N, rows, columns]."""
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(1, 2) if is_tall else x
