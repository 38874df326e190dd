"""What a model's steps launch is compiled before they come, and for every step alike, wherever its numbers lie in its upload."""

import pytest
import torch

from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.execution.served_heads import served_heads, served_sizes
from actorllm.execution.upload import Upload
from actorllm.models.catalog import find_model
from actorllm.testing.model_checks import ModelCase, tiny_config
from tests.execution.conftest import StepBuilder

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels import self_check
from actorllm_kernels.launch import Launch
from tests.kernels.test_dispatch import DISPATCHING, refuse_cpu_kernels

CPU = torch.device("cpu")
SIZES = RunnerSizes(num_slots=(512,), max_running=8, context=4096)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    """Operators choose as they do on a GPU."""
    refuse_cpu_kernels(monkeypatch)
    for package in DISPATCHING:
        monkeypatch.setattr(package, "takes_triton", lambda operator, x, form: True)


def model_of(architecture: str):
    model_class = find_model(architecture)
    windows = {"sliding_window": 1040} if architecture.startswith("Mistral") else {}
    return ModelCase(model_class, {**tiny_config(model_class, architecture), **windows}).build()


def run_steps(model) -> None:
    """A chunk and a short prompt, one step in which both rows go on, and one of the first row alone."""
    runner, steps = ResidentRunner(model, SIZES, dtype=torch.float32, device=CPU), StepBuilder()
    runner.decode = None  # on a GPU steps are not replayed so
    steps.open(0, temperature=1.0, top_k=3, top_p=0.9, seed=1).open(1, presence_penalty=0.5, logit_bias={3: 1.0})
    runner.run(steps.feed(0, [3, 4, 5], to=[0]).feed(1, [6], to=[1]).step())
    runner.run(steps.decode(0, 1).step())
    runner.run(steps.decode(0).step())


def test_no_kernel_is_compiled_for_where_a_step_lies_in_its_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    launched, uploads = [], []
    run, send = Launch.run, Upload.send
    monkeypatch.setattr(Launch, "run", lambda launch: (launched.append(launch), run(launch)))
    monkeypatch.setattr(Upload, "send", lambda upload, *into: (uploads.append(upload), send(upload, *into)))
    run_steps(model_of("LlamaForCausalLM"))

    begins = [(int(upload.numbers.data_ptr()), upload.numbers.nbytes) for upload in uploads if upload.numbers is not None]
    from_uploads = {
        (launch.name, name)
        for launch in launched
        for name, value in launch.arguments.items()
        if isinstance(value, torch.Tensor) and any(begin <= value.data_ptr() < begin + size for begin, size in begins)
    }
    kernels = {launch.name: launch for launch in launched}
    assert {"decode_kernel", "merge_kernel", "prefill_kernel", "rotary_store_kernel", "draw_kernel", "penalize_kernel"} <= {*kernels}
    assert {("decode_kernel", "span_ptr"), ("rotary_store_kernel", "slot_ptr"), ("gather_ids_kernel", "row_ptr")} <= from_uploads
    assert {(name, pointer) for name, pointer in from_uploads if pointer not in kernels[name].unaligned} == set()


def compiled_as(launch: Launch) -> tuple[str, str, str]:
    """What Triton compiles anew for."""
    return launch.name, str(launch.specialisation()), str(launch.options)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_what_steps_launch_was_compiled_by_the_check_at_start(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, launched, run = model_of(architecture), [], Launch.run
    with monkeypatch.context() as patches:
        patches.setattr(Launch, "run", lambda launch: launched.append(launch))
        patches.setattr(self_check, "compare", lambda *given: (0.0, ""))
        sizes = served_sizes(model, max_running=SIZES.max_running, context=SIZES.context)
        assert not self_check.failing(CPU, torch.float32, served_heads(model, None), sizes)
    compiled, served = {compiled_as(launch) for launch in launched}, []
    monkeypatch.setattr(Launch, "run", lambda launch: (served.append(launch), run(launch)))
    run_steps(model)
    assert len({launch.constants["PARTS"] for launch in served if launch.name == "decode_kernel"}) > 1
    assert {compiled_as(launch) for launch in served} - compiled == set()
