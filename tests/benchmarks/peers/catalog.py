"""Who takes part, with weights in which forms, and what has to be installed for it. Imports none of them."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """`bits` is the class in which it is compared; a weight of a layer's linear, or of the head, takes `linear` or `head` bits with
    its scales, a value of the cache `kv` bits (with scales of heads of 64 where they are known)."""

    bits: int
    linear: float
    head: float
    kv: float


@dataclass(frozen=True)
class Peer:
    """`module` is beside this one and has `started(spec)`; `needs` can be imported once `pip` is installed."""

    module: str
    needs: str
    pip: str
    forms: dict[str, Form]


OWN = {"bf16": Form(16, 16, 16, 16), "int8": Form(8, 8, 8, 8.5), "int4": Form(4, 4.5, 8, 8.5)}
PEERS = {
    "actorllm": Peer("of_actorllm", "actorllm", ".", OWN),
    "actorllm-http": Peer("of_http", "actorllm", ".", OWN),
    "openvino": Peer("of_openvino", "openvino_genai", "openvino-genai", {"int8": Form(8, 8, 8, 8), "int4": Form(4, 4.125, 8, 8)}),
    "llama-cpp": Peer(
        "of_llama_cpp", "llama_cpp", "llama-cpp-python gguf",
        {"F16": Form(16, 16, 16, 16), "Q8_0": Form(8, 8.5, 8.5, 16), "Q4_0": Form(4, 4.5, 8.5, 16)},
    ),
    "transformers": Peer("of_transformers", "transformers", "transformers", {"float32": Form(32, 32, 32, 32)}),
}


def chosen(names: Sequence[str], bits: Sequence[int], *, peers: Mapping[str, Peer] = PEERS) -> tuple[list[tuple[str, str]], list[str]]:
    """(peer, form) pairs to run, and a line for each peer that is not installed."""
    pairs, missing = [], []
    for name in names:
        peer = peers[name]
        if importlib.util.find_spec(peer.needs) is None:
            missing.append(f"skipped {name}: pip install {peer.pip}")
            continue
        pairs += [(name, form) for form, facts in peer.forms.items() if facts.bits in bits]
    return pairs, missing
