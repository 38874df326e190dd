"""`actorllm quantize MODEL OUT --weights int8|int4`: a copy of a model whose layers' linears are stored as integer codes.

What is written is a compressed-tensors checkpoint (pack-quantized), which other engines read too. Embeddings, heads, norms and
routers stay as they are. OUT appears when it is whole.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from huggingface_hub.utils import tqdm
from safetensors import SafetensorError

from actorllm.errors import CheckpointError, SettingsError
from actorllm.execution.model_plan import ModelPlan, has_weights, plan_model, read_config
from actorllm.house import model_directory
from actorllm.layers.shard import Shard
from actorllm.models.linears import layer_linears
from actorllm.settings import EngineSettings, ExecutionSettings, ModelSettings
from actorllm.weights.checkpoint import INDEX_FILE, Checkpoint, is_inside, num_bytes, tensor_shapes
from actorllm.weights.compress import CodeScheme, write_tensors
from actorllm.weights.formats import PlainFormat

GROUP_LENS = (32, 128)
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""What is not copied beside the new weights: the old ones, in whatever form."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`MODEL OUT --weights int8|int4 [--group-size 32|128] [--revision NAME]`."""
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face model folder, or ORG/NAME on the hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write; it must not be there yet, or be empty")
    parser.add_argument("--weights", choices=("int8", "int4"), required=True, help="int8: a scale a row; int4: a scale a group")
    parser.add_argument("--group-size", type=int, choices=GROUP_LENS, help="inputs that share a scale, for int4 (default 32)")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub (default: its main branch)")


def run(arguments: argparse.Namespace) -> int:
    """Write the quantized model; always 0. Raises `SettingsError`, `ModelError` or `PluginError`."""
    if arguments.weights == "int8" and arguments.group_size is not None:
        raise SettingsError("--group-size is for --weights int4: int8 has one scale a row")
    scheme = CodeScheme(8) if arguments.weights == "int8" else CodeScheme(4, arguments.group_size or GROUP_LENS[0])
    out: Path = arguments.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SettingsError(f"{out} is there already: name a folder that is not, or empty it")
    source = model_directory(ModelSettings(path=arguments.model, revision=arguments.revision))
    choice = choose_linears(plan_model(source, EngineSettings(execution=ExecutionSettings(device="cpu"))), scheme)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            num_written = _write(source, partial, linears=choice.linears, scheme=scheme)
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # not there any more if all went well
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"cannot write {out}: {error}; free some disk, or name a folder that can be written") from error
    print(choice.summary(arguments.weights, scheme))
    print(f"{out}: {num_bytes(source) / 2**20:.1f} MiB of weights are now {num_written / 2**20:.1f} MiB")
    return 0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The linears to quantize, by their stored names -> whether they are stored as [in, out]; and what is kept of the layers:
    `misfits` are linears whose inputs are no whole number of groups, `stacks` hold experts, which the format cannot."""

    linears: Mapping[str, bool]
    misfits: Collection[str]
    stacks: Collection[str]

    def summary(self, weights: str, scheme: CodeScheme) -> str:
        """What became of the model, in a line."""
        scope = "a scale a row" if scheme.group_len is None else f"a scale for {scheme.group_len} inputs"
        parts = [f"{len(self.linears)} linears are {weights} now, with {scope}; embeddings, head and norms stay as they were"]
        if self.stacks:
            parts.append(f"so do {len(self.stacks)} stacks of experts, which the format cannot hold")
        if self.misfits:
            parts.append(f"so do linears whose inputs are no whole groups: {', '.join(self.misfits)}")
        return ", ".join(parts)


def choose_linears(plan: ModelPlan, scheme: CodeScheme) -> Choice:
    """Raises `SettingsError` if there is nothing to quantize."""
    if type(plan.storage) is not PlainFormat:
        raise SettingsError(f"{plan.directory} is quantized already: give the unquantized model")
    model = plan.build(Shard())
    if not has_weights(model):
        raise SettingsError(f"{plan.architecture} has no weights to quantize")
    with Checkpoint.open(plan.directory) as checkpoint:
        found = layer_linears(model, checkpoint)
        stored = {name: checkpoint.stored_as(name) for name in found.linears}
    linears = dict(stored[name] for name, (_, num_inputs) in found.linears.items() if scheme.fits(num_inputs))
    if not linears:
        why = f"with whole groups of {scheme.group_len} inputs; try --weights int8" if found.linears else "that is not in a stack"
        raise SettingsError(f"the layers of {plan.architecture} have no linear {why}")
    misfits = sorted(stored_name for stored_name, _ in stored.values() if stored_name not in linears)
    return Choice(linears=linears, misfits=misfits, stacks=found.stacks)


def _write(source: Path, target: Path, *, linears: Mapping[str, bool], scheme: CodeScheme) -> int:
    """Fill the folder `target`; returns the bytes of its tensors."""
    target.chmod(0o755)  # a temporary folder is made for its owner alone
    config = read_config(source)
    plain = {name.removesuffix(".weight") for name, shape in tensor_shapes(source).items() if len(shape) == 2}
    ignored = (plain - linears.keys()) | {"lm_head"}  # which is there, if only as a name for the embedding
    settings = config | {"quantization_config": scheme.settings(ignored)}
    for file in sorted(source.iterdir()):
        if file.is_dir() or file.name in ("config.json", INDEX_FILE) or file.name.endswith(WEIGHT_FILES) or file.name[0] == ".":
            continue
        if not is_inside(file, source.resolve()):
            raise CheckpointError(f"{file.name} is a link that leads out of the model's folder")
        shutil.copyfile(file, target / file.name)
    with tqdm(desc="quantizing", total=num_bytes(source), unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar:
        num_written = write_tensors(source, target, linears=linears, scheme=scheme, on_progress=bar.update)
    (target / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return num_written
