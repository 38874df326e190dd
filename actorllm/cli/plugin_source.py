"""Reads what a draft is made from: a model's config.json and the shapes of its tensors, in a folder or on the Hugging Face hub.

Of a model on the hub config.json and the headers of its safetensors files are fetched, no weights and no code.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actorllm.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Model = tuple[dict[str, Any], Mapping[str, Sequence[int]]]
"""config.json, and tensor name -> shape ({} where there are no safetensors files)."""


def read_model(source: str) -> Model:
    """Read a folder or, where there is no such folder, the hub's ORGANIZATION/MODEL. Raises `SettingsError` or `CheckpointError`."""
    return _read_folder(Path(source)) if Path(source).is_dir() else _read_hub(source)


def _read_folder(folder: Path) -> Model:
    from actorllm.execution.model_plan import read_config  # torch only where it is needed
    from actorllm.weights.checkpoint import tensor_shapes

    return read_config(folder), tensor_shapes(folder) if any(folder.glob("*.safetensors")) else {}


def _read_hub(model: str) -> Model:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError, SafetensorsParsingError

    from actorllm.execution.model_plan import read_config

    hub = HfApi()
    try:
        config = read_config(Path(hub.hf_hub_download(model, "config.json")).parent)
        return config, _hub_shapes(hub, model)
    except HFValidationError as error:
        raise SettingsError(f"--from {model}: there is no such folder, and the hub has no such names") from error
    except RepositoryNotFoundError as error:
        raise SettingsError(
            f"--from {model}: there is no such folder, and no such model on {hub.endpoint} that you may read; for a gated or "
            "private one accept its terms there and set HF_TOKEN"
        ) from error
    except (SafetensorsParsingError, ValueError) as error:
        raise CheckpointError(f"--from {model}: a safetensors file has a header that cannot be read: {error}") from error
    except (OSError, EntryNotFoundError) as error:  # no connection, no config.json, or an answer that makes no sense
        reason = " ".join(str(error).split())
        raise SettingsError(f"--from {model}: there is no such folder, and {hub.endpoint} did not give it: {reason}") from error


def _hub_shapes(hub: "HfApi", model: str) -> Mapping[str, Sequence[int]]:
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        files = hub.get_safetensors_metadata(model).files_metadata.values()
    except NotASafetensorsRepoError:
        return {}
    return {name: tensor.shape for file in files for name, tensor in file.tensors.items()}
