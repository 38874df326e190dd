"""Integer checkpoints as the compressed-tensors library writes them are read as the values that it reads back itself."""

import math

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

from actorllm.errors import CheckpointError, TensorLeftOver, TensorMissing, UnsupportedConfig
from actorllm.weights.checkpoint import Checkpoint, num_values
from actorllm.weights.compressed import CompressedFormat
from actorllm.weights.int_codes import IntCodes, pack, unpack
from actorllm.weights.stored import stored_format

SHAPE = (13, 50)
PARTS = [(None, None), ((3, 11), None), (None, (0, 25)), (None, (7, 43)), ((12, 13), (49, 50))]


def quantize_by_library(scheme: QuantizationScheme, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The stored tensors of a linear, and the values that the library reads back from them."""
    args = scheme.weights
    rows = weight.flatten()[None, None] if args.strategy == "tensor" else weight[:, None]
    groups = weight.unflatten(1, (-1, args.group_size)) if args.strategy == "group" else rows
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    if args.strategy == "tensor":
        scale, zero_point = scale.flatten(), zero_point.flatten()
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    given = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point.to(torch.int8)}
    stored = compressor.compress(given, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"]


def new_scheme(storage: str, **weights) -> QuantizationScheme:
    inputs = QuantizationArgs(num_bits=8, strategy="token", dynamic=True) if storage == "int-quantized" else None
    args = QuantizationArgs(type="int", **weights)
    return QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs, format=storage)


def config_of(scheme: QuantizationScheme, **changes) -> dict:
    group = scheme.model_dump(mode="json")
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": group["format"], "quantization_status": "compressed",
            "global_compression_ratio": 1.5, "ignore": ["lm_head"], "kv_cache_scheme": None, "version": "0.20.0",
            "sparsity_config": {}, "transform_config": {}, "config_groups": {"group_0": group},
        } | changes
    }  # fmt: skip


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("storage", ["pack-quantized", "int-quantized"])
@pytest.mark.parametrize("scope", [{"strategy": "channel"}, {"strategy": "group", "group_size": 10}, {"strategy": "tensor"}])
def test_parts_are_what_the_library_reads_back(tmp_path, scope, storage, num_bits, symmetric):
    scheme = new_scheme(storage, num_bits=num_bits, symmetric=symmetric, **scope)
    if scope["strategy"] == "tensor" and not symmetric:
        with pytest.raises(UnsupportedConfig, match="symmetric"):
            stored_format(config_of(scheme))
        return
    stored, values = quantize_by_library(scheme, torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) + 0.3)
    plain = torch.randn(4, 6)
    save_file({f"up.{name}": tensor for name, tensor in stored.items()} | {"head.weight": plain}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path, storage=stored_format(config_of(scheme))) as checkpoint:
        for rows, cols in PARTS:
            got = checkpoint.linear("up", SHAPE, rows=rows, cols=cols).weight
            torch.testing.assert_close(got.data, values[slice(*(rows or (None,))), slice(*(cols or (None,)))], rtol=0, atol=1e-6)
        assert torch.equal(checkpoint.linear("head", (4, 6)).weight, plain)
        checkpoint.finish({})
    width = 32 // num_bits * math.ceil(SHAPE[1] * num_bits / 32) if storage == "pack-quantized" else SHAPE[1]
    assert num_values(tmp_path, stored_format(config_of(scheme))) == SHAPE[0] * width + 24


def test_half_precision_scales_keep_what_they_have(tmp_path):
    scheme = new_scheme("pack-quantized", num_bits=4, strategy="group", group_size=10)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    stored, values = quantize_by_library(scheme, weight.to(torch.bfloat16))
    assert stored["weight_scale"].dtype == torch.bfloat16
    save_file({f"up.{name}": tensor for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        with Checkpoint.open(tmp_path, dtype=dtype, storage=stored_format(config_of(scheme))) as checkpoint:
            assert torch.equal(checkpoint.linear("up", SHAPE).weight.to(torch.bfloat16), values)


def test_inputs_in_another_order_have_the_groups_that_g_idx_says(tmp_path):
    """As the library read them up to 0.15: input i has the scale of group `g_idx[i]`."""
    codes, scale = torch.randint(-8, 8, SHAPE, dtype=torch.int8), torch.rand(SHAPE[0], 5)
    groups = torch.randperm(SHAPE[1]) % 5
    stored = {"weight_packed": pack(codes, 4), "weight_scale": scale, "weight_shape": torch.tensor(SHAPE), "weight_g_idx": groups.int()}
    values = torch.stack([codes[:, index] * scale[:, group] for index, group in enumerate(groups)], dim=1)
    save_file({f"up.{name}": tensor for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    config = config_of(new_scheme("pack-quantized", num_bits=4, strategy="group", group_size=10))
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    with Checkpoint.open(tmp_path, storage=stored_format(config)) as checkpoint:
        for rows, cols in PARTS:
            got = checkpoint.linear("up", SHAPE, rows=rows, cols=cols).weight
            assert torch.equal(got, values[slice(*(rows or (None,))), slice(*(cols or (None,)))])
        checkpoint.finish({})
    save_file({f"up.{name}": value for name, value in (stored | {"weight_g_idx": groups.int() + 1}).items()}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path, storage=stored_format(config)) as checkpoint, pytest.raises(CheckpointError, match="g_idx"):
        checkpoint.linear("up", SHAPE)


@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("num_inputs", [1, 7, 8, 33])
def test_packing_fills_words_and_comes_back(num_bits, num_inputs):
    top = 2 ** (num_bits - 1)
    codes = torch.randint(-top, top, (3, num_inputs), dtype=torch.int8)
    words = pack(codes, num_bits)
    assert words.shape == (3, math.ceil(num_inputs * num_bits / 32)) and words.dtype == torch.int32
    assert torch.equal(unpack(words, num_bits)[:, :num_inputs], codes)
    as_written = sum((int(code) + top) << (num_bits * place) for place, code in enumerate(codes[0][: 32 // num_bits]))
    assert int(words[0, 0]) % 2**32 == as_written


class TestQuantizing:
    WEIGHT = torch.randn(9, 96, generator=torch.Generator().manual_seed(1))

    def test_eight_bits_err_by_half_a_step(self):
        codes = IntCodes.quantized(self.WEIGHT, num_bits=8, group_len=None)
        assert codes.scale_OG.shape == (9, 1) and codes.codes_OI.abs().amax(1).tolist() == [127] * 9
        whole_step = self.WEIGHT.abs().amax(1, keepdim=True) / 127
        assert torch.equal(codes.scale_OG, whole_step.bfloat16().float())
        assert ((codes.dense(torch.float32) - self.WEIGHT).abs() <= whole_step * 0.51).all()

    def test_four_bits_err_less_than_the_nearest_codes_of_the_whole_range(self):
        codes = IntCodes.quantized(self.WEIGHT, num_bits=4, group_len=32)
        assert torch.equal(codes.scale_OG, codes.scale_OG.bfloat16().float())
        groups = self.WEIGHT.unflatten(1, (-1, 32))
        step = groups.abs().amax(-1, keepdim=True) / 7
        plain = ((groups / step).round() * step).flatten(1)
        assert (codes.dense(torch.float32) - self.WEIGHT).square().sum() < 0.8 * (plain - self.WEIGHT).square().sum()
        assert codes.codes_OI.min() >= -8 and codes.codes_OI.max() <= 7

    def test_zeros_and_tiny_values(self):
        weight = torch.zeros(2, 32)
        weight[1] = 1e-30
        for num_bits in (4, 8):
            values = IntCodes.quantized(weight, num_bits=num_bits, group_len=32).dense(torch.float32)
            torch.testing.assert_close(values, weight)
        with pytest.raises(ValueError, match="finite"):
            IntCodes.quantized(torch.tensor([[1.0, math.nan]]), num_bits=8, group_len=None)

    def test_rows_do_not_depend_on_how_many_there_are(self, monkeypatch):
        whole = IntCodes.quantized(self.WEIGHT, num_bits=4, group_len=32)
        monkeypatch.setattr("actorllm_kernels.linear.reference.BLOCK_VALUES", 200)
        pieces = IntCodes.quantized(self.WEIGHT, num_bits=4, group_len=32)
        assert torch.equal(whole.codes_OI, pieces.codes_OI) and torch.equal(whole.scale_OG, pieces.scale_OG)


def test_what_does_not_fit_is_named(tmp_path):
    scheme = new_scheme("pack-quantized", num_bits=4, strategy="channel")
    stored, _ = quantize_by_library(scheme, torch.randn(SHAPE))
    tensors = {f"up.{name}": tensor for name, tensor in stored.items()}
    save_file(tensors | {"up.weight_zero_point": torch.zeros(1)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path, storage=stored_format(config_of(scheme))) as checkpoint:
        with pytest.raises(CheckpointError, match="up has shape"):
            checkpoint.linear("up", (13, 49))
        checkpoint.linear("up", SHAPE)
        with pytest.raises(TensorLeftOver, match="zero_point"):
            checkpoint.finish({})
    del tensors["up.weight_packed"]
    save_file(tensors, tmp_path / "model.safetensors")
    with (
        Checkpoint.open(tmp_path, storage=stored_format(config_of(scheme))) as checkpoint,
        pytest.raises(TensorMissing, match="weight_packed"),
    ):
        checkpoint.linear("up", SHAPE)


def test_a_survey_reads_nothing(tmp_path):
    scheme = new_scheme("pack-quantized", num_bits=4, symmetric=False, strategy="group", group_size=10)
    stored, _ = quantize_by_library(scheme, torch.randn(SHAPE))
    save_file({f"up.{name}": tensor for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    read = []
    with Checkpoint.open(tmp_path, storage=stored_format(config_of(scheme)), on_progress=read.append) as checkpoint:
        with checkpoint.survey():
            weight = checkpoint.linear("up", SHAPE, rows=(2, 9), cols=(3, 30)).weight
        checkpoint.finish({})
    assert weight.shape == (7, 27) and weight.device.type == "meta" and not read


def test_what_config_json_may_leave_out():
    bare = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}
    assert stored_format({"quantization_config": bare}) == CompressedFormat(num_bits=8, is_packed=False, strategy="tensor")


@pytest.mark.parametrize(
    ("where", "change", "named"),
    [
        ("", {"format": "float-quantized"}, "float-quantized"),
        ("", {"config_groups": {}}, "config_groups"),
        ("", {"config_groups": {"W4A16": ["Linear"]}}, "config_groups"),
        ("", {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ("", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ("", {"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        ("", {"quantization_status": "frozen"}, "frozen"),
        ("", {"some_new_trick": 1}, "some_new_trick"),
        ("group", {"input_activations": {"num_bits": 8, "dynamic": False}}, "activations"),
        ("group", {"output_activations": {"num_bits": 8, "dynamic": True}}, "activations"),
        ("group", {"weights": None}, "weights"),
        ("group", {"new_trick": 1}, "new_trick"),
        ("weights", {"num_bits": 3}, "3 bits"),
        ("weights", {"type": "float"}, "float"),
        ("weights", {"strategy": "block", "block_structure": [2, 2]}, "block"),
        ("weights", {"strategy": "group", "group_size": None}, "group_size"),
        ("weights", {"group_size": 0, "strategy": "group"}, "group_size"),
        ("weights", {"dynamic": True}, "dynamic"),
        ("weights", {"actorder": "other"}, "actorder"),
        ("weights", {"symmetric": "yes"}, "symmetric"),
    ],
)
def test_what_is_not_served_is_refused(where, change, named):
    config = config_of(new_scheme("pack-quantized", num_bits=4, strategy="channel"))
    settings = config["quantization_config"]
    group = settings["config_groups"]["group_0"]
    del group["format"]
    {"": settings, "group": group, "weights": group["weights"]}[where].update(change)
    with pytest.raises(UnsupportedConfig, match=named):
        stored_format(config)


def test_schemes_that_differ_are_refused():
    groups = [new_scheme("pack-quantized", num_bits=bits, strategy="channel").model_dump(mode="json") for bits in (4, 8)]
    with pytest.raises(UnsupportedConfig, match="different schemes"):
        stored_format({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": groups[0], "b": groups[1]}}})
