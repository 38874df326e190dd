"""The flags that say which model runs in this process and how, for every command that runs one."""

import argparse
from pathlib import Path
from typing import Any

from actorllm.cli.sizes import byte_count
from actorllm.settings import Settings, load_settings

PARTS = {
    "path": "model",
    "revision": "model",
    "served_names": "model",
    "dtype": "model",
    "quantize": "model",
    "context": "model",
    "device": "execution",
    "threads": "execution",
    "kv_cache": "execution",
    "kv_memory": "execution",
    "tensor_parallel": "execution",
    "max_waiting": "scheduling",
    "host": "server",
    "port": "server",
    "max_body": "server",
    "allowed_origins": "server",
}
"""Destination of a flag -> the part of the settings with a field of that name."""


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that commands share; everything else is set by a file or by the environment."""
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub (default: its main branch)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), help="precision of the weights")
    parser.add_argument("--quantize", choices=("int8", "int4", "fp8"), help="round the weights to so many bits while loading (fp8: GPU)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--threads", type=int, help="threads of a device step (default: the processors it may use)")
    parser.add_argument("--context", type=int, help="longest prompt plus output in tokens (default: the model's)")
    parser.add_argument(
        "--kv-cache", choices=("auto", "bf16", "int8", "fp8"), help="keys and values as computed, in 16 bits (CPU), or in 8 (fp8: GPU)"
    )
    parser.add_argument("--kv-memory", type=byte_count, metavar="BYTES", help="memory for the KV cache, as 2GiB or 512MB")
    parser.add_argument("--tensor-parallel", type=int, metavar="RANKS", help="ranks that share the model")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as TOML")


def given_flags(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """`{part: {field: value}}` of the flags that were given."""
    flags: dict[str, dict[str, Any]] = {}
    for name, part in PARTS.items():
        value = getattr(arguments, name, None)
        if value is not None:
            flags.setdefault(part, {})[name] = value
    return flags


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Settings from the file that --config names, the environment, and the flags. Raises `SettingsError`."""
    return load_settings(arguments.config, flags=given_flags(arguments))
