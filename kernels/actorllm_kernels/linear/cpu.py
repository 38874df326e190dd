"""Linears by the C++ kernels, one call each, which can give the gated product of the outputs' halves instead of them."""

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.gated.cpu import CODES as ACTIVATIONS
from actorllm_kernels.linear.reference import PANEL
from actorllm_kernels.native import function, library

_BF16 = (c_void_p, c_int64, c_void_p, c_void_p) + (c_int,) * 5
_INT8 = (c_void_p, c_int64, c_void_p, c_void_p, c_void_p) + (c_int,) * 5
_INT4 = (*_INT8, c_int)

NO_ACTIVATION = -1

_ROWS = (c_int64, c_int64, c_int64, c_int)


def suits_lookup(packed: Tensor, outputs_T: Tensor) -> bool:
    """Whether the kernels can look rows of this weight up, and exist."""
    return packed.device.type == "cpu" and outputs_T.dim() == 1 and outputs_T.dtype == torch.int64 and library() is not None


def suits(x_TI: Tensor) -> bool:
    """Whether the kernels can take these rows, and exist."""
    return x_TI.device.type == "cpu" and x_TI.dtype == torch.float32 and library() is not None


MOST_CODED_INPUTS = (2**31 - 1) // (127 * 128)
"""Whose products of a row's codes, at most 127, and of weights' sum to 32 bits. Stored codes of int8 weights may be -128, and so may
the digits that AMX takes int4 weights as; other paths of int4 sum a group of 4-bit codes. bfloat16 is summed in floats."""


def suits_codes(x_TI: Tensor) -> bool:
    """Whether the kernels can take these rows for weights of 8 or 4 bits, and exist."""
    return suits(x_TI) and x_TI.shape[1] <= MOST_CODED_INPUTS


def knows(product: GatedProduct) -> bool:
    """Whether the kernels can give this product of the outputs' halves."""
    return product.limit is None and product.activation in ACTIVATIONS


def linear_bf16(x_TI: Tensor, packed_PJB2: Tensor, num_outputs: int, product: GatedProduct | None = None) -> Tensor:
    """See `reference.linear_bf16`; with a product its value of both halves of the outputs, [T, O / 2]."""
    x_TI = _rows(x_TI)
    num_rows, num_inputs = x_TI.shape
    assert packed_PJB2.is_contiguous() and packed_PJB2.shape[1] == -(-num_inputs // 2)
    out_TO = _outputs(num_rows, num_outputs, product)
    function("actorllm_linear_bf16", _BF16)(
        x_TI.data_ptr(), x_TI.stride(0), packed_PJB2.data_ptr(), out_TO.data_ptr(),
        num_rows, num_outputs, num_inputs, _activation(product), torch.get_num_threads(),
    )  # fmt: skip
    return out_TO


def linear_int8(
    x_TI: Tensor, packed_PQB4: Tensor, scales_PB: Tensor, num_outputs: int, product: GatedProduct | None = None
) -> Tensor:
    """See `reference.linear_int8`, and `linear_bf16` for the product; the sums are exact integers."""
    x_TI = _rows(x_TI)
    num_rows, num_inputs = x_TI.shape
    assert packed_PQB4.is_contiguous() and scales_PB.is_contiguous() and packed_PQB4.shape[1] == -(-num_inputs // 4)
    out_TO = _outputs(num_rows, num_outputs, product)
    function("actorllm_linear_int8", _INT8)(
        x_TI.data_ptr(), x_TI.stride(0), packed_PQB4.data_ptr(), scales_PB.data_ptr(), out_TO.data_ptr(),
        num_rows, num_outputs, num_inputs, _activation(product), torch.get_num_threads(),
    )  # fmt: skip
    return out_TO


def linear_int4(
    x_TI: Tensor, packed_PEB4: Tensor, scales_PGB: Tensor, num_outputs: int, product: GatedProduct | None = None
) -> Tensor:
    """See `reference.linear_int4`, and `linear_bf16` for the product; the sums of a group are exact integers."""
    x_TI = _rows(x_TI)
    num_rows, num_inputs = x_TI.shape
    group_len = packed_PEB4.shape[1] * 8 // max(1, scales_PGB.shape[1]) or 32
    assert packed_PEB4.is_contiguous() and scales_PGB.is_contiguous() and scales_PGB.shape[1] == -(-num_inputs // group_len)
    out_TO = _outputs(num_rows, num_outputs, product)
    function("actorllm_linear_int4", _INT4)(
        x_TI.data_ptr(), x_TI.stride(0), packed_PEB4.data_ptr(), scales_PGB.data_ptr(), out_TO.data_ptr(),
        num_rows, num_outputs, num_inputs, group_len, _activation(product), torch.get_num_threads(),
    )  # fmt: skip
    return out_TO


def code_rows_bf16(codes_OI: Tensor, outputs_T: Tensor) -> Tensor:
    """[T, I] float32: some rows of codes that are not packed."""
    outputs_T, (num_rows, num_inputs) = outputs_T.contiguous(), codes_OI.shape
    assert codes_OI.is_contiguous()
    out_TI = torch.empty(len(outputs_T), num_inputs)
    function("actorllm_code_rows_bf16", (c_void_p,) * 3 + _ROWS)(
        codes_OI.data_ptr(), outputs_T.data_ptr(), out_TI.data_ptr(), len(outputs_T), num_inputs, num_rows,
        torch.get_num_threads(),
    )
    return out_TI


def code_rows_int8(codes_OI: Tensor, scales_O: Tensor, outputs_T: Tensor) -> Tensor:
    """[T, I] float32: some rows of codes that are not packed, times their scales."""
    outputs_T, (num_rows, num_inputs) = outputs_T.contiguous(), codes_OI.shape
    assert codes_OI.is_contiguous() and scales_O.is_contiguous()
    out_TI = torch.empty(len(outputs_T), num_inputs)
    function("actorllm_code_rows_int8", (c_void_p,) * 4 + _ROWS)(
        codes_OI.data_ptr(), scales_O.data_ptr(), outputs_T.data_ptr(), out_TI.data_ptr(),
        len(outputs_T), num_inputs, num_rows, torch.get_num_threads(),
    )  # fmt: skip
    return out_TI


def rows_bf16(packed_PJB2: Tensor, outputs_T: Tensor, num_inputs: int) -> Tensor:
    """See `reference.rows_bf16`."""
    outputs_T, num_rows = outputs_T.contiguous(), packed_PJB2.shape[0] * PANEL
    out_TI = torch.empty(len(outputs_T), num_inputs)
    function("actorllm_rows_bf16", (c_void_p,) * 3 + _ROWS)(
        packed_PJB2.data_ptr(), outputs_T.data_ptr(), out_TI.data_ptr(), len(outputs_T), num_inputs, num_rows,
        torch.get_num_threads(),
    )
    return out_TI


def rows_int8(packed_PQB4: Tensor, scales_PB: Tensor, outputs_T: Tensor, num_inputs: int) -> Tensor:
    """See `reference.rows_int8`."""
    outputs_T = outputs_T.contiguous()
    out_TI = torch.empty(len(outputs_T), num_inputs)
    function("actorllm_rows_int8", (c_void_p,) * 4 + _ROWS)(
        packed_PQB4.data_ptr(), scales_PB.data_ptr(), outputs_T.data_ptr(), out_TI.data_ptr(),
        len(outputs_T), num_inputs, packed_PQB4.shape[0] * PANEL, torch.get_num_threads(),
    )  # fmt: skip
    return out_TI


def rows_int4(packed_PEB4: Tensor, scales_PGB: Tensor, outputs_T: Tensor, num_inputs: int) -> Tensor:
    """See `reference.rows_int4`."""
    outputs_T, num_octets, num_groups = outputs_T.contiguous(), packed_PEB4.shape[1], scales_PGB.shape[1]
    out_TI = torch.empty(len(outputs_T), num_inputs)
    function("actorllm_rows_int4", (c_void_p,) * 4 + (c_int64, c_int64, c_int64, c_int, c_int, c_int64, c_int))(
        packed_PEB4.data_ptr(), scales_PGB.data_ptr(), outputs_T.data_ptr(), out_TI.data_ptr(), len(outputs_T), num_inputs,
        num_octets, num_groups, num_octets * 8 // max(1, num_groups) or 32, packed_PEB4.shape[0] * PANEL, torch.get_num_threads(),
    )  # fmt: skip
    return out_TI


def _outputs(num_rows: int, num_outputs: int, product: GatedProduct | None) -> Tensor:
    assert product is None or (knows(product) and num_outputs % 2 == 0)
    return torch.empty(num_rows, num_outputs if product is None else num_outputs // 2)


def _activation(product: GatedProduct | None) -> int:
    return NO_ACTIVATION if product is None else ACTIVATIONS[product.activation]


def _rows(x_TI: Tensor) -> Tensor:
    """The same values, contiguous along a row."""
    return x_TI if x_TI.stride(1) == 1 or x_TI.shape[1] == 1 else x_TI.contiguous()
