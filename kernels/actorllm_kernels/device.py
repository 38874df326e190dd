"""What the launches of Triton kernels ask of a device: its kind and its number of processors."""

import functools
from collections.abc import Mapping

import torch
import triton  # pyright: ignore[reportMissingImports]

from actorllm_kernels.configurations import Configuration, Key, configuration

ASSUMED_GPU = "sm_80"
ASSUMED_PROCESSORS = 8
"""For tensors that are on no GPU: under the interpreter, or compiled for a GPU that is elsewhere."""
PROGRAMS_PER_PROCESSOR = 4
"""No configuration: how many programs fill a processor depends on tiles, which are, and what is tuned has parts' sums in it."""


def chosen_for(kernel: str, shape: Mapping[str, int], device: torch.device) -> Configuration:
    """How to cut `kernel` for tensors of `shape` on this device."""
    return configuration(key_of(kernel, shape, device))


def key_of(kernel: str, shape: Mapping[str, int], device: torch.device) -> Key:
    """What a configuration is looked up, or kept, by."""
    return Key(kernel, tuple(sorted(shape.items())), gpu(device), triton.__version__, model(device))


@functools.cache
def gpu(device: torch.device) -> str:
    """Its compute capability, as in "sm_90"."""
    if device.type != "cuda":
        return ASSUMED_GPU
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def model(device: torch.device) -> str:
    """Its name, as in "NVIDIA H200"; "" for none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


@functools.cache
def num_processors(device: torch.device) -> int:
    """Its multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else ASSUMED_PROCESSORS


def num_programs_that_fill(device: torch.device) -> int:
    """How many programs keep it busy."""
    return num_processors(device) * PROGRAMS_PER_PROCESSOR
