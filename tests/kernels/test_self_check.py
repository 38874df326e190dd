"""Kernels that are wrong where they run are found out, and their references take their place."""

import logging

import pytest
import torch

from actorllm_kernels import gated, norm

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels import self_check
from actorllm_kernels.gated import triton as gated_triton
from actorllm_kernels.norm import triton as norm_triton
from actorllm_kernels.sampling import triton as sampling_triton
from actorllm_kernels.token_ids import triton as ids_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def unchecked():
    """Every test finds out anew."""
    self_check.is_right.cache_clear()
    yield
    self_check.is_right.cache_clear()


@pytest.fixture
def dispatched(monkeypatch):
    """Operators choose as they do on a GPU, whatever is here."""

    def takes_triton(operator: str, x: torch.Tensor) -> bool:
        return self_check.is_right(operator, x.device)

    for operator in (gated, norm):
        monkeypatch.setattr(operator, "takes_triton", takes_triton)
        monkeypatch.setattr(operator.cpu, "suits", lambda *_: False)


def test_all_kernels_are_right_here(caplog):
    assert self_check.failing(DEVICE) == []
    assert not caplog.records


def test_a_wrong_kernel_gives_way_to_its_reference(dispatched, monkeypatch, caplog):
    monkeypatch.setattr(gated_triton, "gated", lambda gate, up, *, activation: torch.zeros_like(gate))
    gate, up = torch.randn(2, 3, 8, device=DEVICE).unbind()
    with caplog.at_level(logging.WARNING):
        got = gated.gated(gate, up, activation="relu")
    assert torch.equal(got, gate.relu() * up)
    assert "gated are wrong" in caplog.text and "silu: relative error 1" in caplog.text


@pytest.mark.parametrize("samples", ["greedy", "drawn"])
def test_a_neighbour_of_the_right_token_is_wrong(samples, monkeypatch, caplog):
    real = sampling_triton.draw

    def shifted(logits, places, *rest, **options):
        return real(logits, places, *rest, **options) + ((places == 0) == (samples == "greedy"))

    monkeypatch.setattr(sampling_triton, "draw", shifted)
    assert not self_check.is_right("sampling", DEVICE)
    assert f"sampling are wrong on {DEVICE} ({samples}:" in caplog.text


def test_ids_in_wrong_rows_are_wrong(monkeypatch):
    real = ids_triton.scatter_ids
    monkeypatch.setattr(ids_triton, "scatter_ids", lambda ids, rows, last: real(ids, rows.flip(0), last))
    assert not self_check.is_right("token_ids", DEVICE)


def test_nan_is_wrong(monkeypatch, caplog):
    monkeypatch.setattr(gated_triton, "gated", lambda gate, up, *, activation: gate * torch.nan)
    assert not self_check.is_right("gated", DEVICE)
    assert "relative error nan" in caplog.text


def test_a_kernel_that_raises_gives_way_to_its_reference(dispatched, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(norm_triton, "launch", fail)
    x, weight = torch.randn(3, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    assert torch.equal(norm.rms_norm(x, weight, eps=1e-3), norm.reference.rms_norm(x, weight, eps=1e-3))
    assert "norm do not run" in caplog.text and "no kernel image is available" in caplog.text


def test_it_is_found_out_once(dispatched, monkeypatch):
    calls = []
    real = gated_triton.launch
    monkeypatch.setattr(gated_triton, "launch", lambda *args, **options: calls.append(options) or real(*args, **options))
    gate, up = torch.randn(2, 3, 8, device=DEVICE).unbind()
    for _ in range(3):
        torch.testing.assert_close(gated.gated(gate, up, activation="relu"), gate.relu() * up)
    assert len(calls) == len(gated.ACTIVATIONS) + 3
