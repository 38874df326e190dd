"""`actorllm plugin check`: a report of one line a check, with shapes, or with the reason of a failure."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from actorllm.cli.main import main
from actorllm.models.catalog import Catalog
from actorllm.testing.checkpoint_checks import CHECKS as CHECKPOINT_CHECKS
from actorllm.testing.model_checks import CHECKS


@pytest.fixture
def stories(stories_dir: Path, tmp_path: Path) -> Path:
    """A copy of the small real model that may be damaged."""
    return shutil.copytree(stories_dir, tmp_path / "model", copy_function=shutil.copyfile)


def report(capsys, *arguments: str, code: int = 0) -> list[str]:
    """The lines of a report, the command's exit code being `code`."""
    assert main(["plugin", "check", *arguments]) == code
    return capsys.readouterr().out.splitlines()


def test_a_sound_plugin_with_a_real_checkpoint(capsys, stories: Path) -> None:
    lines = report(capsys, "LlamaForCausalLM", "--checkpoint", str(stories))
    assert lines[0].startswith("LlamaForCausalLM = actorllm_llama.llama:LlamaForCausalLM of actorllm-llama ")
    names = [line.split()[1] for line in lines[1:-1]]
    assert names == [*CHECKS, *(check.__name__.removeprefix("check_") for check in CHECKPOINT_CHECKS)]
    assert not [line for line in lines[1:-1] if not line.startswith("ok ")]
    text = "\n".join(lines)
    assert "logits [40, 96]; cache full: 2 x k[2, 8] v[2, 8]" in text
    assert "(48 tensors, 292800 values)" in text and "transformers. (logits [24, 512])" in text
    assert lines[-1] == f"{len(names)} of {len(names)} checks passed for LlamaForCausalLM"


def test_a_checkpoint_that_does_not_fit(capsys, stories: Path) -> None:
    tensors = load_file(stories / "model.safetensors")
    tensors["surplus.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, stories / "model.safetensors")
    lines = report(capsys, "LlamaForCausalLM", "--checkpoint", str(stories), code=1)
    failed = {line.split()[1]: line for line in lines if line.startswith("FAIL")}
    assert set(failed) == {"checkpoint_tensors", "checkpoint_logits", "checkpoint_transformers"}
    assert "surplus.weight" in failed["checkpoint_tensors"]
    assert failed["checkpoint_logits"].endswith("as checkpoint_tensors")


def test_a_config_that_the_plugin_does_not_read(capsys, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": ["EchoForCausalLM"], "vocab_size": 8}))
    lines = report(capsys, "EchoForCausalLM", "--config", str(path), code=1)
    assert re.fullmatch(r"FAIL  config_reads +config\.json has no 'max_position_embeddings', which EchoForCausalLM needs", lines[1])
    assert lines[2].endswith("as config_reads")


@pytest.mark.parametrize(("flag", "text"), [("--config", "[1]"), ("--config", "{"), ("--config", None), ("--checkpoint", None)])
def test_what_cannot_be_read_is_one_sentence(capsys, tmp_path: Path, flag: str, text: str | None) -> None:
    path = tmp_path / "tiny.json"
    if text is not None:
        path.write_text(text)
    assert main(["plugin", "check", "EchoForCausalLM", flag, str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("actorllm: error: ") and "tiny.json" in printed.err
    assert not printed.out


def test_a_distribution_is_checked_as_all_that_it_serves(capsys) -> None:
    lines = report(capsys, "actorllm-qwen-moe")
    served = [row["architecture"] for row in Catalog.discover().listing() if row["distribution"] == "actorllm-qwen-moe"]
    assert served and [line.split(" = ")[0] for line in lines if " of actorllm-qwen-moe " in line] == served
    assert sum("checks passed for" in line for line in lines) == len(served)


def test_a_model_belongs_to_one_architecture(capsys, stories: Path) -> None:
    assert main(["plugin", "check", "actorllm-llama", "--checkpoint", str(stories)]) == 2
    assert "actorllm-llama serves several architectures: name the one of the model, LlamaForCausalLM, " in capsys.readouterr().err
