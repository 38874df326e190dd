"""Drafts a plugin package from a checkpoint's config.json and the names of its tensors.

The draft is a Llama whose biases, norms, names of keys and tiny config are the checkpoint's own; what it does not understand it
lists where the author has to decide. Reads no weights and writes no files. Names from the checkpoint enter code as checked
identifiers, or as escaped comments.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.util import find_spec
from keyword import iskeyword
from string import Template
from typing import Any

import actorllm
from actorllm.errors import SettingsError, UnsupportedConfig
from actorllm.models.config import NEUTRAL_KEYS, NEUTRAL_VALUES

ALIASES = {
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_kv_heads", "multi_query_group_num"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "max_sequence_length", "seq_length"),
    "vocab_size": ("padded_vocab_size",),
    "rms_norm_eps": ("norm_eps", "norm_epsilon", "layer_norm_epsilon", "layernorm_epsilon"),
    "hidden_act": ("activation_function", "hidden_activation"),
}
"""Keys that the draft reads -> other names that config files have for them."""

READ = frozenset(ALIASES).union(
    ("head_dim", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias"),
    ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
)
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "sliding_window": 9,
    "max_window_layers": 1,
}
TINY_ORIGINAL_CONTEXT = 24
TINY_OTHERS = (re.compile(r"(n|num)_\w*experts|\w+_(rank|head_dim|intermediate_size)"), 16)
"""Keys that other families have, and the largest size that tests need."""

NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")
UNCLAIMED = "  <- no module claims this yet"
ABSENT = "  <- a module asks for this, and it is not there"
DRAFTED = re.compile(
    r"model\.(embed_tokens|norm)\.weight|lm_head\.weight|.*\.rotary_emb\.inv_freq"
    r"|model\.layers\.\{\d+\.\.\d+\}\.(input_layernorm|post_attention_layernorm)\.weight"
    r"|model\.layers\.\{\d+\.\.\d+\}\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.(weight|bias)"
    r"|model\.layers\.\{\d+\.\.\d+\}\.self_attn\.[qk]_norm\.weight"
)
"""Tensors that the draft's modules claim, as the tree writes them."""

ASKED = (
    *("model.embed_tokens.weight", "model.norm.weight"),
    *(f"model.layers.{{}}.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")),
    *(f"model.layers.{{}}.self_attn.{name}_proj.weight" for name in "qkvo"),
    *(f"model.layers.{{}}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)
"""Tensors that the draft's modules ask for whatever the checkpoint has; `{}` is a layer's number."""

FILES = {
    "pyproject.toml": "pyproject.toml.in",
    "README.md": "README.md.in",
    ".github/workflows/test.yml": "test.yml.in",
    "tests/test_model.py": "test_model.py.in",
    "{package}/__init__.py": "init.py.in",
    "{package}/model.py": "model.py.in",
}


@dataclass(frozen=True)
class PluginDraft:
    """A package called `name` for the architecture of `config`, whose checkpoint has `shapes` (tensor name -> shape)."""

    name: str
    config: Mapping[str, Any]
    shapes: Mapping[str, Sequence[int]]

    @property
    def package(self) -> str:
        """The Python package's name."""
        return self.name.replace("-", "_")

    @cached_property
    def architecture(self) -> str:
        """The class's name: config.json's architecture. Raises `UnsupportedConfig` if that is no identifier."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(names[0])):
            raise UnsupportedConfig(f"config.json: architectures must be a list of one class name, not {names!r}")
        return names[0]

    def files(self) -> dict[str, str]:
        """Every file of the package: its path below the package's folder, and its text. Raises `SettingsError`."""
        if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", self.name):
            raise SettingsError(f"{self.name!r} cannot be a package's name: small letters, digits and single hyphens")
        if iskeyword(self.package) or find_spec(self.package) is not None:
            raise SettingsError(f"{self.name!r} cannot be a package's name: to Python {self.package} means something else already")
        templates, values = files("actorllm.cli") / "plugin_template", self._values()
        texts = {
            path.format(package=self.package): Template((templates / name).read_text()).substitute(values)
            for path, name in FILES.items()
        }
        texts[f"{self.package}/py.typed"] = ""
        texts[f"{self.package}/tiny_config.json"] = json.dumps(self.tiny_config(), indent=1) + "\n"
        return texts

    def tiny_config(self) -> dict[str, Any]:
        """The checkpoint's config with sizes for tests; notes and token ids are left out."""
        notes = NEUTRAL_KEYS.keys() - {"architectures", "model_type"}
        kept = {key: deepcopy(value) for key, value in self.config.items() if key not in notes}
        for key, size in TINY.items():
            for name in (key, *ALIASES.get(key, ())):
                if kept.get(name) is not None:
                    kept[name] = size
        for name in ("num_key_value_heads", *ALIASES["num_key_value_heads"]):
            if isinstance(count := kept.get(name), int):
                kept[name] = 1 if count == 1 else TINY["num_attention_heads"] if count == self._heads() else 2
        others, size = TINY_OTHERS
        for name, count in kept.items():
            if isinstance(count, int) and others.fullmatch(name) and name not in TINY:
                kept[name] = min(count, size)
        if isinstance(kept.get("layer_types"), list):
            kept["layer_types"] = _two_kinds(kept["layer_types"])
        for rope in (kept.get("rope_scaling"), kept.get("rope_parameters")):
            if isinstance(rope, dict) and "original_max_position_embeddings" in rope:
                rope["original_max_position_embeddings"] = TINY_ORIGINAL_CONTEXT
        return kept

    def unread(self) -> dict[str, Any]:
        """The keys of config.json that the draft leaves to the author."""
        known = READ | NEUTRAL_KEYS.keys() | self._aliases().keys()
        return {
            key: value
            for key, value in self.config.items()
            if key not in known and value is not None and (key not in NEUTRAL_VALUES or value != NEUTRAL_VALUES[key])
        }

    def tree(self) -> list[str]:
        """The checkpoint's tensors with their shapes, those that differ in numbers alone on one line; unclaimed ones are marked."""
        if not self.shapes:
            return ["The model has no safetensors files to read tensor names from."]
        lines = ["The checkpoint's tensors:"]
        for name, shape in _alike_on_one_line(self.shapes):
            mark = "" if DRAFTED.fullmatch(name) else UNCLAIMED
            lines.append(f"  {_printable(name)} {list(shape)}{mark}")
        known = {NUMBER.sub("{}", name) for name in self.shapes}
        lines += [f"  {name.format('{..}')}{ABSENT}" for name in ASKED if name not in known]
        return lines

    def _values(self) -> dict[str, str]:
        """What the templates' names stand for."""
        major, minor = actorllm.__version__.split(".")[:2]
        aliases = "".join(f'            "{other}": "{key}",\n' for other, key in self._aliases().items())
        norms = ("q_norm", "k_norm") if self._has("self_attn.q_norm.weight") else ()
        return {
            "name": self.name,
            "package": self.package,
            "architecture": self.architecture,
            "version": f"{major}.{minor}",
            "next_version": f"{major}.{int(minor) + 1}",
            "tensors": "\n".join(f"# {line}" for line in self.tree()),
            "aliases": f", aliases={{\n{aliases}        }}" if aliases else "",
            "unread": "".join(f"        {line}\n" for line in self._unread_lines()),
            "is_tied": ", True" if self.shapes and "lm_head.weight" not in self.shapes else "",
            "attention_bias": ", True" if self._has("self_attn.q_proj.bias") else "",
            "mlp_bias": ", True" if self._has("mlp.up_proj.bias") else "",
            "output_bias": self._output_bias(),
            "qk_norms": "".join(f"        self.{norm} = RMSNorm(config.head_dim, eps=config.norm_eps)\n" for norm in norms),
            "qk_normed": "        q, k = self.q_norm(q), self.k_norm(k)\n" if norms else "",
        }

    def _output_bias(self) -> str:
        """Whether attention's output has a bias, as an expression: usually where its inputs have some."""
        is_as_inputs = self._has("self_attn.q_proj.bias") == self._has("self_attn.o_proj.bias")
        return "config.has_attention_bias" if is_as_inputs else str(self._has("self_attn.o_proj.bias"))

    def _unread_lines(self) -> Iterator[str]:
        """A comment about the keys that the draft does not understand."""
        if unread := self.unread():
            yield "# Unread, and refused by finish(): take each with the reader, or reader.neutral(key, reason) if it changes nothing."
            for key, value in unread.items():
                yield f"#   {_printable(key)} = {_printable(value)}"

    def _aliases(self) -> dict[str, str]:
        """Names that this config has for keys that the draft reads."""
        return {
            other: key for key, others in ALIASES.items() if key not in self.config for other in others if other in self.config
        }

    def _heads(self) -> Any:
        names = ("num_attention_heads", *ALIASES["num_attention_heads"])
        return next((self.config[name] for name in names if name in self.config), None)

    def _has(self, suffix: str) -> bool:
        return any(name.endswith(suffix) for name in self.shapes)


def _alike_on_one_line(shapes: Mapping[str, Sequence[int]]) -> list[tuple[str, Sequence[int]]]:
    """(name, shape), with `{0..31}` for numbers whose tensors differ in nothing else; in the order of the names."""
    numbers: dict[tuple[str, tuple[int, ...]], list[list[int]]] = {}
    for name, shape in shapes.items():
        key = (NUMBER.sub("{}", name.replace("{", "{{").replace("}", "}}")), tuple(shape))
        numbers.setdefault(key, []).append(list(map(int, NUMBER.findall(name))))
    lines = []
    for (pattern, shape), found in numbers.items():
        spans = [f"{{{min(places)}..{max(places)}}}" for places in zip(*found, strict=True)]
        lines.append((pattern.format(*spans), shape))
    return sorted(lines)


def _two_kinds(kinds: Sequence[Any]) -> list[Any]:
    """Two layers' kinds, different ones where there are."""
    return [kinds[0], next((kind for kind in kinds if kind != kinds[0]), kinds[0])] if kinds else []


def _printable(value: Any) -> str:
    """A value from a file of strangers as one line of a comment."""
    text = value if isinstance(value, str) and re.fullmatch(r"[\w.\-{}/]+", value, re.ASCII) else ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."
