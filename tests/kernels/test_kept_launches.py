"""Operators take tensors with gaps, of which they make copies; launches refuse them: one that is kept would go on to read the copy."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels.embedding import triton as embedding
from actorllm_kernels.experts import ExpertStack, MatrixStack
from actorllm_kernels.experts import triton as experts
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.gated import triton as gated
from actorllm_kernels.linear import IntWeight, triton_fp8
from actorllm_kernels.linear import reference as linear_reference
from actorllm_kernels.linear import triton as linear
from actorllm_kernels.norm import triton as norm
from actorllm_kernels.rotary_store import triton as rotary_store
from actorllm_kernels.token_ids import triton as token_ids

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def with_gaps(x: Tensor) -> Tensor:
    """The same values, of which those of a row do not lie side by side."""
    return torch.stack((x, x), dim=-1).flatten(-2)[..., ::2]


X, Y, OUT, WEIGHT = normal(3, 32), normal(3, 32, seed=1), torch.empty(3, 32, device=DEVICE), normal(32, 32, seed=2)
IDS, ROWS, LAST = (torch.tensor(ids, device=DEVICE) for ids in ([5, -1, 7], [2, 0, 1], [11, 12, 13]))
CODES = IntWeight(*linear_reference.int8_codes(WEIGHT)[:1], linear_reference.int8_codes(WEIGHT)[1].unsqueeze(1))
FP8 = linear_reference.fp8_codes(WEIGHT)
STACK = ExpertStack(MatrixStack(normal(4, 64, 32) / 8), MatrixStack(normal(4, 32, 32) / 8))
SHARES, CHOSEN = normal(3, 2).abs(), torch.tensor([[0, 1], [2, 3], [3, 0]], device=DEVICE)
HEADS = normal(3, 2, 16), normal(3, 2, 16, seed=3), normal(3, 2, 16, seed=4)


def stored(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    pools = torch.zeros(3, 2, 16, device=DEVICE), torch.zeros(3, 2, 16, device=DEVICE)
    rotary_store.rotate_and_store(q, k, v, None, ROWS, pools)
    return pools


def scattered(ids: Tensor, rows: Tensor) -> Tensor:
    last = LAST.clone()
    token_ids.scatter_ids(ids, rows, last)
    return last


OF_NORM = {"weight_D": WEIGHT[0], "bias_D": None, "eps": 1e-5, "is_rms": True}
STORING = {"angles": None, "slots_T": ROWS, "pools": HEADS[1:], "scales": None, "out_THD": None}
COMBINE = GatedProduct()
CASES = {
    "norm": (lambda x: norm.rms_norm(x, WEIGHT[0], eps=1e-5), lambda x: norm.launch(x, None, **OF_NORM, results=(None, OUT)), (X,)),
    "norm of a sum": (
        lambda x, y: norm.add_rms_norm(x, y, WEIGHT[0], eps=1e-5), lambda x, y: norm.launch(x, y, **OF_NORM, results=(OUT, OUT)), (X, Y),
    ),
    "gated": (
        lambda x, y: gated.gated(x, y, activation="silu"), lambda x, y: gated.launch(x, y, activation="silu", out_TI=OUT), (X, Y),
    ),
    "embedding": (
        lambda ids: embedding.embedding(ids, WEIGHT), lambda ids: embedding.launch(ids, WEIGHT, first_id=0, out_TD=OUT), (ROWS,),
    ),
    "gather": (
        lambda ids, rows: token_ids.gather_ids(ids, rows, LAST),
        lambda ids, rows: token_ids.gather_launch(ids, rows, LAST, out_T=torch.empty_like(LAST)), (IDS, ROWS),
    ),
    "scatter": (scattered, lambda ids, rows: token_ids.scatter_launch(ids, rows, LAST), (IDS, ROWS)),
    "integer weights": (
        lambda x: linear.linear_weight_only(x, CODES), lambda x: linear.launches(x, CODES, out_MN=OUT), (X,),
    ),
    "fp8": (lambda x: triton_fp8.linear_fp8(x, *FP8), lambda x: triton_fp8.launches(x, *FP8, out_MN=OUT), (X,)),
    "experts": (
        lambda *given: experts.run_experts(*given, STACK, combine=COMBINE),
        lambda *given: experts.launches(*given, STACK, combine=COMBINE, out_TD=OUT), (X, SHARES, CHOSEN),
    ),
    "storing": (lambda *heads: stored(*heads), lambda *heads: rotary_store.launch(*heads, **STORING), HEADS),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_copy_what_launches_refuse(name: str) -> None:
    operator, launch, given = CASES[name]
    expected = operator(*given)
    launch(*given)
    for place in range(len(given)):
        gaps = [with_gaps(x) if index == place else x for index, x in enumerate(given)]
        torch.testing.assert_close(operator(*gaps), expected, rtol=0, atol=0)
        with pytest.raises(ValueError, match="has strides"):
            launch(*gaps)
