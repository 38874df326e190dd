"""Every operator, form by form: where its Triton kernels are right they compute, and where one is broken its reference does, alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import actorllm_kernels
from actorllm_kernels import (
    attention,
    backends,
    embedding,
    experts,
    gated,
    latent_attention,
    linear,
    norm,
    rotary_store,
    routing,
    sampling,
    token_ids,
)
from actorllm_kernels.backends import Form, Heads
from actorllm_kernels.gated import GatedProduct
from actorllm_kernels.linear import IntWeight
from actorllm_kernels.routing import Rule
from actorllm_kernels.sampling import Adjustments, Needs, Rows, Seen

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels import checks, self_check
from actorllm_kernels.attention import triton as attention_triton
from actorllm_kernels.embedding import triton as embedding_triton
from actorllm_kernels.experts import triton as experts_triton
from actorllm_kernels.gated import triton as gated_triton
from actorllm_kernels.linear import triton as linear_triton
from actorllm_kernels.linear import triton_fp8
from actorllm_kernels.norm import triton as norm_triton
from actorllm_kernels.rotary_store import triton as store_triton
from actorllm_kernels.routing import triton as routing_triton
from actorllm_kernels.sampling import triton as sampling_triton
from actorllm_kernels.token_ids import triton as ids_triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DISPATCHING = (attention, embedding, experts, gated, linear, norm, rotary_store, routing, sampling, token_ids)
ASKED = [(operator, form) for operator, check in checks.CHECKS.items() for form in check.forms]
OFF = [1.0, 40, 1.0, 0.0, 1.0, 0.0, 0.0]
"""Temperature, top-k, top-p, min-p and penalties of a plain draw from 40 tokens."""

Tensors = tuple[Tensor, ...]
Functions = dict[str, Callable[[tuple, Any], Tensors]]


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def results(_arguments: tuple, result: Tensor | Tensors) -> Tensors:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def argument(index: int) -> Callable[[tuple, object], Tensors]:
    """The one that a function changes."""
    return lambda arguments, _result: (arguments[index],)


class Dispatch(NamedTuple):
    """How an operator is asked for a form, for results in float32; the module of its kernels, and where its functions give theirs."""

    ask: Callable[[Form], Tensors]
    triton: ModuleType
    functions: Functions


def ask_attention(heads: Heads) -> Tensors:
    num_heads, num_kv_heads, key_size, value_size, quantized, extras = heads
    k, v = (values(9, num_kv_heads, size, seed=size) for size in (key_size, value_size))
    options: dict[str, object] = {"soft_cap": 2.0} if "soft cap" in extras else {}
    options |= {name: values(num_heads) for name in ("sinks_H", "slopes_H") if name.removesuffix("_H") in extras}
    if quantized:
        (k, options["k_scales_NK"]), (v, options["v_scales_NK"]) = (checks.quantize(pool, quantized) for pool in (k, v))
    return (attention.attend(values(3, num_heads, key_size), k, v, keys(4 if "window" in extras else None), scale=0.1, **options),)


def keys(window: int | None = None) -> attention.RaggedKeys:
    """A row that decodes, and a chunk of two."""
    slots = torch.randperm(9, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.int32)
    return attention.RaggedKeys(attention.flat_spans([(0, 1, 7), (0, 2, 9)]), slots.unsqueeze(0), window)


def ask_latent_attention(heads: Heads) -> Tensors:
    num_heads, _, size, latent_size, quantized, _ = heads
    pool, scales = values(9, size, seed=1), None
    if quantized:
        pool, scales = (pool * 20).to(quantized), values(9, 2, seed=2).abs()
    options = {"latent_size": latent_size, "scale": 0.01, "scales_N2": scales}
    return (latent_attention.attend_latent(values(3, num_heads, size), pool, keys(), **options),)


def ask_rotary_store(heads: Heads) -> Tensors:
    num_heads, num_kv_heads, key_size, value_size, quantized, _ = heads
    pools = tuple(torch.zeros(5, num_kv_heads, size, device=DEVICE).to(quantized or torch.float32) for size in (key_size, value_size))
    scales = (torch.zeros(5, num_kv_heads, device=DEVICE), torch.zeros(5, num_kv_heads, device=DEVICE)) if quantized else None
    given = values(2, num_heads, key_size), values(2, num_kv_heads, key_size, seed=1), values(2, num_kv_heads, value_size, seed=2)
    q = rotary_store.rotate_and_store(*given, angles(key_size), torch.tensor([4, 1], device=DEVICE), pools, scales)
    return q, *(scales or pools)


def angles(size: int) -> rotary_store.Angles:
    turns = torch.cat((values(2, 1, size // 2, seed=3),) * 2, dim=-1)
    return rotary_store.Angles(turns.cos(), turns.sin())


def ask_latent_store(heads: Heads) -> Tensors:
    num_heads, _, rotated, latent_size, quantized, _ = heads
    pool = torch.zeros(5, latent_size + rotated, device=DEVICE).to(quantized or torch.float32)
    scales = torch.zeros(5, 2, device=DEVICE) if quantized else None
    given = values(2, num_heads, rotated), values(2, latent_size, seed=1), values(2, rotated, seed=2)
    slots = torch.tensor([4, 1], device=DEVICE)
    q = latent_attention.rotate_and_store_latent(*given, angles(rotated), slots, pool, scales_N2=scales)
    return q, pool if scales is None else scales


def ask_norm(form: str) -> Tensors:
    x, y, weight = values(2, 40), values(2, 40, seed=1), values(40, seed=2)
    if form == "rms":
        return norm.rms_norm(x, weight, eps=1e-5), *norm.add_rms_norm(x, y, weight, eps=1e-5)
    options = {"weight_D": weight, "bias_D": weight, "eps": 1e-5}
    return norm.layer_norm(x, **options), *norm.add_layer_norm(x, y, **options)


def ask_linear(form: str) -> Tensors:
    codes, scales = checks.codes_of(form, values(32, 128, seed=1))
    if form == "fp8":
        return (linear.Fp8().linear(values(3, 128), (codes.view(torch.uint8), scales[:, 0]), 32),)
    weight = IntWeight(codes, scales)
    return (linear.WeightOnly(int(form[3])).linear(values(3, 128), (weight.codes_OI, weight.scales_OG), 32),)


def ask_routing(form: str) -> Tensors:
    scores, _, groups = form.partition(" ")
    rule = Rule(12, 2, "softmax" if scores == "softmax" else "sigmoid", num_groups=4 if groups else 1, top_groups=2)
    return routing.choose(values(3, 12), None, rule=rule)


def ask_experts(form: str) -> Tensors:
    gate_up, down = (checks.stacked(form, values(3, size, 64, seed=size)) for size in (128, 64))
    chosen = torch.tensor([[0, 2], [1, 2]], device=DEVICE)
    stack = experts.ExpertStack(gate_up, down)
    return (experts.run_experts(values(2, 64), values(2, 2).abs(), chosen, stack, combine=GatedProduct()),)


def ask_embedding(_form: str) -> Tensors:
    return (embedding.embedding(torch.tensor([3, 0], device=DEVICE), values(4, 20)),)


def ask_token_ids(form: str) -> Tensors:
    ids, rows, last = torch.tensor([-1, 5], device=DEVICE), torch.tensor([2, 0], device=DEVICE), torch.arange(3, device=DEVICE)
    if form == "gather":
        return (token_ids.gather_ids(ids, rows, last),)
    token_ids.scatter_ids(ids, rows, last)
    return (last,)


def ask_sampling(form: str) -> Tensors:
    logits, where = values(2, 40), torch.arange(2, device=DEVICE)
    asked = [OFF, [1.0, 40, 1.0, 0.0, 1.5, 0.5, 0.5]]
    rows = Rows(where + 7, torch.tensor(asked, dtype=torch.float64, device=DEVICE))
    if form in ("greedy", "draw"):
        return (sampling.draw(logits, where, where, rows=rows, needs=Needs(is_random=form == "draw")),)
    if form == "penalize":
        sampling.penalize(logits, where, Seen(torch.ones_like(logits).int(), logits > 0), rows=rows)
    else:
        ids = torch.tensor([[1], [2]], device=DEVICE)
        adjustments = Adjustments(torch.ones_like(where), ids, torch.ones(2, 1, device=DEVICE), torch.zeros_like(ids))
        sampling.adjust(logits, where, where, adjustments=adjustments)
    return (logits,)


def ask_counting(_form: str) -> Tensors:
    ids, seen = torch.tensor([4, -1], device=DEVICE), Seen(torch.ones(2, 5, dtype=torch.int32, device=DEVICE), values(2, 5) > 0)
    sampling.count(ids, torch.tensor([1, 0], device=DEVICE), seen)
    return (seen.output_RV,)


DISPATCH = {
    "attention": Dispatch(ask_attention, attention_triton, {"attend": results}),
    "latent_attention": Dispatch(ask_latent_attention, attention_triton, {"attend": results}),
    "rotary_store": Dispatch(ask_rotary_store, store_triton, {"rotate_and_store": results}),
    "latent_store": Dispatch(ask_latent_store, store_triton, {"rotate_and_store_latent": results}),
    "norm": Dispatch(ask_norm, norm_triton, dict.fromkeys(("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"), results)),
    "gated": Dispatch(
        lambda form: (gated.gated(values(2, 9), values(2, 9, seed=1), activation=str(form)),), gated_triton, {"gated": results}
    ),
    "linear": Dispatch(ask_linear, linear_triton, {"linear_weight_only": results}),
    "routing": Dispatch(ask_routing, routing_triton, {"choose": results}),
    "experts": Dispatch(ask_experts, experts_triton, {"run_experts": results}),
    "embedding": Dispatch(ask_embedding, embedding_triton, {"embedding": results}),
    "token_ids": Dispatch(ask_token_ids, ids_triton, {"gather_ids": results, "scatter_ids": argument(2)}),
    "sampling": Dispatch(ask_sampling, sampling_triton, {"draw": results, "penalize": argument(0), "adjust": argument(0)}),
    "counting": Dispatch(ask_counting, sampling_triton, {"count": lambda given, _: (given[2].output_RV,)}),
}  # fmt: skip


def dispatch_of(operator: str, form: Form) -> Dispatch:
    """Products of 8-bit floats have a module of their own."""
    found = DISPATCH[operator]
    is_fp8 = (operator, form) == ("linear", "fp8")
    return found._replace(triton=triton_fp8, functions={"linear_fp8": results}) if is_fp8 else found


def refuse_cpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators choose as they do on a GPU, whatever is here."""
    for package in DISPATCHING:
        for name in ("suits", "suits_quantized", "suits_lookup") if hasattr(package, "cpu") else ():
            monkeypatch.setattr(package.cpu, name, lambda *_: False, raising=False)


@pytest.fixture(autouse=True)
def no_cpu_kernels(monkeypatch, unchecked):
    refuse_cpu_kernels(monkeypatch)


@pytest.fixture
def dispatch(monkeypatch):
    """Lets a predicate of operator, dtype and form say which kernels are taken."""

    def set_to(takes: Callable[[str, torch.dtype, Form], bool]) -> None:
        for package in DISPATCHING:
            monkeypatch.setattr(package, "takes_triton", lambda operator, x, form: takes(operator, x.dtype, form))

    return set_to


def noted(functions: Functions, triton: ModuleType, monkeypatch, *, change: Callable[[Tensor], object] = lambda _: None) -> list[str]:
    """The names of the functions of kernels as they are called from now on; `change` gets what they give."""
    calls: list[str] = []

    def replaced(name: str, real: Callable) -> Callable:
        def call(*arguments, **options):
            calls.append(name)
            result = real(*arguments, **options)
            for tensor in functions[name](arguments, result):
                change(tensor)
            return result

        return call

    for name in functions:
        monkeypatch.setattr(triton, name, replaced(name, getattr(triton, name)))
    return calls


def same(got: Tensors, expected: Tensors) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), atol=1e-3 * max(1.0, theirs.float().abs().max().item()), rtol=0)


@pytest.mark.parametrize(("operator", "form"), ASKED)
def test_kernels_compute_where_they_are_taken(operator, form, dispatch, monkeypatch):
    ask, triton, functions = dispatch_of(operator, form)
    asked: set[tuple[str, Form]] = set()
    dispatch(lambda *given: False)
    expected = ask(form)
    calls = noted(functions, triton, monkeypatch)
    dispatch(lambda name, dtype, given: (name == operator and asked.add((name, given))) is None)
    got = ask(form)
    assert calls and asked == {(operator, form)}
    same(got, expected)


@pytest.mark.parametrize(("operator", "form"), ASKED)
def test_a_broken_kernel_gives_way_in_its_form_alone(operator, form, dispatch, monkeypatch, caplog):
    ask, triton, functions = dispatch_of(operator, form)
    dispatch(lambda *given: False)
    expected = ask(form)
    check, checked = checks.CHECKS[operator], []

    def compare(device, dtype, each, **sizes):
        checked.append(each)  # other forms are compared elsewhere
        return check.compare(device, dtype, each, **sizes) if each == form else iter(())

    monkeypatch.setitem(checks.CHECKS, operator, replace(check, compare=compare))
    calls = noted(functions, triton, monkeypatch, change=lambda tensor: tensor.add_(1))
    dispatch(lambda name, dtype, given: name == operator and self_check.is_right(name, DEVICE, dtype, given))
    dtype = check.dtype or torch.float32
    assert not self_check.is_right(operator, DEVICE, dtype, form) and calls
    assert f"{operator} ({form}, {dtype}) are wrong on {DEVICE}" in caplog.text and len(caplog.records) == 1
    calls.clear()
    for got, wanted in zip(ask(form), expected, strict=True):
        assert torch.equal(got, wanted)
    assert not calls and set(checked) == {form}
    for other in [each for each in check.forms if each != form and dispatch_of(operator, each).triton is triton][:1]:
        ask(other)
        assert calls and set(checked) == {form, other} and len(caplog.records) == 1


def test_every_operator_with_triton_kernels_is_here():
    packages = {path.parent.name for path in Path(actorllm_kernels.__path__[0]).glob("*/triton*.py")}
    assert packages <= set(checks.CHECKS) and set(DISPATCH) == set(checks.CHECKS)
    assert {package.__name__.rpartition(".")[2] for package in DISPATCHING} == packages


def test_experts_of_two_forms_need_both(dispatch, monkeypatch):
    stack = experts.ExpertStack(checks.stacked("int8", values(3, 128, 64)), checks.stacked("fp8", values(3, 64, 64)))
    given = values(2, 64), values(2, 1).abs(), torch.tensor([[0], [2]], device=DEVICE)
    calls = noted({"run_experts": results}, experts_triton, monkeypatch)
    for wrong, is_taken in (("int8", False), ("fp8", False), ("int4", True)):
        calls.clear()
        dispatch(lambda name, dtype, form, wrong=wrong: name == "experts" and form != wrong)
        experts.run_experts(*given, stack, combine=GatedProduct())
        assert bool(calls) == is_taken


def test_a_gpu_whose_triton_cannot_be_imported_is_warned_of(monkeypatch, caplog):
    def fail(name):
        raise ImportError(f"libcuda.so lacks what {name} needs")

    monkeypatch.setattr(backends.importlib, "import_module", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not backends.is_triton_here.__wrapped__() and not caplog.records
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not backends.is_triton_here.__wrapped__()
    assert "Triton cannot be imported" in caplog.text and "libcuda.so" in caplog.text and "pip install triton" in caplog.text
