"""Which device a model runs on: the one the settings name, or the best there is."""

import torch

from actorllm.errors import SettingsError
from actorllm.settings import ExecutionSettings

MEND = "use --device cpu or --device cuda"


def chosen_device(settings: ExecutionSettings) -> torch.device:
    """The device of the settings, with its index if it is a GPU; raises `SettingsError` if there is none such."""
    device = named_device(settings)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SettingsError(f"torch sees no CUDA device here; use --device cpu instead of {settings.device}")
        if settings.tensor_parallel > 1:
            raise SettingsError("tensor parallelism over GPUs is not built yet; use --tensor-parallel 1, or --device cpu")
    if settings.tensor_parallel < 1:
        raise SettingsError(f"--tensor-parallel {settings.tensor_parallel} must be at least 1")
    return torch.device(device.type, device.index or 0) if device.type == "cuda" else device


def named_device(settings: ExecutionSettings) -> torch.device:
    """The device that the settings name, be it here or not: enough to plan with."""
    name = best_device() if settings.device == "auto" else settings.device
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"the device {name!r} does not exist; {MEND}") from None
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"the device {name} is not served; {MEND}")
    return device


def best_device() -> str:
    """A GPU if torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
