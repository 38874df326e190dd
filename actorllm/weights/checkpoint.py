"""A Hugging Face directory of safetensors files as a source of weights.

Only the asked part of a tensor is read. Names are claimed as they are pulled; `finish` fails if the checkpoint
holds a tensor that nobody claimed. Headers are checked before anything is believed. Knows no model.
"""

import ctypes
import json
import mmap
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actorllm.errors import CheckpointError, TensorLeftOver, TensorMissing
from actorllm.weights.formats import Format, PlainFormat
from actorllm.weights.linear_weight import LinearWeight
from actorllm.weights.source import MAX_SHOWN, Part

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
STORED = {torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.int64: "I64"}
"""Names in a safetensors header of what formats pull as it is stored."""
ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes of a value by its type's name in a header; all others take one."""

_LAYER = re.compile(r".*?\.\d+(?=\.)")
"""The beginning of a tensor's name that says in which layer it is."""


class Checkpoint:
    """A `WeightSource` over the files of one directory; use it with `with`.

    `files` says in which file each tensor is: a copy of it in another file is not looked at, and a tensor that `files` leaves out
    cannot be pulled and is left over. `storage` is the format of its linears. `on_progress(bytes)` is called with the bytes of
    each tensor read.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        storage: Format | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._device = str(device)
        self._dtype = dtype
        self._format = storage or PlainFormat()
        self._on_progress = on_progress
        self._homes: dict[str, tuple[Any, str]] = {}  # name -> its file and its name there
        self._unlisted: set[str] = set()
        self._transposed: tuple[str, ...] = ()
        self._claimed: set[str] = set()
        self._is_survey = False
        self._missing: list[str] = []
        self._tied: dict[str, str] = {}
        with ExitStack() as opened:  # one file that cannot be opened closes the others
            for path in sorted(set(files.values())):
                handle = opened.enter_context(open_tensors(path, self._device))
                for name in handle.keys():  # noqa: SIM118 (no mapping)
                    if files.get(name) == path:
                        self._homes[name] = handle, name
                    elif name not in files:
                        self._unlisted.add(name)
            absent = sorted(f"{name} ({files[name].name})" for name in files.keys() - self._homes.keys())
            if absent:
                raise CheckpointError(
                    f"{INDEX_FILE} names tensors that their files do not hold: {_shown(absent)}; download the model again"
                )
            self._open_files = opened.pop_all()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        storage: Format | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> Self:
        """Open `model.safetensors` or the files of the index. Raises `CheckpointError` naming the file at fault."""
        return cls(tensor_files(directory), device=device, dtype=dtype, storage=storage, on_progress=on_progress)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        self._open_files.close()
        self._homes.clear()

    @contextmanager
    def survey(self) -> Iterator[None]:
        """Within, pulls check names and shapes and claim them, but read nothing: tensors come on the meta device.

        So a model that does not fit its checkpoint is known at once, not after reading most of it. Raises one `TensorMissing`
        for all that were asked for in vain.
        """
        self._is_survey = True
        self._missing.clear()
        try:
            yield
        finally:
            self._is_survey = False
        if self._missing:
            raise TensorMissing(_missing_message(self._missing))

    def rename(self, prefixes: Mapping[str, str]) -> None:
        """Know names that begin with a key of `prefixes` by its value instead. The first prefix that fits counts."""
        for name in list(self._homes):
            new_name = _renamed(name, prefixes)
            if new_name != name:
                if new_name in self._homes:
                    raise CheckpointError(f"tensor {name!r} is to be known as {new_name!r}, but that is there as well")
                self._homes[new_name] = self._homes.pop(name)
        self._unlisted = {_renamed(name, prefixes) for name in self._unlisted}

    def transpose(self, patterns: Sequence[str]) -> None:
        """Declare linears, or stacks of them (glob patterns of their names), that are stored as [in, out]."""
        self._transposed = tuple(patterns)

    def tie(self, tied: Mapping[str, str]) -> None:
        """Declare aliases: a name that may be absent, or be there as a copy -> the name that stands for it."""
        self._tied.update(tied)
        self._claimed.update(tied)

    def has(self, name: str) -> bool:
        return name in self._homes or self._tied.get(name) in self._homes

    def stored_as(self, linear: str) -> tuple[str, bool]:
        """The name that a linear has in its file, and whether it is stored as [in, out] there."""
        stored_name = self._homes[f"{linear}.weight"][1].removesuffix(".weight")
        return stored_name, self._is_transposed(linear)

    def tensor(self, name: str, shape: tuple[int, ...], *, rows: Part = None) -> Tensor:
        return self.read(name, shape, rows=rows)

    def linear(self, name: str, shape: tuple[int, int], *, rows: Part = None, cols: Part = None) -> LinearWeight:
        return self._format.linear(self, name, shape=shape, rows=rows, cols=cols)

    def table(self, name: str, shape: tuple[int, int], *, rows: Part = None) -> LinearWeight:
        return self._format.table(self, name, shape=shape, rows=rows)

    def stack(self, name: str, shape: tuple[int, int, int], *, rows: Part = None, cols: Part = None) -> Iterator[LinearWeight]:
        return self._format.stack(self, name, shape=shape, rows=rows, cols=cols)

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision, in which weights are given."""
        return self._dtype

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: Part = None,
        cols: Part = None,
        index: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        is_transposed = self._is_transposed(name.removesuffix(".weight"))
        stacked, shape = (shape[:1], shape[1:]) if index is not None else ((), shape)
        if is_transposed:
            shape, rows, cols = shape[::-1], cols, rows
        whole = self._slice(name, stacked + shape, FLOATS if dtype is None or dtype.is_floating_point else (STORED[dtype],))
        if self._is_survey:
            sizes = [end - start for start, end in (rows or (0, shape[0]), *([cols] if cols else []))]
            part = torch.empty(*sizes, *shape[len(sizes) :], dtype=dtype or self._dtype, device="meta")
            return part.T if is_transposed else part
        place: list[int | slice] = [] if index is None else [index]
        place += [slice(*part) for part in (rows or (0, shape[0]), cols) if part is not None]
        part = whole[tuple(place)]
        if self._on_progress is not None:
            self._on_progress(part.numel() * part.element_size())
        part = part.T if is_transposed else part
        made = part.to(device=self._device, dtype=dtype or self._dtype).contiguous()
        if made.data_ptr() != part.data_ptr():
            _drop_pages(part)
        return made

    def finish(self, ignored: Mapping[str, str]) -> None:
        """Raise `TensorLeftOver` if a tensor was neither claimed nor matches a pattern of `ignored` (glob -> reason)."""
        unclaimed = (self._homes.keys() | self._unlisted) - self._claimed
        left_over = sorted(name for name in unclaimed if not any(fnmatchcase(name, pattern) for pattern in ignored))
        unlisted = sorted(self._unlisted.intersection(left_over))
        if unlisted:
            raise TensorLeftOver(
                f"files of the checkpoint hold {len(unlisted)} tensors that {INDEX_FILE} does not name: {_shown(unlisted)}; "
                "download the model again"
            )
        if left_over:
            raise TensorLeftOver(
                f"the checkpoint holds {len(left_over)} tensors that the model has no place for: {_shown(left_over)}. "
                "Either config.json names the wrong architecture, or the plugin must claim or ignore them"
            )

    def _is_transposed(self, linear: str) -> bool:
        return any(fnmatchcase(linear, pattern) for pattern in self._transposed)

    def _slice(self, name: str, shape: tuple[int, ...], stored: tuple[str, ...]) -> Any:
        home_name = name if name in self._homes else self._tied.get(name, name)
        if home_name not in self._homes and self._is_survey:
            self._missing.append(name)
            return None
        if home_name not in self._homes:
            raise TensorMissing(_missing_message([name]))
        self._claimed.update((name, home_name))
        file, stored_name = self._homes[home_name]
        whole = file.get_slice(stored_name)
        if tuple(whole.get_shape()) != shape:
            raise CheckpointError(f"tensor {home_name!r} has shape {tuple(whole.get_shape())}, but config.json makes it {shape}")
        if whole.get_dtype() not in stored:
            raise CheckpointError(
                f"tensor {home_name!r} is stored as {whole.get_dtype()}, where {' or '.join(stored)} is needed: "
                "config.json does not say that it is quantized, or says another way; choose another copy of the model"
            )
        return whole


def tensor_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index or the single file's header."""
    index = directory / INDEX_FILE
    if index.is_file():
        return _index_files(directory, index)
    single = directory / SINGLE_FILE
    if not single.is_file():
        has_pickle = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
        hint = "*.bin and *.pt files are pickles and are never read: convert them to safetensors"
        hint = hint if has_pickle else "download the model's *.safetensors files into it, or give another folder"
        raise CheckpointError(f"no {SINGLE_FILE} or {INDEX_FILE} in the model's folder: {hint}")
    if not is_inside(single, directory.resolve()):
        raise CheckpointError(f"{SINGLE_FILE} is a link that leads out of the model's folder")
    with open_tensors(single, "cpu") as file:
        return dict.fromkeys(file.keys(), single)


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the headers alone. Raises `CheckpointError`."""
    return {name: shape for name, (shape, _) in _headers(directory).items()}


def tensor_sizes(directory: Path) -> dict[str, int]:
    """Tensor name -> bytes in its file, from the headers alone. Raises `CheckpointError`."""
    return {name: prod(shape) * ITEM_BYTES.get(stored, 1) for name, (shape, stored) in _headers(directory).items()}


def num_values(directory: Path, storage: Format) -> int:
    """Values of all tensors, as many as they are in memory. Raises `CheckpointError`."""
    shapes = tensor_shapes(directory)
    return sum(storage.num_values(name, shape, is_scaled=f"{name}_scale" in shapes) for name, shape in shapes.items())


def num_bytes(directory: Path) -> int:
    """Bytes of all weight files."""
    return sum(path.stat().st_size for path in set(tensor_files(directory).values()))


def _headers(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> its shape and stored type; of a tensor in several files, that in the file that the index names."""
    files = tensor_files(directory)
    headers = {}
    for path in sorted(set(files.values())):
        with open_tensors(path, "cpu") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if files.get(name) == path:
                    whole = file.get_slice(name)
                    headers[name] = tuple(whole.get_shape()), whole.get_dtype()
    return headers


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """`name` with the first of `prefixes` that it begins with replaced."""
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return name if prefix is None else prefixes[prefix] + name.removeprefix(prefix)


def _index_files(directory: Path, index: Path) -> dict[str, Path]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        items = list(weight_map.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{INDEX_FILE} is not a safetensors index: {error}") from error
    root = directory.resolve()
    files = {}
    for name, file_name in items:
        if not isinstance(file_name, str) or not file_name.endswith(".safetensors"):
            raise CheckpointError(f"{INDEX_FILE}: {file_name!r} is not a safetensors file")
        path = directory / file_name
        if Path(file_name).name != file_name or not is_inside(path, root):
            raise CheckpointError(f"{INDEX_FILE}: {file_name!r} lies outside of the model's folder")
        files[name] = path
    missing = sorted({path.name for path in files.values() if not path.is_file()})
    if missing:
        raise CheckpointError(f"{INDEX_FILE} names files that are not there: {_shown(missing)}")
    return files


def is_inside(path: Path, root: Path) -> bool:
    """Whether a file is the folder's own. The hub's cache links from `MODEL/snapshots/COMMIT/` into `MODEL/blobs/`, or into
    `blobs/XX/` beside all models, where files are kept that several models share."""
    target = path.resolve()
    if target.is_relative_to(root):
        return True
    if root.parent.name != "snapshots":
        return False
    model = root.parent.parent
    return target.parent == model / "blobs" or target.parent.parent == model.parent / "blobs"


def open_tensors(path: Path, device: str) -> Any:
    """A safetensors file, for `with`. Raises `CheckpointError`."""
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is truncated or not a safetensors file ({error}); download it again") from error


def _drop_pages(read: Tensor) -> None:
    """Whole pages of a mapped file that were read and copied count as this process's memory no longer; the file still has them."""
    page = mmap.PAGESIZE
    begin, end = -(-read.data_ptr() // page) * page, (read.data_ptr() + read.numel() * read.element_size()) // page * page
    if sys.platform == "linux" and read.device.type == "cpu" and read.is_contiguous() and begin < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _missing_message(names: Sequence[str]) -> str:
    """A layer that lacks several tensors is named once."""
    mend = "either a file is missing (download the model again), or config.json is another model's"
    if len(names) == 1:
        return f"the checkpoint has no tensor {names[0]!r}, which config.json asks for: {mend}"
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = _LAYER.match(name)
        groups.setdefault(layer[0] if layer else name, []).append(name)
    parts = [own[0] if len(own) == 1 else f"{group} ({len(own)} tensors)" for group, own in sorted(groups.items())]
    return f"the checkpoint lacks {len(names)} tensors that config.json asks for: {_shown(parts)}; {mend}"


def _shown(names: list[str]) -> str:
    rest = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + rest
