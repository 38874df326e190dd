"""`actorllm quantize`: what it writes is read by transformers' own loader, and computes what rounding in memory computes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import actorllm_echo
from actorllm.cli.main import main
from actorllm.execution.model_plan import plan_model
from actorllm.layers.shard import Shard
from actorllm.models.catalog import find_model
from actorllm.models.loading import load_weights
from actorllm.settings import EngineSettings, ModelSettings
from actorllm.testing.against_transformers import load_folder, load_reference
from actorllm.testing.reference import randomize, reference_logits
from actorllm.testing.tiny import logits_in_chunks
from actorllm.weights import compress
from actorllm.weights.checkpoint import Checkpoint
from actorllm.weights.compact import CompactFormat
from actorllm.weights.int_codes import IntCodes
from actorllm_kernels.linear import Int4, Int8

IDS = torch.randint(70, (40,), generator=torch.Generator().manual_seed(2)).tolist()
SIZES: dict[str, Any] = {
    "vocab_size": 70, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 70, "n_embd": 64, "n_inner": 96, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None,
    "eos_token_id": None,
}  # fmt: skip


def save(folder: Path, architecture: str, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A random model of transformers with files beside it."""
    model_class = getattr(transformers, architecture)
    model = model_class(model_class.config_class(**settings)).eval()
    randomize(model, 1)
    model.to(dtype).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / ".hidden").write_text("")
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(tmp_path / "llama", "LlamaForCausalLM", **SIZES, tie_word_embeddings=False)


def logits(folder: Path) -> torch.Tensor:
    [architecture] = json.loads((folder / "config.json").read_text())["architectures"]
    return logits_in_chunks(load_folder(find_model(architecture), folder), IDS, sizes=[16, 24])


def quantize(folder: Path, *flags: str) -> Path:
    out = folder.with_name("out") / "quantized"
    assert main(["quantize", str(folder), str(out), *flags]) == 0
    return out


def round_in_place(folder: Path, num_bits: int, group_len: int | None) -> None:
    """Replace the layers' matrices by the values of their codes."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "layers" in name and tensor.ndim == 2 and (group_len is None or tensor.shape[1] % group_len == 0):
            codes = IntCodes.quantized(tensor, num_bits=num_bits, group_len=group_len)
            tensors[name] = codes.dense(torch.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("flags", "num_bits", "group_len"),
    [(["int8"], 8, None), (["int4"], 4, 32), (["int4", "--group-size", "32"], 4, 32)],
)
def test_what_is_written_is_what_rounding_gives_and_what_transformers_reads(tmp_path, flags, num_bits, group_len, dtype):
    llama = save(tmp_path / "llama", "LlamaForCausalLM", **SIZES, tie_word_embeddings=True, dtype=dtype)
    out = quantize(llama, "--weights", *flags)
    ours = logits(out)
    theirs = reference_logits(load_reference(out), IDS)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * theirs.std().item())
    plain = logits(llama)
    round_in_place(llama, num_bits, group_len)
    assert torch.equal(ours, logits(llama)) and not torch.equal(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("weights", "group_len"), [("int8", None), ("int4", 32), ("int4", 128)])
def test_served_as_integers_a_stored_model_is_the_one_rounded_while_loading(tmp_path, weights, group_len, dtype):
    sizes = SIZES | {"hidden_size": 128, "intermediate_size": 256}
    llama = save(tmp_path / "llama", "LlamaForCausalLM", **sizes, tie_word_embeddings=False, dtype=dtype)
    out = quantize(llama, "--weights", weights, *(["--group-size", str(group_len)] if group_len else []))
    form = None if group_len is None else Int4(group_len)
    got, wanted = served(out, weights), served(llama, weights, form=form)
    assert torch.equal(logits_of(got), logits_of(wanted)) and not torch.equal(logits_of(got), logits(llama))


def test_codes_in_groups_of_128_are_served_with_as_few_scales(tmp_path):
    """They stand for the same values as in groups of 32, where each scale is there four times."""
    llama = save(tmp_path / "llama", "LlamaForCausalLM", **SIZES | {"hidden_size": 128, "intermediate_size": 256})
    out = quantize(llama, "--weights", "int4", "--group-size", "128")
    wide, narrow = served(out, "int4"), served(out, "int4", form=Int4(32))
    down, same = (model.model.layers[1].mlp.down.weight for model in (wide, narrow))
    assert down.form.group_len == 128 and down.tensors[1].numel() * 4 == same.tensors[1].numel()
    assert torch.equal(down.rows(torch.arange(128)), same.rows(torch.arange(128)))
    torch.testing.assert_close(logits_of(wide), logits_of(narrow), atol=1e-5, rtol=0)


def test_what_a_copy_in_groups_of_128_does_not_quantize_is_rounded_in_groups_of_32(tmp_path):
    """96 inputs are no whole groups of 128: they stay as they were, and are rounded while loading."""
    llama = save(tmp_path / "llama", "LlamaForCausalLM", **SIZES | {"hidden_size": 128, "intermediate_size": 96})
    out = quantize(llama, "--weights", "int4", "--group-size", "128")
    got, wide, narrow = (
        model.model.layers[1].mlp for model in (served(out, "int4"), served(llama, "int4", form=Int4(128)), served(llama, "int4"))
    )
    for weight, wanted in ((got.gate_up.weight, wide.gate_up.weight), (got.down.weight, narrow.down.weight)):
        assert weight.form.group_len == wanted.form.group_len
        assert all(torch.equal(one, other) for one, other in zip(weight.tensors, wanted.tensors, strict=True))


def served(folder: Path, weights: str, *, form: Int4 | None = None) -> Any:
    """A model loaded with `--quantize`, or in `form`."""
    plan = plan_model(folder, EngineSettings(model=ModelSettings(path=str(folder), quantize=weights)))
    storage = plan.kept if form is None else CompactFormat(plan.storage, form, table_form=Int8())
    model = plan.build(Shard())
    with Checkpoint.open(folder, dtype=plan.precision.dtype, storage=storage) as checkpoint:
        load_weights(model, checkpoint)
    return model


def logits_of(model: Any) -> torch.Tensor:
    return logits_in_chunks(model, IDS, sizes=[16, 24])


def test_what_does_not_fit_groups_is_kept_and_told(tmp_path, capsys):
    llama = save(tmp_path / "llama", "LlamaForCausalLM", **SIZES | {"intermediate_size": 80})
    out = quantize(llama, "--weights", "int4")
    told = capsys.readouterr().out
    assert "12 linears are int4 now" in told and "model.layers.1.mlp.down_proj" in told
    assert {path.name for path in out.iterdir()} == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert set(settings["ignore"]) == {
        "lm_head", "model.embed_tokens", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj",
    }  # fmt: skip
    theirs = reference_logits(load_reference(out), IDS)
    torch.testing.assert_close(logits(out), theirs, rtol=0, atol=1e-4 * theirs.std().item())


def test_linears_that_are_stored_the_other_way_round(tmp_path):
    gpt2 = save(tmp_path / "gpt2", "GPT2LMHeadModel", **GPT2)
    out = quantize(gpt2, "--weights", "int8")
    tensors, stored = load_file(gpt2 / "model.safetensors"), load_file(out / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))]:
        codes = IntCodes.quantized(tensors[name].T, num_bits=8, group_len=None)
        assert stored.pop(f"{name}_shape").tolist() == list(tensors[name].T.shape)
        tensors[name] = codes.dense(torch.float32).T.contiguous()
    assert not [name for name in stored if name.endswith("_shape")]
    save_file(tensors, gpt2 / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(out), logits(gpt2))


def test_experts_in_stacks_are_kept_and_told(tmp_path, capsys):
    settings = SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 16}
    gpt_oss = save(tmp_path / "gpt-oss", "GptOssForCausalLM", **settings)
    out = quantize(gpt_oss, "--weights", "int8")
    assert "so do 4 stacks of experts" in capsys.readouterr().out
    before, after = load_file(gpt_oss / "model.safetensors"), load_file(out / "model.safetensors")
    kept = {name for name in before if name in after}
    assert before.keys() - kept == {name for name in before if "self_attn" in name and name.endswith("proj.weight")}
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_large_models_pass_through_in_pieces(llama, monkeypatch):
    whole = load_file(quantize(llama, "--weights", "int8") / "model.safetensors")
    held, save_file = [], compress.save_file

    def save_noting(tensors: dict[str, torch.Tensor], *arguments: Any, **options: Any) -> None:
        held.append(sum(tensor.nbytes for tensor in tensors.values()))
        save_file(tensors, *arguments, **options)

    monkeypatch.setattr(compress, "save_file", save_noting)
    monkeypatch.setattr(compress, "MAX_FILE_BYTES", 50_000)
    out = llama.with_name("pieces")
    assert main(["quantize", str(llama), str(out), "--weights", "int8"]) == 0
    assert len(held) > 3 and max(held) <= 50_000
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == whole.keys()
    for name, file in index.items():
        with safe_open(out / file, framework="pt") as stored:
            assert torch.equal(stored.get_tensor(name), whole[name])
    assert torch.equal(logits(out), logits(llama.with_name("out") / "quantized"))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--weights", "int8", "--group-size", "32"], "int4"),
        (["--weights", "int4", "--group-size", "128"], "int8"),
    ],
)
def test_flags_that_do_not_fit(llama, capsys, flags, named):
    assert main(["quantize", str(llama), str(llama.with_name("out")), *flags]) == 2
    assert named in capsys.readouterr().err and not llama.with_name("out").exists()


def test_a_folder_that_is_there_is_left_alone(llama, capsys):
    before = {path.name: path.read_bytes() for path in llama.iterdir()}
    assert main(["quantize", str(llama), str(llama), "--weights", "int8"]) == 2
    assert "there already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in llama.iterdir()} == before


def test_quantized_models_and_models_without_weights_are_refused(llama, tmp_path, capsys):
    quantized, echo = quantize(llama, "--weights", "int8"), actorllm_echo.directory()
    for folder, named in ((quantized, "quantized already"), (echo, "no weights to quantize")):
        assert main(["quantize", str(folder), str(tmp_path / "again"), "--weights", "int8"]) == 2
        assert named in capsys.readouterr().err


def test_nothing_is_left_of_a_run_that_failed(llama, capsys):
    tensors = load_file(llama / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    assert main(["quantize", str(llama), str(llama.with_name("out")), "--weights", "int4"]) == 2
    assert "model.layers.1.mlp.up_proj.weight cannot be quantized" in capsys.readouterr().err
    assert [path.name for path in llama.parent.iterdir()] == ["llama"]


def test_links_out_of_the_folder_are_not_followed(llama, tmp_path, capsys):
    (tmp_path / "secret").write_text("s")
    (llama / "notes.txt").symlink_to(tmp_path / "secret")
    assert main(["quantize", str(llama), str(llama.with_name("out")), "--weights", "int8"]) == 2
    assert "notes.txt" in capsys.readouterr().err
