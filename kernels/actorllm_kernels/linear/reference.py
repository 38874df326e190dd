"""What the linears compute, in plain torch operators: the specification of the kernels, and what runs without them.

Weights lie in panels: the weights of `PANEL` outputs for one input are neighbours, so that a product reads memory in
one direction. Legend: T rows (tokens), I inputs, O outputs, P panels, B = PANEL outputs of one panel.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

PANEL = 16


def bf16_codes(w_OI: Tensor) -> Tensor:
    """[O, I] bfloat16, rounded to nearest even."""
    return w_OI.to(torch.bfloat16)


def pack_bf16(w_OI: Tensor) -> Tensor:
    """[P, I, B] bfloat16: the weights in panels, the last one filled up with zeros."""
    num_outputs, num_inputs = w_OI.shape
    whole = pad(w_OI, (0, 0, 0, -num_outputs % PANEL))
    return whole.view(len(whole) // PANEL, PANEL, num_inputs).transpose(1, 2).contiguous()


def rows_bf16(packed_PIB: Tensor, outputs: Tensor) -> Tensor:
    """[len(outputs), I] float32: rows of the matrix that was packed."""
    return packed_PIB[outputs // PANEL, :, outputs % PANEL].to(torch.float32)


def linear_bf16(x_TI: Tensor, packed_PIB: Tensor, num_outputs: int) -> Tensor:
    """[T, O] float32: `x @ w.T` of float32 rows and packed bfloat16 weights, as if the weights were float32."""
    w_OI = packed_PIB.to(torch.float32).transpose(1, 2).flatten(0, 1)
    return x_TI @ w_OI[:num_outputs].T
