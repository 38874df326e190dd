"""Kernels that are wrong where they run are found out, and their references take their place."""

import logging

import pytest
import torch

from actorllm_kernels import backends, gated, norm
from actorllm_kernels.backends import EXTRAS, Form, Heads, Sizes

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels import checks, self_check
from actorllm_kernels.attention import triton as attention_triton
from actorllm_kernels.gated import triton as gated_triton
from actorllm_kernels.launch import Launch
from actorllm_kernels.linear import triton as linear_triton
from actorllm_kernels.norm import triton as norm_triton
from actorllm_kernels.routing import triton as routing_triton
from actorllm_kernels.sampling import triton as sampling_triton
from actorllm_kernels.token_ids import triton as ids_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def dispatched(monkeypatch):
    """Operators choose as they do on a GPU, whatever is here."""

    def takes_triton(operator: str, x: torch.Tensor, form: Form) -> bool:
        return self_check.is_right(operator, x.device, x.dtype, form)

    for operator in (gated, norm):
        monkeypatch.setattr(operator, "takes_triton", takes_triton)
        monkeypatch.setattr(operator.cpu, "suits", lambda *_: False)


@pytest.mark.parametrize(("operator", "form"), [
    *((operator, form) for operator, check in checks.CHECKS.items() for form in check.forms),
    ("attention", Heads(6, 3, 80, 80, None, EXTRAS)),
    ("attention", Heads(4, 4, 64, 64, torch.int8, frozenset({"sinks", "window"}))),
    ("rotary_store", Heads(5, 1, 80, 80)),
    ("rotary_store", Heads(2, 2, 64, 32, torch.int8)),
    ("latent_store", Heads(3, 1, 10, 30)),
])  # fmt: skip
def test_kernels_are_right_here(operator, form, caplog, monkeypatch):
    """In the dtype of a form's own, or in one of those that are served; of attention decode in one part and in many."""
    parts, real = [], attention_triton.decode
    monkeypatch.setattr(attention_triton, "decode", lambda *given, **options: noted(parts, real(*given, **options)))
    dtype = checks.CHECKS[operator].dtype or (torch.bfloat16, torch.float16, torch.float32)[len(str(form)) % 3]
    assert self_check.is_right(operator, DEVICE, dtype, form)
    assert not caplog.records
    assert "attention" not in operator or min(parts) == 1 < max(parts)


def noted(parts: list[int], launches: list[Launch]) -> list[Launch]:
    parts.append(launches[0].constants["PARTS"])
    return launches


def test_all_is_checked_for_the_heads_and_the_dtype_that_are_served(monkeypatch):
    asked = []
    served = {"attention": [Heads(8, 2, 8, 8), Heads(8, 2, 16, 16)]}
    wrong = ("norm", DEVICE, torch.float16, "rms"), ("attention", DEVICE, torch.float16, served["attention"][0])
    sizes = Sizes(4, 64, frozenset(), frozenset({8}), 100)
    monkeypatch.setattr(self_check, "is_right", lambda *given: asked.append(given[:4]) or given not in [(*each, sizes) for each in wrong])
    assert set(self_check.failing(DEVICE, torch.float16, served, sizes)) == {("norm", "rms"), ("attention", served["attention"][0])}
    forms = {(operator, form) for operator, _, _, form in asked}
    assert {form for operator, form in forms if operator == "attention"} == set(served["attention"])
    assert {operator for operator, _ in forms} == {name for name, check in checks.CHECKS.items() if not check.is_of_heads} | {"attention"}
    kept = {(operator, dtype) for operator, _, dtype, _ in asked if dtype != torch.float16}
    assert kept == {
        ("routing", torch.float32), ("sampling", torch.float32), ("counting", torch.int64), ("token_ids", torch.int64),
    }  # fmt: skip


def test_a_kernel_that_is_wrong_at_a_size_that_is_served_is_not_used(monkeypatch, caplog):
    real = norm_triton.rms_norm
    monkeypatch.setattr(norm_triton, "rms_norm", lambda x, *rest, **options: real(x, *rest, **options) + (x.shape[1] == 24))
    asked = "norm", DEVICE, torch.float16, "rms"
    assert self_check.is_right(*asked)
    assert not self_check.is_right(*asked, Sizes(4, 64, frozenset(), frozenset({16, 24}), 100))
    assert not self_check.is_right(*asked) and "norm of 24: " in caplog.text


USUAL = Sizes(4, 256, frozenset({64}), frozenset({4096}), 128_256)


def wrong_norm(x, *_):
    x[:, -1] = 0


def wrong_logits(logits, given):
    logits[:, -256:] = given[:, -256:]


def wrong_product(x, *_):
    x *= 1.015


def wrong_head(x, *_):
    x[1, 5, : x.shape[2] // 4] = 0


@pytest.mark.parametrize(("operator", "form", "dtype", "module", "name", "spoil"), [
    *(("norm", "rms", dtype, norm_triton, "rms_norm", wrong_norm) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    ("sampling", "penalize", torch.float32, sampling_triton, "penalize", wrong_logits),
    *(("linear", "int8", dtype, linear_triton, "linear_weight_only", wrong_product) for dtype in (torch.float32, torch.float16)),
    ("routing", "softmax", torch.float32, routing_triton, "choose", wrong_product),
    *(("attention", Heads(64, 8, 64, 64), dtype, attention_triton, "attend", wrong_head) for dtype in (torch.float32, torch.bfloat16)),
])  # fmt: skip
def test_what_no_norm_of_all_shows_is_found(operator, form, dtype, module, name, spoil, monkeypatch, caplog):
    """A value of thousands, tokens at a vocabulary's end, a factor near one, a quarter of one head of one token."""
    real = getattr(module, name)

    def spoilt(x, *rest, **options):
        given = x.clone()
        result = real(x, *rest, **options)
        first = x if result is None else result[0] if isinstance(result, tuple) else result
        if operator != "attention" or len(x) > 20:
            spoil(first, given)
        return result

    monkeypatch.setattr(module, name, spoilt)
    assert not self_check.is_right(operator, DEVICE, dtype, form, USUAL)
    assert "are wrong" in caplog.text
    assert self_check.verdicts(DEVICE)[operator, dtype, form] == {USUAL if checks.CHECKS[operator].is_of_sizes else None: False}


@pytest.mark.parametrize("rows", [1, 5, 20, 60, 130, 257])
def test_products_of_one_row_few_and_many_are_checked(rows, monkeypatch, caplog):
    real = linear_triton.linear_weight_only
    monkeypatch.setattr(linear_triton, "linear_weight_only", lambda x, weight: real(x, weight) + (len(x) == rows))
    assert not self_check.is_right("linear", DEVICE, torch.float16, "int8")
    assert f"linear (int8, torch.float16) are wrong on {DEVICE} ({rows} rows:" in caplog.text


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_each_phase_of_attention_is_checked(phase, monkeypatch, caplog):
    """A phase that is not launched leaves zeros."""
    real = attention_triton.launches

    def launches(*given, out_THE, **options):
        is_left = {"decode": ("decode_kernel", "merge_kernel"), "prefill": ("prefill_kernel",)}[phase]
        return [launch for launch in real(*given, out_THE=out_THE.zero_(), **options) if launch.name not in is_left]

    monkeypatch.setattr(attention_triton, "launches", launches)
    assert not self_check.is_right("attention", DEVICE, torch.float16, Heads(2, 1, 64, 64))
    assert "2:1 heads of 64 and 64, torch.float16" in caplog.text


@pytest.mark.parametrize(("version", "is_taken"), [("3.5.1", False), ("3.6.0", True), ("3.10.0+git1", True), ("3.6rc1", True), ("3.5rc1", False), ("main", True), ("4.0.0", True), (None, True)])
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
    assert "gated (relu, torch.float32) are wrong" in caplog.text and "product: relative error 1" in caplog.text


@pytest.mark.parametrize("samples", ["greedy", "drawn"])
def test_a_neighbour_of_the_right_token_is_wrong(samples, monkeypatch, caplog):
    real = sampling_triton.draw

    def shifted(logits, places, *rest, **options):
        return real(logits, places, *rest, **options) + ((places == 0) == (samples == "greedy"))

    monkeypatch.setattr(sampling_triton, "draw", shifted)
    assert not self_check.is_right("sampling", DEVICE, torch.float32, "draw")
    assert f"sampling (draw, torch.float32) are wrong on {DEVICE} ({samples}:" in caplog.text


def test_ids_in_wrong_rows_are_wrong(monkeypatch):
    real = ids_triton.scatter_ids
    monkeypatch.setattr(ids_triton, "scatter_ids", lambda ids, rows, last: real(ids, rows.flip(0), last))
    assert not self_check.is_right("token_ids", DEVICE, torch.int64, "scatter")


def test_nan_is_wrong(monkeypatch, caplog):
    monkeypatch.setattr(gated_triton, "gated", lambda gate, up, *, activation: gate * torch.nan)
    assert not self_check.is_right("gated", DEVICE, torch.bfloat16, "silu")
    assert "is not finite" in caplog.text


def test_a_kernel_that_raises_gives_way_to_its_reference(dispatched, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(norm_triton, "launch", fail)
    x, weight = torch.randn(3, 8, device=DEVICE), torch.ones(8, device=DEVICE)
    assert torch.equal(norm.rms_norm(x, weight, eps=1e-3), norm.reference.rms_norm(x, weight, eps=1e-3))
    assert "norm (rms, torch.float32) do not run" in caplog.text and "no kernel image is available" in caplog.text


def test_it_is_found_out_once(dispatched, monkeypatch):
    calls = []
    real = gated_triton.launch
    monkeypatch.setattr(gated_triton, "launch", lambda *args, **options: calls.append(options) or real(*args, **options))
    gate, up = torch.randn(2, 3, 8, device=DEVICE).unbind()
    for _ in range(3):
        torch.testing.assert_close(gated.gated(gate, up, activation="relu"), gate.relu() * up)
    assert len(calls) == 1 + 3
