"""A step's numbers lie in one upload, so where each begins depends on how many there are: no kernel may be compiled for that."""

import pytest
import torch

from actorllm.execution.runner import ResidentRunner, RunnerSizes
from actorllm.execution.upload import Upload
from actorllm.models.catalog import find_model
from actorllm.testing.model_checks import ModelCase, tiny_config
from tests.execution.conftest import StepBuilder

pytest.importorskip("triton", reason="needs Triton")
from actorllm_kernels.launch import Launch
from tests.kernels.test_dispatch import DISPATCHING

CPU = torch.device("cpu")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What operators launch from now on, as on a GPU."""
    found: list[Launch] = []
    real = Launch.run
    monkeypatch.setattr(Launch, "run", lambda launch: (found.append(launch), real(launch)))
    for package in DISPATCHING:
        monkeypatch.setattr(package, "takes_triton", lambda operator, x, form: True)
        for name in ("suits", "suits_quantized", "suits_lookup") if hasattr(package, "cpu") else ():
            monkeypatch.setattr(package.cpu, name, lambda *_: False, raising=False)
    return found


def test_no_kernel_is_compiled_for_where_a_step_lies_in_its_upload(launched: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    uploads: list[Upload] = []
    real = Upload.send
    monkeypatch.setattr(Upload, "send", lambda upload, *into: (uploads.append(upload), real(upload, *into)))
    model_class = find_model("LlamaForCausalLM")
    model = ModelCase(model_class, tiny_config(model_class, "LlamaForCausalLM")).build()
    sizes = RunnerSizes(num_slots=(512,), max_running=8, context=1024)
    runner, steps = ResidentRunner(model, sizes, dtype=torch.float32, device=CPU), StepBuilder()
    runner.decode = None  # on a GPU steps are not replayed so
    steps.open(0, temperature=1.0, top_k=3, top_p=0.9, seed=1).open(1, presence_penalty=0.5, logit_bias={3: 1.0})
    runner.run(steps.feed(0, [3, 4, 5], to=[0]).feed(1, [6], to=[1]).step())
    runner.run(steps.decode(0, 1).step())

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
