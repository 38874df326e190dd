"""Stacks of MXFP4 are read as the values that their bits mean, part by part, and nothing else is taken for one."""

import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from actorllm.errors import CheckpointError, TensorLeftOver, UnsupportedConfig
from actorllm.weights.checkpoint import Checkpoint, num_values
from actorllm.weights.formats import PlainFormat
from actorllm.weights.mxfp4 import Mxfp4Format
from actorllm.weights.stored import stored_format
from tests.weights.mxfp4 import float4, random_mxfp4

SHAPE = (3, 6, 96)


@pytest.fixture
def values(tmp_path):
    """The values of a stack `up` that lies in a checkpoint, beside a plain stack `down` and a plain linear `out`."""
    values, blocks, scales = random_mxfp4(SHAPE, exponents=(-9, 7))
    plain = {"down": torch.arange(24.0).view(2, 3, 4), "out.weight": torch.arange(6.0).view(2, 3)}
    save_file(plain | {"up_blocks": blocks, "up_scales": scales}, tmp_path / "model.safetensors")
    return values


def opened(folder, **settings) -> Checkpoint:
    return Checkpoint.open(folder, storage=Mxfp4Format(), **settings)


def dense(weights) -> torch.Tensor:
    return torch.stack([weight.weight for weight in weights])


def test_the_sixteen_values():
    assert [float4(code) for code in range(16)] == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "cols"), [(None, None), ((2, 5), None), (None, (32, 64)), ((0, 2), (7, 70)), (None, (90, 96))])
def test_parts_are_the_values_of_their_bits(tmp_path, values, rows, cols, dtype):
    with opened(tmp_path, dtype=dtype) as checkpoint:
        got = dense(checkpoint.stack("up", SHAPE, rows=rows, cols=cols))
    assert got.dtype == dtype and got.is_contiguous()
    assert torch.equal(got, values[:, slice(*(rows or (None,))), slice(*(cols or (None,)))].to(dtype))


def test_transformers_reads_the_same_values(values):
    _, blocks, scales = random_mxfp4(SHAPE, exponents=(-9, 7))
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(theirs.transpose(1, 2), values)


def test_what_has_no_blocks_is_plain(tmp_path, values):
    with opened(tmp_path) as checkpoint:
        assert torch.equal(dense(checkpoint.stack("down", (2, 3, 4), cols=(1, 3))), torch.arange(24.0).view(2, 3, 4)[:, :, 1:3])
        assert torch.equal(checkpoint.linear("out", (2, 3)).weight, torch.arange(6.0).view(2, 3))
        with pytest.raises(TensorLeftOver, match="up_blocks, up_scales"):
            checkpoint.finish({})
        for _ in checkpoint.stack("up", SHAPE):
            pass
        checkpoint.finish({})


def test_a_survey_reads_nothing(tmp_path, values):
    read = []
    with opened(tmp_path, on_progress=read.append) as checkpoint, checkpoint.survey():
        weights = list(checkpoint.stack("up", SHAPE, rows=(1, 4), cols=(0, 40)))
    assert [weight.weight.shape for weight in weights] == [(3, 40)] * 3 and not read
    assert all(weight.weight.device.type == "meta" for weight in weights)


@pytest.mark.parametrize("shape", [(3, 6, 64), (3, 5, 96), (2, 6, 96), (3, 6, 80)])
def test_another_shape_is_an_error(tmp_path, values, shape):
    with opened(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="up"):
        list(checkpoint.stack("up", shape))


def test_memory_is_counted_in_values(tmp_path, values):
    assert num_values(tmp_path, Mxfp4Format()) == values.numel() + 24 + 6


def test_the_format_that_config_json_names():
    assert type(stored_format({})) is type(stored_format({"quantization_config": None})) is PlainFormat
    published = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    assert isinstance(stored_format({"quantization_config": published}), Mxfp4Format)
    for refused in ({"quant_method": "fp8"}, {"bits": 4}, "mxfp4", {**published, "block_size": 64}):
        with pytest.raises(UnsupportedConfig, match=r"quantized by|block_size|object"):
            stored_format({"quantization_config": refused})
