"""Which precision is chosen for which checkpoint and device."""

import pytest
import torch

from actorllm.errors import SettingsError
from actorllm.execution.precision import resolve_kv_dtype, resolve_precision
from actorllm_kernels.linear import Int4, WeightOnly


@pytest.mark.parametrize(
    ("wanted", "stored", "dtype", "form"),
    [
        ("auto", "float32", "float32", None),
        ("auto", "bfloat16", "float32", "bfloat16"),
        ("auto", "float16", "float32", None),
        ("float32", "bfloat16", "float32", None),
        ("bfloat16", "float32", "float32", "bfloat16"),
    ],
)
def test_on_a_processor(wanted, stored, dtype, form) -> None:
    got = resolve_precision(wanted, getattr(torch, stored), device=torch.device("cpu"))
    assert (got.dtype, got.form.name if got.form else None) == (getattr(torch, dtype), form)
    assert got.name == (form or dtype)


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "float32"), ("float16", "bfloat16"), ("bfloat16", "bfloat16")])
def test_on_a_gpu(stored, dtype) -> None:
    got = resolve_precision("auto", getattr(torch, stored), device=torch.device("cuda"))
    assert (got.dtype, got.form) == (getattr(torch, dtype), None)


@pytest.mark.parametrize(("quantize", "table"), [("int8", "int8"), ("int4", "int8")])
def test_quantized_while_loading(quantize, table) -> None:
    got = resolve_precision("auto", torch.bfloat16, device=torch.device("cpu"), quantize=quantize)
    assert got.form is not None and got.table_form is not None
    assert (got.name, got.dtype, got.form.name, got.table_form.name) == (quantize, torch.float32, quantize, table)


@pytest.mark.parametrize(("stored", "kept"), [(None, None), (32, None), (64, None), (128, 128), (192, None), (256, 128)])
def test_only_four_bits_that_are_kept_have_wide_groups(stored, kept) -> None:
    got = resolve_precision("auto", torch.bfloat16, device=torch.device("cpu"), quantize="int4", group_len=stored)
    assert isinstance(got.form, Int4) and got.form.group_len == 32
    assert kept == (got.kept_form and got.kept_form.group_len)


def test_the_cache_is_as_computed_or_in_fewer_bits() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_kv_dtype("auto", device=cpu) is None and resolve_kv_dtype("int8", device=cpu) == torch.int8
    assert resolve_kv_dtype("fp8", device=cuda) == torch.float8_e4m3fn
    assert resolve_kv_dtype("bf16", device=cpu) == torch.bfloat16
    with pytest.raises(SettingsError, match="--kv-cache bf16 is for processors"):
        resolve_kv_dtype("bf16", device=cuda)
    with pytest.raises(SettingsError, match="--kv-cache int8"):
        resolve_kv_dtype("fp8", device=cpu)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize(("wanted", "dtype"), [("auto", "bfloat16"), ("float16", "float16")])
def test_quantized_on_a_gpu_activations_keep_16_bits(wanted, dtype, quantize) -> None:
    got = resolve_precision(wanted, torch.float32, device=torch.device("cuda"), quantize=quantize)
    assert isinstance(got.form, WeightOnly) and isinstance(got.table_form, WeightOnly)
    assert (got.name, got.dtype, got.table_form.name) == (quantize, getattr(torch, dtype), "int8")


@pytest.mark.parametrize(("capability", "is_served"), [((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)])
def test_floats_of_8_bits_need_a_unit_for_them(monkeypatch, capability, is_served) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda")
    if is_served:
        got = resolve_precision("auto", torch.float32, device=device, quantize="fp8")
        assert (got.name, got.dtype, got.table_form and got.table_form.name) == ("fp8", torch.bfloat16, "int8")
    else:
        with pytest.raises(SettingsError, match=r"8\.9 or later.*--quantize int8"):
            resolve_precision("auto", torch.float32, device=device, quantize="fp8")
    with pytest.raises(SettingsError, match="--quantize int8"):
        resolve_precision("auto", torch.float32, device=torch.device("cpu"), quantize="fp8")


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(SettingsError, match="--quantize int4"):
        resolve_precision("bfloat16", torch.bfloat16, device=torch.device("cpu"), quantize="int4")
