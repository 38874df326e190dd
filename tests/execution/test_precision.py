"""Which precision is chosen for which checkpoint and device."""

import pytest
import torch

from actorllm.execution.precision import resolve_precision


@pytest.fixture(params=[False, True], ids=["plain processor", "processor with bfloat16"])
def computes_bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("wanted", "stored", "dtype", "form", "dtype_with_bfloat16"),
    [
        ("auto", "float32", "float32", None, "float32"),
        ("auto", "bfloat16", "float32", "bfloat16", "bfloat16"),
        ("auto", "float16", "float32", None, "bfloat16"),
        ("float32", "bfloat16", "float32", None, "float32"),
        ("bfloat16", "float32", "float32", "bfloat16", "bfloat16"),
    ],
)
def test_on_a_processor(computes_bfloat16, wanted, stored, dtype, form, dtype_with_bfloat16) -> None:
    got = resolve_precision(wanted, getattr(torch, stored), torch.device("cpu"))
    if computes_bfloat16:
        dtype, form = dtype_with_bfloat16, None
    assert (got.dtype, got.form.name if got.form else None) == (getattr(torch, dtype), form)
    assert got.name == (form or dtype)


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "float32"), ("float16", "bfloat16"), ("bfloat16", "bfloat16")])
def test_on_a_gpu(stored, dtype) -> None:
    got = resolve_precision("auto", getattr(torch, stored), torch.device("cuda"))
    assert (got.dtype, got.form) == (getattr(torch, dtype), None)
