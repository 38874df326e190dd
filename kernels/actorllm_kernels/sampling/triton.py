"""Sampling by the Triton kernels: 4 launches without filters, 9 more for top-k, 8 more for top-p; 2 where all rows are greedy.

What each row asks for is read on the device, so launches that were captured with all `Needs` serve every batch of that many rows.

Legend: S samples, P parts of a row, V vocabulary.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
from dataclasses import dataclass
from functools import partial

import torch
import triton
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for
from actorllm_kernels.launch import Launch, require_dense
from actorllm_kernels.sampling import triton_kernels as kernels
from actorllm_kernels.sampling.parameters import Adjustments, Needs, Rows, Seen

BLOCK = 1024
"""Tokens of one program that changes logits. No configuration: each is read and written once, whatever the vocabulary."""
LARGEST_VOCABULARY = 2**20 - 1
"""More could hold more probability than an integer has bits for."""
MOST_PARTS = 64
ADJUSTED = 256
"""Tokens or samples at a time of what changes few numbers."""
NUM_PASSES: int = kernels.PASSES.value


@dataclass(frozen=True, slots=True)
class Workspace:
    """What the launches hand on to each other, for at most as many samples as its first axis holds.

    `best_SP` float32 and `id_SP` int32: of each part the best logit, and its first token. `sums_2SPJ` int64: what each value of a
    digit holds, of an even and an odd pass; `states` int64 [8, S, 2] the prefix and goal of every pass. `edges` int64 [2, S, 2]:
    where top-k and where everything ends. `mass` int64 [S, P, 2]: weight and ties of each part.
    """

    best_SP: Tensor
    id_SP: Tensor
    sums: Tensor
    states: Tensor
    edges: Tensor
    mass: Tensor


def suits(x: Tensor) -> bool:
    """Whether the kernels can compute this: for tensors of ids, always."""
    return x.ndim == 1 or (x.dtype == torch.float32 and x.shape[1] <= LARGEST_VOCABULARY)


def workspace(num_samples: int, vocab_size: int, *, device: torch.device, chosen: Configuration | None = None) -> Workspace:
    """Memory for `launches`, taken before they are captured."""
    _, num_parts = _parts(vocab_size, chosen or _chosen(vocab_size, device))
    long = partial(torch.empty, dtype=torch.int64, device=device)
    return Workspace(
        torch.empty(num_samples, num_parts, dtype=torch.float32, device=device),
        torch.empty(num_samples, num_parts, dtype=torch.int32, device=device),
        long(2, num_samples, num_parts, kernels.VALUES.value),
        long(NUM_PASSES, num_samples, 2),
        long(2, num_samples, 2),
        long(num_samples, num_parts, 2),
    )


def penalize(logits_SV: Tensor, rows_S: Tensor, seen: Seen, *, rows: Rows) -> None:
    """As the reference's."""
    penalize_launch(logits_SV, rows_S, seen, rows=rows).run()


def adjust(logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, *, adjustments: Adjustments) -> None:
    """As the reference's."""
    adjust_launch(logits_SV, rows_S, positions_S, adjustments=adjustments).run()


def draw(logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, *, rows: Rows, needs: Needs) -> Tensor:
    """As the reference's; the edge of top-p may be another of nearly equal tokens where exp is rounded otherwise."""
    ids_S = torch.empty(len(logits_SV), dtype=torch.int64, device=logits_SV.device)
    for launch in launches(logits_SV, rows_S, positions_S, rows=rows, needs=needs, ids_S=ids_S):
        launch.run()
    return ids_S


def count(ids_S: Tensor, rows_S: Tensor, seen: Seen) -> None:
    """As the reference's."""
    count_launch(ids_S, rows_S, seen).run()


def launches(
    logits_SV: Tensor,
    rows_S: Tensor,
    positions_S: Tensor,
    *,
    rows: Rows,
    needs: Needs,
    ids_S: Tensor,
    memory: Workspace | None = None,
    chosen: Configuration | None = None,
) -> list[Launch]:
    """The kernels to run, in order, into `ids_S`."""
    require_dense(rows_S=rows_S, positions_S=positions_S, ids_S=ids_S, parameters_RP=rows.parameters_RP, seeds_R=rows.seeds_R)
    num_samples, vocab_size = logits_SV.shape
    chosen = chosen or _chosen(vocab_size, logits_SV.device)
    memory = memory or workspace(num_samples, vocab_size, device=logits_SV.device, chosen=chosen)
    part, num_parts = _parts(vocab_size, chosen)
    logits = {"logit_ptr": logits_SV, "row_stride": logits_SV.stride(0), "column_stride": logits_SV.stride(1)}
    asked = {"best_ptr": memory.best_SP, "row_ptr": rows_S, "parameter_ptr": rows.parameters_RP}
    sizes = {"V": vocab_size, "PARTS": num_parts}
    tiles = {"PART": part, "LANES": chosen.block("lanes")}
    known = {**sizes, "BLOCK_P": triton.next_power_of_2(num_parts)}
    cut = partial(Launch, chosen=chosen)
    over_parts, over_samples = partial(cut, grid=(num_samples, num_parts)), partial(cut, grid=(num_samples,))
    best, best_id = {"best_ptr": memory.best_SP}, {"id_ptr": memory.id_SP}
    found = [over_parts(kernels.best_kernel, arguments={**logits, **best, **best_id}, constants={**sizes, **tiles})]
    final = {"final_ptr": memory.edges[1]}
    if needs.is_random:
        has_top_k = {"HAS_TOP_K": needs.has_top_k}
        for is_by_weight, is_needed in ((False, needs.has_top_k), (True, needs.has_top_p)):
            edge = {**asked, "edge_ptr": memory.edges[0]}
            for number in range(NUM_PASSES) if is_needed else ():
                found.append(
                    over_parts(
                        kernels.search_kernel,
                        arguments={**logits, **edge, **_last(memory, number), **_own(memory, number), "number": number},
                        constants={"BY_WEIGHT": is_by_weight, **has_top_k, **known, **tiles},
                    )
                )
            if is_needed or is_by_weight:
                settled = {"BY_WEIGHT": is_by_weight, **has_top_k, "HAS_TOP_P": needs.has_top_p, **known}
                end = final if is_by_weight else {"final_ptr": memory.edges[0]}
                arguments = {**edge, **_last(memory, NUM_PASSES), **end}
                found.append(over_samples(kernels.settle_kernel, arguments=arguments, constants=settled))
        mass = {**logits, **asked, **final, "mass_ptr": memory.mass}
        found.append(over_parts(kernels.mass_kernel, arguments=mass, constants={**known, **tiles}))
    drawn = {
        **logits, **asked, **best_id, **final,
        "position_ptr": positions_S, "seed_ptr": rows.seeds_R, "mass_ptr": memory.mass, "out_ptr": ids_S,
    }  # fmt: skip
    constants = {"IS_RANDOM": needs.is_random, **known, **tiles}
    return [*found, over_samples(kernels.draw_kernel, arguments=drawn, constants=constants)]


def penalize_launch(logits_SV: Tensor, rows_S: Tensor, seen: Seen, *, rows: Rows) -> Launch:
    """The kernel over all samples."""
    require_dense(rows_S=rows_S, output_RV=seen.output_RV, prompt_RV=seen.prompt_RV, parameters_RP=rows.parameters_RP)
    num_samples, vocab_size = logits_SV.shape
    return Launch(
        kernels.penalize_kernel,
        (num_samples, triton.cdiv(vocab_size, BLOCK)),
        {
            "logit_ptr": logits_SV, "row_ptr": rows_S, "parameter_ptr": rows.parameters_RP, "output_ptr": seen.output_RV,
            "prompt_ptr": seen.prompt_RV.view(torch.uint8),
            "row_stride": logits_SV.stride(0), "column_stride": logits_SV.stride(1),
        },
        {"V": vocab_size, "BLOCK": BLOCK},
        is_fused=False,  # the reference rounds products, and the largest of nearly equal logits is to be the same
    )  # fmt: skip


def adjust_launch(logits_SV: Tensor, rows_S: Tensor, positions_S: Tensor, *, adjustments: Adjustments) -> Launch:
    """The kernel over all samples."""
    require_dense(rows_S=rows_S, positions_S=positions_S, lens_R=adjustments.lens_R)
    require_dense(ids_RB=adjustments.ids_RB, values_RB=adjustments.values_RB, until_RB=adjustments.until_RB)
    return Launch(
        kernels.adjust_kernel,
        (len(rows_S),),
        {
            "logit_ptr": logits_SV, "row_ptr": rows_S, "position_ptr": positions_S, "len_ptr": adjustments.lens_R,
            "id_ptr": adjustments.ids_RB, "value_ptr": adjustments.values_RB, "until_ptr": adjustments.until_RB,
            "row_stride": logits_SV.stride(0), "column_stride": logits_SV.stride(1), "width": adjustments.ids_RB.shape[1],
        },
        {"BLOCK": ADJUSTED},
    )  # fmt: skip


def count_launch(ids_S: Tensor, rows_S: Tensor, seen: Seen) -> Launch:
    """The kernel over all samples."""
    require_dense(ids_S=ids_S, rows_S=rows_S, output_RV=seen.output_RV)
    arguments = {"id_ptr": ids_S, "row_ptr": rows_S, "output_ptr": seen.output_RV, "num_samples": len(ids_S)}
    constants = {"V": seen.output_RV.shape[1], "BLOCK": ADJUSTED}
    return Launch(kernels.count_kernel, (triton.cdiv(len(ids_S), ADJUSTED),), arguments, constants)


def _last(memory: Workspace, number: int) -> dict[str, Tensor]:
    """What pass `number` reads of the one before it; the first one reads nothing."""
    last = max(number - 1, 0)
    return {"last_sum_ptr": memory.sums[last % 2], "last_state_ptr": memory.states[last]}


def _own(memory: Workspace, number: int) -> dict[str, Tensor]:
    return {"sum_ptr": memory.sums[number % 2], "state_ptr": memory.states[number]}


def _chosen(vocab_size: int, device: torch.device) -> Configuration:
    return chosen_for("sampling", {"vocabulary": vocab_size}, device)


def _parts(vocab_size: int, chosen: Configuration) -> tuple[int, int]:
    """Tokens of a part, in whole tiles, and how many parts there are."""
    lanes = chosen.block("lanes")
    part = max(chosen.block("part"), triton.cdiv(vocab_size, MOST_PARTS))
    part = triton.cdiv(part, lanes) * lanes
    return part, triton.cdiv(vocab_size, part)
