"""Rotating and storing by the Triton kernel: one launch reads queries, keys and values once and writes them once.

Legend: T tokens, H query heads, K key/value heads, D head_dim, E head_dim of values, R rotated size of a head, N slots,
B heads of one tile, P pairs of a head.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportOperatorIssue=false, reportGeneralTypeIssues=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from actorllm_kernels.configurations import Configuration
from actorllm_kernels.device import chosen_for
from actorllm_kernels.launch import INTERPRETED, LANGUAGE_TYPES, Launch, dense_rows, require_dense, require_dense_rows
from actorllm_kernels.quantize import SMALLEST
from actorllm_kernels.rotary_store.reference import Angles
from actorllm_kernels.triton_forms import FORMS, PLAIN, encoded, largest, quotient

SMALLEST_SIZE: tl.constexpr = tl.constexpr(SMALLEST)


@triton.jit
def walsh(x_BD, B: tl.constexpr, SIZE: tl.constexpr, STEPS: tl.constexpr):
    """The sums and differences of the reference's `walsh` for rows of SIZE values, in blocks of 2^STEPS.

    Each step takes the lowest bit of a value's place and makes it the highest, so that the last one leaves all where they were.
    """
    BLOCK: tl.constexpr = 1 << STEPS
    ROWS: tl.constexpr = B * SIZE // BLOCK
    x = tl.reshape(x_BD, (ROWS, BLOCK))
    for _ in tl.static_range(STEPS):
        first, second = tl.split(tl.reshape(x, (ROWS, BLOCK // 2, 2)))
        x = tl.reshape(tl.permute(tl.join(first + second, first - second), (0, 2, 1)), (ROWS, BLOCK))
    return tl.reshape(x, (B, SIZE))


@triton.jit
def spread_pairs(x_BP, y_BP, B: tl.constexpr, P: tl.constexpr, STEPS: tl.constexpr, FACTOR: tl.constexpr):
    """Rotated pairs as the reference's `spread` turns them."""
    return walsh(x_BP + y_BP, B, P, STEPS) * FACTOR, walsh(x_BP - y_BP, B, P, STEPS) * FACTOR


@triton.jit
def turned(
    ptr, head_stride, head_B, mask_B, cos_ptr, sin_ptr, first_P, second_P, rest,
    D: tl.constexpr, R: tl.constexpr, IS_SPREAD: tl.constexpr, PAIR_STEPS: tl.constexpr, REST_STEPS: tl.constexpr,
    PAIR_FACTOR: tl.constexpr, REST_FACTOR: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """One token's heads in float32, rotated by its angles and spread: the two values of each pair, and those without angle."""
    mask = mask_B[:, None] & (rest < D)[None, :]
    rest_BD = tl.load(ptr + head_B[:, None] * head_stride + rest[None, :], mask=mask, other=0).to(tl.float32)
    if IS_SPREAD:
        rest_BD = walsh(rest_BD, BLOCK_B, BLOCK_REST, REST_STEPS) * REST_FACTOR
    x_BP, y_BP = rest_BD, rest_BD  # without angles there are no pairs
    if R > 0:
        mask_P = tl.arange(0, BLOCK_P) < R // 2
        mask_BP = mask_B[:, None] & mask_P[None, :]
        x = tl.load(ptr + head_B[:, None] * head_stride + first_P[None, :], mask=mask_BP, other=0).to(tl.float32)
        y = tl.load(ptr + head_B[:, None] * head_stride + second_P[None, :], mask=mask_BP, other=0).to(tl.float32)
        cos_x, sin_x = tl.load(cos_ptr + first_P, mask=mask_P, other=0), tl.load(sin_ptr + first_P, mask=mask_P, other=0)
        cos_y, sin_y = tl.load(cos_ptr + second_P, mask=mask_P, other=0), tl.load(sin_ptr + second_P, mask=mask_P, other=0)
        x_BP = x * cos_x.to(tl.float32)[None, :] - y * sin_x.to(tl.float32)[None, :]
        y_BP = y * cos_y.to(tl.float32)[None, :] + x * sin_y.to(tl.float32)[None, :]
        if IS_SPREAD:
            x_BP, y_BP = spread_pairs(x_BP, y_BP, BLOCK_B, BLOCK_P, PAIR_STEPS, PAIR_FACTOR)
    return x_BP, y_BP, rest_BD


@triton.jit
def sizes(x_BD):
    """[B] the largest size of each head's values; infinity where one is not finite, because a maximum passes over NaN."""
    size_BD = tl.abs(x_BD)
    return tl.max(tl.where(size_BD < float("inf"), size_BD, float("inf")), axis=1)


@triton.jit
def factors(size_B, scale_ptr, mask_B, FORM: tl.constexpr):
    """[B] what each head's values are divided by, as `quantize` says, which is kept beside the pool."""
    scale_B = tl.where(size_B < SMALLEST_SIZE, 0.0, quotient(size_B, largest(FORM)))
    scale_B = tl.where(size_B < float("inf"), scale_B, float("nan"))
    tl.store(scale_ptr, scale_B, mask=mask_B)
    return scale_B


@triton.jit
def over(x_BD, factor_B):
    """Values over their head's factor; zeros for a head without one."""
    is_known_B = factor_B > 0
    return tl.where(is_known_B[:, None], quotient(x_BD, tl.where(is_known_B, factor_B, 1.0)[:, None]), 0.0)


@triton.jit
def store_turned(
    ptr, x_BP, y_BP, rest_BD, mask_B, first_P, second_P, rest,
    D: tl.constexpr, R: tl.constexpr, FORM: tl.constexpr, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """What `turned` gave, to the heads that begin at `ptr` [B, 1]."""
    if R > 0:
        mask_BP = mask_B[:, None] & (tl.arange(0, BLOCK_P) < R // 2)[None, :]
        tl.store(ptr + first_P[None, :], encoded(x_BP, FORM, DTYPE), mask=mask_BP)
        tl.store(ptr + second_P[None, :], encoded(y_BP, FORM, DTYPE), mask=mask_BP)
    if R < D:
        tl.store(ptr + rest[None, :], encoded(rest_BD, FORM, DTYPE), mask=mask_B[:, None] & (rest < D)[None, :])


@triton.jit(do_not_specialize_on_alignment=["slot_ptr"])
def rotary_store_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, cos_ptr, sin_ptr, slot_ptr, k_pool_ptr, v_pool_ptr, k_scale_ptr, v_scale_ptr,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, v_stride_t, v_stride_h, cos_stride, sin_stride,
    k_pool_stride, k_pool_stride_h, v_pool_stride, v_pool_stride_h, k_scale_stride, v_scale_stride,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, E: tl.constexpr, R: tl.constexpr, IS_INTERLEAVED: tl.constexpr,
    FORM: tl.constexpr, IS_SPREAD: tl.constexpr, PAIR_STEPS: tl.constexpr, REST_STEPS: tl.constexpr, PAIR_FACTOR: tl.constexpr,
    REST_FACTOR: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One token and some of its heads: first the tiles of query heads (none where H is 0), then those of key/value heads."""
    token, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    q_tiles: tl.constexpr = (H + BLOCK_B - 1) // BLOCK_B
    pair_P, rest = tl.arange(0, BLOCK_P), R + tl.arange(0, BLOCK_REST)
    first_P, second_P = (2 * pair_P, 2 * pair_P + 1) if IS_INTERLEAVED else (pair_P, pair_P + R // 2)
    if R > 0:
        cos_ptr += token * cos_stride
        sin_ptr += token * sin_stride
    if tile < q_tiles:
        head_B = tile * BLOCK_B + tl.arange(0, BLOCK_B)
        mask_B = head_B < H
        x_BP, y_BP, rest_BD = turned(
            q_ptr + token * q_stride_t, q_stride_h, head_B, mask_B, cos_ptr, sin_ptr, first_P, second_P, rest,
            D, R, IS_SPREAD, PAIR_STEPS, REST_STEPS, PAIR_FACTOR, REST_FACTOR, BLOCK_B, BLOCK_P, BLOCK_REST,
        )  # fmt: skip
        heads_ptr = out_ptr + (token * H + head_B[:, None]) * D
        store_turned(
            heads_ptr, x_BP, y_BP, rest_BD, mask_B, first_P, second_P, rest, D, R, PLAIN, out_ptr.dtype.element_ty, BLOCK_P
        )
    else:
        head_B = (tile - q_tiles) * BLOCK_B + tl.arange(0, BLOCK_B)
        mask_B = head_B < K
        slot = tl.load(slot_ptr + token).to(tl.int64)
        x_BP, y_BP, rest_BD = turned(
            k_ptr + token * k_stride_t, k_stride_h, head_B, mask_B, cos_ptr, sin_ptr, first_P, second_P, rest,
            D, R, IS_SPREAD, PAIR_STEPS, REST_STEPS, PAIR_FACTOR, REST_FACTOR, BLOCK_B, BLOCK_P, BLOCK_REST,
        )  # fmt: skip
        if FORM != PLAIN:
            size_B = sizes(rest_BD)
            if R > 0:
                size_B = tl.maximum(size_B, tl.maximum(sizes(x_BP), sizes(y_BP)))
            factor_B = factors(size_B, k_scale_ptr + slot * k_scale_stride + head_B, mask_B, FORM)
            x_BP, y_BP, rest_BD = over(x_BP, factor_B), over(y_BP, factor_B), over(rest_BD, factor_B)
        pool_ptr = k_pool_ptr + slot * k_pool_stride + head_B[:, None].to(tl.int64) * k_pool_stride_h
        store_turned(
            pool_ptr, x_BP, y_BP, rest_BD, mask_B, first_P, second_P, rest, D, R, FORM, k_pool_ptr.dtype.element_ty, BLOCK_P
        )
        store_values(
            v_ptr + token * v_stride_t, v_stride_h, v_pool_ptr + slot * v_pool_stride, v_pool_stride_h,
            v_scale_ptr if FORM == PLAIN else v_scale_ptr + slot * v_scale_stride, head_B, mask_B, E, FORM, BLOCK_E,
        )  # fmt: skip


@triton.jit
def store_values(
    v_ptr,
    v_stride_h,
    pool_ptr,
    pool_stride_h,
    scale_ptr,
    head_B,
    mask_B,
    E: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One token's values of some heads, into its slot."""
    column_E = tl.arange(0, BLOCK_E)
    mask = mask_B[:, None] & (column_E < E)[None, :]
    v_BE = tl.load(v_ptr + head_B[:, None] * v_stride_h + column_E[None, :], mask=mask, other=0).to(tl.float32)
    if FORM != PLAIN:
        v_BE = over(v_BE, factors(sizes(v_BE), scale_ptr + head_B, mask_B, FORM))
    DTYPE: tl.constexpr = pool_ptr.dtype.element_ty
    tl.store(pool_ptr + head_B[:, None].to(tl.int64) * pool_stride_h + column_E[None, :], encoded(v_BE, FORM, DTYPE), mask=mask)


def suits(q_THD: Tensor, pools: tuple[Tensor, Tensor]) -> bool:
    """Whether the kernel can compute this."""
    if not (q_THD.is_cuda or INTERPRETED) or q_THD.dtype not in LANGUAGE_TYPES or pools[0].dtype != pools[1].dtype:
        return False
    return (pools[0].dtype in LANGUAGE_TYPES or pools[0].dtype in FORMS) and all(pool.stride(2) == 1 for pool in pools)


def rotate_and_store(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    angles: Angles | None,
    slots_T: Tensor,
    pools: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """As the reference's; queries that nothing is done with are not read."""
    out_THD = None
    if angles is not None or scales is not None:
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    given = dense_rows(q_THD), dense_rows(k_TKD), dense_rows(v_TKE)
    launch(*given, angles=angles, slots_T=slots_T, pools=pools, scales=scales, out_THD=out_THD).run()
    return q_THD if out_THD is None else out_THD


def rotate_and_store_latent(
    q_THP: Tensor,
    latent_TR: Tensor,
    key_TP: Tensor,
    angles: Angles,
    slots_T: Tensor,
    pool_NC: Tensor,
    *,
    scales_N2: Tensor | None = None,
) -> Tensor:
    """As `latent_attention`'s reference: the rotated key is the only head's key, and the latent its value."""
    out_THP = torch.empty(q_THP.shape, dtype=q_THP.dtype, device=q_THP.device)
    given = dense_rows(q_THP), dense_rows(latent_TR), dense_rows(key_TP)
    launch_latent(
        *given, angles=angles, slots_T=slots_T, pool_NC=pool_NC, scales_N2=scales_N2, out_THP=out_THP
    ).run()
    return out_THP


def steps(size: int) -> int:
    """How often `size` can be halved: of these are the blocks that are transformed."""
    return (size & -size).bit_length() - 1 if size else 0


def launch_latent(
    q_THP: Tensor,
    latent_TR: Tensor,
    key_TP: Tensor,
    *,
    angles: Angles,
    slots_T: Tensor,
    pool_NC: Tensor,
    scales_N2: Tensor | None,
    out_THP: Tensor,
) -> Launch:
    """The kernel over all tokens of latents, into `out_THP` and the pool, whose slots hold a latent and then its rotated key."""
    latent, key = pool_NC.unsqueeze(1).split([latent_TR.shape[1], key_TP.shape[1]], dim=2)
    scales = None if scales_N2 is None else (scales_N2[:, 1:], scales_N2[:, :1])
    return launch(
        q_THP, key_TP.unsqueeze(1), latent_TR.unsqueeze(1),
        angles=angles, slots_T=slots_T, pools=(key, latent), scales=scales, out_THD=out_THP, is_spread=False,
    )  # fmt: skip


def launch(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKE: Tensor,
    *,
    angles: Angles | None,
    slots_T: Tensor,
    pools: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor] | None,
    out_THD: Tensor | None,
    is_spread: bool | None = None,
    chosen: Configuration | None = None,
) -> Launch:
    """The kernel over all tokens, into `out_THD` (None: queries are left alone) and the pools.

    Heads are spread if `is_spread` says so, or else where there are `scales`. Raises `ValueError` for pools without factors.
    """
    require_dense_rows(q_THD=q_THD, k_TKD=k_TKD, v_TKE=v_TKE)
    if pools[0].dtype in FORMS and scales is None:
        raise ValueError(f"pools of {pools[0].dtype} need a factor for each token and head")
    require_dense(slots_T=slots_T)
    num_tokens, num_kv_heads, head_dim = k_TKD.shape
    num_heads, size = 0 if out_THD is None else q_THD.shape[1], v_TKE.shape[2]
    cos_T1R, sin_T1R, is_interleaved = angles or (None, None, False)
    rotary_dim = 0 if cos_T1R is None else cos_T1R.shape[-1]
    angle_strides = [0 if x is None else x.stride(0) for x in (cos_T1R, sin_T1R)]
    k_pool, v_pool = (pool.view(torch.uint8) if pool.dtype == torch.float8_e4m3fn else pool for pool in pools)
    k_scales, v_scales = scales or (None, None)
    require_dense_rows(cos_T1R=cos_T1R, sin_T1R=sin_T1R, k_scales_NK=k_scales, v_scales_NK=v_scales)
    form, is_spread = FORMS.get(pools[0].dtype, PLAIN), scales is not None if is_spread is None else is_spread
    chosen = chosen or chosen_for("rotary_store", {"bytes": k_pool.element_size()}, q_THD.device)
    most = max(chosen.block("values") // triton.next_power_of_2(max(head_dim, size)), 1)
    block_b = min(triton.next_power_of_2(max(num_heads, num_kv_heads)), most)
    return Launch(
        rotary_store_kernel,
        (num_tokens, triton.cdiv(num_heads, block_b) + triton.cdiv(num_kv_heads, block_b)),
        {
            "q_ptr": q_THD, "k_ptr": k_TKD, "v_ptr": v_TKE, "out_ptr": q_THD if out_THD is None else out_THD,
            "cos_ptr": cos_T1R, "sin_ptr": sin_T1R,
            "slot_ptr": slots_T, "k_pool_ptr": k_pool, "v_pool_ptr": v_pool,
            "k_scale_ptr": k_scales, "v_scale_ptr": v_scales,
            "q_stride_t": q_THD.stride(0), "q_stride_h": q_THD.stride(1),
            "k_stride_t": k_TKD.stride(0), "k_stride_h": k_TKD.stride(1),
            "v_stride_t": v_TKE.stride(0), "v_stride_h": v_TKE.stride(1),
            "cos_stride": angle_strides[0], "sin_stride": angle_strides[1],
            "k_pool_stride": k_pool.stride(0), "k_pool_stride_h": k_pool.stride(1),
            "v_pool_stride": v_pool.stride(0), "v_pool_stride_h": v_pool.stride(1),
            "k_scale_stride": 0 if k_scales is None else k_scales.stride(0),
            "v_scale_stride": 0 if v_scales is None else v_scales.stride(0),
        },
        {
            "H": num_heads, "K": num_kv_heads, "D": head_dim, "E": size, "R": rotary_dim, "IS_INTERLEAVED": is_interleaved,
            "FORM": form.value, "IS_SPREAD": is_spread,
            "PAIR_STEPS": steps(rotary_dim // 2), "REST_STEPS": steps(head_dim - rotary_dim),
            "PAIR_FACTOR": 2.0 ** (-0.5 - steps(rotary_dim // 2) / 2), "REST_FACTOR": 2.0 ** (-steps(head_dim - rotary_dim) / 2),
            "BLOCK_B": block_b, "BLOCK_P": triton.next_power_of_2(max(rotary_dim // 2, 1)),
            "BLOCK_REST": triton.next_power_of_2(max(head_dim - rotary_dim, 1)), "BLOCK_E": triton.next_power_of_2(size),
        },
        chosen,
    )  # fmt: skip
