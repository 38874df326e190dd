"""Codes that a checkpoint holds are served as they are: no value is rounded twice, wherever a form has the same codes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from actorllm.execution.model_plan import plan_model
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings
from actorllm.weights.checkpoint import Checkpoint, num_values
from actorllm.weights.compact import CodesFormat, CompactFormat, CompactWeight
from actorllm.weights.compress import CodeScheme, write_tensors
from actorllm.weights.compressed import CompressedFormat, read_compressed
from actorllm.weights.formats import PlainFormat
from actorllm.weights.int_codes import IntCodes
from actorllm.weights.linear_weight import DenseWeight
from actorllm_kernels.linear import Bf16, Form, Int4, Int8, WeightOnly

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
SHAPE = (24, 256)
NAME = "mlp.up_proj"


def write(
    folder, num_bits: int, group_len: int | None, dtype: torch.dtype = torch.bfloat16
) -> tuple[CompressedFormat, torch.Tensor]:
    """A checkpoint of one linear, and its values before they were rounded."""
    plain, target = folder / "plain", folder / "codes"
    plain.mkdir()
    target.mkdir()
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_file({f"{NAME}.weight": weight, "norm.weight": torch.ones(8)}, plain / "model.safetensors")
    scheme = CodeScheme(num_bits, group_len)
    write_tensors(plain, target, linears={NAME: False}, scheme=scheme, on_progress=lambda _: None)
    return read_compressed(scheme.settings([])), weight


def read(folder, storage, *, cols: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32):
    with Checkpoint.open(folder / "codes", dtype=dtype, storage=storage) as checkpoint:
        return checkpoint.linear(NAME, SHAPE, cols=cols)


@pytest.mark.parametrize(
    ("num_bits", "group_len", "form"),
    [
        (8, None, Int8()), (4, 32, Int4()), (4, 128, Int4()), (4, None, Int4(128)),
        (8, None, WeightOnly(8)), (8, 64, WeightOnly(8)), (4, 32, WeightOnly(4)), (4, None, WeightOnly(4)),
    ],
)  # fmt: skip
def test_they_stand_for_what_is_stored(tmp_path, num_bits, group_len, form):
    stored, weight = write(tmp_path, num_bits, group_len)
    expected = IntCodes.quantized(weight, num_bits=num_bits, group_len=group_len)
    got = read(tmp_path, CompactFormat(stored, form))
    assert isinstance(got, CompactWeight) and got.form is form
    assert torch.equal(got.codes[0], expected.codes_OI)
    assert torch.equal(got.dense(), expected.dense(torch.float32))
    ids = torch.tensor([3, 0])
    assert torch.equal(got.packed().rows(ids), expected.dense(torch.float32)[ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_bits", "group_len", "form"),
    [(8, None, Int8()), (8, None, WeightOnly(8)), (4, 32, Int4(32)), (4, 128, Int4(128)), (4, 128, WeightOnly(4))],
)  # fmt: skip
def test_a_stored_linear_is_the_one_rounded_while_loading(tmp_path, num_bits, group_len, form, dtype):
    stored, weight = write(tmp_path, num_bits, group_len, dtype)
    again, x = CompactWeight(form, form.codes(weight)), torch.randn(3, SHAPE[1])
    got = read(tmp_path, CompactFormat(stored, form))
    assert all(torch.equal(one, other) for one, other in zip(got.codes, again.codes, strict=True))
    assert torch.equal(got(x), again(x))


@pytest.mark.parametrize("form", [Int8(), Int4(), WeightOnly(4), Bf16()])
@pytest.mark.parametrize("rows", [None, (3, 20)])
def test_linears_become_codes_some_rows_after_another(tmp_path, monkeypatch, form, rows):
    write(tmp_path, 8, None)

    def pull(name: str) -> tuple[torch.Tensor, int]:
        read: list[int] = []
        with Checkpoint.open(tmp_path / "plain", storage=CompactFormat(PlainFormat(), form), on_progress=read.append) as checkpoint:
            weight = getattr(checkpoint, name)(NAME, SHAPE, rows=rows)
        return weight.dense(), max(read)

    expected, whole = pull("linear")
    monkeypatch.setattr("actorllm.weights.compact.PIECE_VALUES", 5 * SHAPE[1])
    for name in ("linear", "table"):
        got, most = pull(name)
        assert torch.equal(got, expected) and most == 5 * SHAPE[1] * 2 < whole


@pytest.mark.parametrize("form", [Int4(), WeightOnly(4)])
@pytest.mark.parametrize(("cols", "is_kept"), [((64, 192), True), ((32, 256), False), ((0, 100), False)])
def test_a_part_keeps_its_codes_where_it_begins_and_ends_with_groups(tmp_path, form, cols, is_kept):
    stored, weight = write(tmp_path, 4, 64)
    expected = IntCodes.quantized(weight, num_bits=4, group_len=64).dense(torch.float32)
    got = read(tmp_path, CompactFormat(stored, form), cols=cols).dense()
    assert torch.equal(got, expected[:, slice(*cols)]) == is_kept
    assert torch.equal(
        read(tmp_path, CodesFormat(stored, form, dtype=torch.float32), cols=cols).dense(), expected[:, slice(*cols)]
    )


@pytest.mark.parametrize(
    ("num_bits", "group_len", "scale_dtype", "form"),
    [
        (8, 64, torch.bfloat16, Int8()), (4, 32, torch.bfloat16, Int8()), (4, 32, torch.float32, Int4()),
        (4, 32, torch.bfloat16, Int4(64)), (8, None, torch.bfloat16, Bf16()),
    ],
)  # fmt: skip
def test_what_a_form_does_not_have_is_rounded_again(tmp_path, num_bits, group_len, scale_dtype, form: Form):
    stored, _ = write(tmp_path, num_bits, group_len)
    if scale_dtype == torch.float32:  # with digits that bfloat16 has not
        tensors = load_file(tmp_path / "codes" / "model.safetensors")
        tensors[f"{NAME}.weight_scale"] = tensors[f"{NAME}.weight_scale"].float() * 1.001
        save_file(tensors, tmp_path / "codes" / "model.safetensors")
    dense = read(tmp_path, stored).dense()
    got = read(tmp_path, CompactFormat(stored, form))
    assert isinstance(got, CompactWeight)
    assert torch.equal(got.dense(), form.values(form.codes(dense)))
    assert isinstance(read(tmp_path, CodesFormat(stored, form, dtype=torch.float32)), DenseWeight)


@pytest.mark.parametrize(("num_bits", "group_len"), [(4, 128), (4, 32), (8, None), (8, 64)])
@pytest.mark.parametrize("is_packed", [True, False])
def test_memory_is_that_of_the_codes(tmp_path, num_bits, group_len, is_packed):
    stored, weight = write(tmp_path, num_bits, group_len)
    if not is_packed:  # one code a byte, under the name of a plain weight
        codes = IntCodes.quantized(weight, num_bits=num_bits, group_len=group_len)
        tensors = {f"{NAME}.weight": codes.codes_OI, f"{NAME}.weight_scale": codes.scale_OG.to(weight.dtype), "norm.weight": torch.ones(8)}
        save_file(tensors, tmp_path / "codes" / "model.safetensors")
        stored = replace(stored, is_packed=False)
    kept = CodesFormat(stored, WeightOnly(num_bits), dtype=torch.bfloat16)
    packed = read(tmp_path, kept, dtype=torch.bfloat16).packed()
    num_bytes = sum(tensor.nbytes for tensor in packed.tensors)
    assert num_values(tmp_path / "codes", kept) * 2 == num_bytes + 16


@pytest.mark.parametrize(("scheme", "kept"), [({}, 128), ({"actorder": "group"}, None), ({"symmetric": False}, None), ({"num_bits": 8}, None)])
def test_groups_are_wide_only_where_codes_can_stay_as_they_are(tmp_path, scheme, kept):
    config = CONFIG | {"quantization_config": CodeScheme(4, 128).settings([])}
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= scheme
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = EngineSettings(model=ModelSettings(path=str(tmp_path), quantize="int4"))
    precision = plan_model(tmp_path, settings, has_files=False).precision
    assert precision.form.group_len == 32 and kept == (precision.kept_form and precision.kept_form.group_len)


@pytest.mark.parametrize(("device", "quantize", "kind"), [
    ("cuda", None, CodesFormat), ("cuda", "int8", CompactFormat), ("cpu", None, CompressedFormat), ("cpu", "int4", CompactFormat),
])  # fmt: skip
def test_which_models_keep_their_codes(tmp_path, device, quantize, kind):
    config = CONFIG | {"quantization_config": CodeScheme(4, 32).settings([])}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = EngineSettings(
        model=ModelSettings(path=str(tmp_path), quantize=quantize, dtype="auto" if device == "cuda" else "float32"),
        execution=ExecutionSettings(device=device),
    )
    assert type(plan_model(tmp_path, settings, has_files=False).kept) is kind
