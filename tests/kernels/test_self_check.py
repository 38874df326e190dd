"""Kernels that are wrong where they run are found out, and their references take their place."""

import logging

import pytest
import torch

from actorllm_kernels import attention, backends, gated, norm
from actorllm_kernels.attention import RaggedKeys, flat_spans
from actorllm_kernels.backends import Heads

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels import self_check
from actorllm_kernels.attention import triton as attention_triton
from actorllm_kernels.gated import triton as gated_triton
from actorllm_kernels.launch import Launch
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

    def takes_triton(operator: str, x: torch.Tensor, heads: Heads | None = None) -> bool:
        return self_check.is_right(operator, x.device, heads)

    for operator in (gated, norm, attention):
        monkeypatch.setattr(operator, "takes_triton", takes_triton)
        monkeypatch.setattr(operator.cpu, "suits", lambda *_: False)


@pytest.mark.parametrize("operator", self_check.CHECKS)
def test_kernels_are_right_here(operator, caplog):
    assert self_check.is_right(operator, DEVICE)
    assert not caplog.records


@pytest.mark.parametrize(("operator", "heads"), [
    *self_check.USUAL.items(),
    ("attention", Heads(80, 80, torch.float16)),
    ("rotary_store", Heads(80, 80, torch.float16)),
    ("rotary_store", Heads(64, 32, torch.float32)),
    ("latent_store", Heads(10, 30, torch.float32)),
])  # fmt: skip
def test_kernels_are_right_here_for_heads(operator, heads, caplog, monkeypatch):
    """Decode in one part and in many, too."""
    parts, real = [], attention_triton.decode
    monkeypatch.setattr(attention_triton, "decode", lambda *given, **options: noted(parts, real(*given, **options)))
    assert self_check.is_right(operator, DEVICE, heads)
    assert not caplog.records
    assert "attention" not in operator or min(parts) == 1 < max(parts)


def noted(parts: list[int], launches: list[Launch]) -> list[Launch]:
    parts.append(launches[0].constants["PARTS"])
    return launches


def test_all_is_checked_for_the_heads_that_are_served(monkeypatch):
    asked = []
    wrong = ("norm", DEVICE), ("attention", DEVICE, Heads(8, 8, torch.float32))
    monkeypatch.setattr(self_check, "is_right", lambda *given: asked.append(given) or given not in wrong)
    served = {"attention": [Heads(8, 8, torch.float32), Heads(16, 16, torch.float32)]}
    assert self_check.failing(DEVICE, served) == ["norm", "attention"]
    assert {operator for operator, *_ in asked} == {*self_check.CHECKS, "attention"} and len(asked) == len(self_check.CHECKS) + 2


def test_heads_that_a_kernel_is_wrong_for_give_way_and_others_do_not(dispatched, monkeypatch, caplog):
    real, calls = attention_triton.attend, []

    def attend(q, *rest, **options):
        calls.append(q.shape[2])
        return real(q, *rest, **options) + (q.shape[2] == 16)

    monkeypatch.setattr(attention_triton, "attend", attend)
    keys = RaggedKeys(flat_spans([(0, 1, 3)]), torch.arange(3, dtype=torch.int32, device=DEVICE).unsqueeze(0))
    for size in (16, 32):
        q, k = torch.randn(1, 2, size, device=DEVICE), torch.randn(3, 1, size, device=DEVICE)
        expected = attention.reference.attend(q, k, k, keys, scale=1.0)
        torch.testing.assert_close(attention.attend(q, k, k, keys, scale=1.0), expected, atol=1e-4, rtol=1e-4)
    assert "attention are wrong" in caplog.text and "for heads of 16 and 16 in torch.float32 (plain, many parts" in caplog.text
    assert calls.count(16) == 1 and calls[-1] == 32 and "heads of 32" not in caplog.text


@pytest.mark.parametrize(("version", "is_taken"), [("3.5.1", False), ("3.6.0", True), ("3.10.0+git1", True), ("4.0.0", True), (None, True)])
def test_an_older_triton_is_not_used(version, is_taken, monkeypatch, caplog):
    monkeypatch.setattr(backends, "triton_version", lambda: version)
    assert backends.is_triton_here.__wrapped__() == is_taken
    assert ("is older than 3.6" in caplog.text) != is_taken


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
