"""What normalising means, in torch operators: the specification."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis; the mean in float32, the product in the weight's dtype."""
    return (F.rms_norm(x_TD.to(torch.float32), weight_D.shape, eps=eps).to(weight_D.dtype) * weight_D).to(x_TD.dtype)


def add_rms_norm(x_TD: Tensor, y_TD: Tensor, weight_D: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """The sum `x + y`, and it normalised."""
    sum_TD = x_TD + y_TD
    return sum_TD, rms_norm(sum_TD, weight_D, eps=eps)


def layer_norm(x_TD: Tensor, *, weight_D: Tensor | None, bias_D: Tensor | None, eps: float) -> Tensor:
    """x less its mean over its standard deviation (over the last axis, in float32), times the weight, plus the bias, if there
    are any."""
    return F.layer_norm(x_TD, x_TD.shape[-1:], weight_D, bias_D, eps)


def add_layer_norm(
    x_TD: Tensor, y_TD: Tensor, *, weight_D: Tensor | None, bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The sum `x + y`, and it normalised."""
    sum_TD = x_TD + y_TD
    return sum_TD, layer_norm(sum_TD, weight_D=weight_D, bias_D=bias_D, eps=eps)
