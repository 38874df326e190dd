"""Weights of few bits in products of many rows: expanded a block of outputs at a time, so memory does not grow with the matrix."""

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actorllm_kernels.linear import IntWeight, reference

INPUTS, OUTPUTS = 64, 90


class Sizes(TorchDispatchMode):
    """Notes how many values each new tensor has."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[int] = []

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.noted.append(result.numel())
        return result


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_len", [None, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_values_than_a_block(bits: int, group_len: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes_OI = torch.randint(-8, 8, (OUTPUTS, INPUTS), generator=generator, dtype=torch.int8)
    scales_OG = torch.rand(OUTPUTS, INPUTS // (group_len or INPUTS), generator=generator)
    weight: IntWeight = reference.pack_by_output(codes_OI, scales_OG, num_bits=bits)
    x_TI = torch.randn(3, INPUTS, generator=generator).to(dtype)
    values_OI = (codes_OI * scales_OG.repeat_interleave(group_len or INPUTS, dim=1)).to(dtype)
    monkeypatch.setattr(reference, "EXPANDED_VALUES", 7 * INPUTS + 1)
    with Sizes() as sizes:
        out_TO = reference.linear_weight_only(x_TI, weight)
    assert max(sizes.noted) == 7 * INPUTS
    torch.testing.assert_close(out_TO, x_TI @ values_OI.T)
