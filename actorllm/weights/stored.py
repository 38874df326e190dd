"""Which format a checkpoint's linears are stored in, as its config.json says."""

from collections.abc import Mapping
from typing import Any

from actorllm.errors import UnsupportedConfig
from actorllm.weights.compressed import METHOD, read_compressed
from actorllm.weights.formats import Format, PlainFormat
from actorllm.weights.mxfp4 import Mxfp4Format


def stored_format(config: Mapping[str, Any]) -> Format:
    """The format that config.json names in `quantization_config`. Raises `UnsupportedConfig` for one that is not served."""
    settings = config.get("quantization_config")
    if settings is None:
        return PlainFormat()
    if not isinstance(settings, Mapping):
        raise UnsupportedConfig(f"config.json: quantization_config is {settings!r}, but must be an object")
    method = settings.get("quant_method")
    if method == METHOD:
        return read_compressed(settings)
    if method != "mxfp4":
        raise UnsupportedConfig(
            f"config.json: weights quantized by {method!r} are not served yet, only by '{METHOD}' and 'mxfp4'; "
            "take the unquantized model"
        )
    # Which linears are plain is told by the tensors' names, how the others are computed is ours to choose.
    if unknown := sorted(settings.keys() - {"quant_method", "modules_to_not_convert", "dequantize"}):
        raise UnsupportedConfig(f"config.json: {', '.join(unknown)} in quantization_config is not implemented for mxfp4")
    return Mxfp4Format()
