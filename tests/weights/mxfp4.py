"""Random MXFP4 tensors with their values, both from the definition of the bits (OCP Microscaling Formats 1.0).

Legend: E a stack's linears, O outputs, I inputs, B blocks of 32 inputs.
"""

import torch
from torch import Tensor

BLOCK = 32


def float4(code: int) -> float:
    """The value of 4 bits: sign, two of exponent with bias 1, one of mantissa; subnormal where the exponent is zero."""
    sign, exponent, mantissa = code >> 3, code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
    return -size if sign else size


def random_mxfp4(shape: tuple[int, int, int], *, exponents: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(values [E, O, I], blocks [E, O, B, 16], scales [E, O, B]) with block exponents `exponents[0] .. exponents[1]`."""
    generator = torch.Generator().manual_seed(seed)
    blocks_shape = (*shape[:2], shape[2] // BLOCK)
    codes = torch.randint(16, (*blocks_shape, BLOCK), generator=generator)
    powers = torch.randint(exponents[0], exponents[1] + 1, blocks_shape, generator=generator)
    floats = torch.tensor([float4(code) for code in codes.flatten().tolist()]).view(codes.shape)
    values = (floats * 2.0 ** powers.unsqueeze(-1)).flatten(2)
    return values, (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8), (powers + 127).to(torch.uint8)
