"""What a mixture's experts compute, in torch operators: the specification.

Legend: T tokens, D hidden size, E experts, K experts of one token, I an expert's inner size, J = 2 I, N tokens of one expert.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from actorllm_kernels.experts.stacks import ExpertStack
from actorllm_kernels.gated import GatedProduct


def run_experts(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, stack: ExpertStack, *, combine: GatedProduct) -> Tensor:
    """[T, D] in x's dtype: the sum of a token's experts, each times its weight. A token names an expert once at most; one outside
    of 0 .. E - 1 counts for nothing.

    What codes stand for is rounded to x's dtype; activations are not.
    """
    hidden, inner = stack.sizes  # 4-bit codes may be filled up to an even number of inputs
    out_TD = torch.zeros(x_TD.shape, dtype=torch.float32, device=x_TD.device)
    for expert in range(stack.num_experts):
        tokens_N, places_N = (experts_TK == expert).nonzero(as_tuple=True)
        if len(tokens_N):
            gate_up_JD, down_DI = (each.matrix(expert, x_TD.dtype) for each in (stack.gate_up, stack.down))
            gate_up_NJ = linear(x_TD[tokens_N], gate_up_JD[:, :hidden], _of(stack.gate_up_bias_EJ, expert))
            gate_NI, up_NI = (gate_up_NJ[:, ::2], gate_up_NJ[:, 1::2]) if stack.is_interleaved else gate_up_NJ.chunk(2, dim=1)
            out_ND = linear(combine(gate_NI, up_NI), down_DI[:, :inner], _of(stack.down_bias_ED, expert))
            out_TD[tokens_N] += out_ND.to(torch.float32) * weights_TK[tokens_N, places_N].to(torch.float32).unsqueeze(1)
    return out_TD.to(x_TD.dtype)


def _of(biases: Tensor | None, expert: int) -> Tensor | None:
    return None if biases is None else biases[expert]
