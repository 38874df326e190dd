"""What a function does with tensors on a CPU, noted once and then done again without the Python around it.

A replay repeats torch's operators and the C++ kernels on the same memory: whoever wants it for other numbers writes them into
the function's input tensors first, as with CUDA graphs. Neighbouring kernels are repeated by one call. What cannot be repeated,
because Python looked at a number or a shape depends on one, raises `NotReplayable`. Knows no model.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from actorllm_kernels.native import Kernel, noting
from actorllm_kernels.replay import Argument, Call, Replay
from actorllm_kernels.twins import twin

ALIGNMENT = 64
"""Bytes: a line of the processor's cache."""

_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__}
"""By which Python looks at a CPU tensor's numbers."""

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.clone.default}
"""Operators that give what they take, perhaps in another type or order."""

_UNREPEATABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}


class NotReplayable(Exception):
    """The function does other work for other numbers."""


@dataclass(frozen=True, slots=True)
class _Operator:
    """One of torch's operators; `results` are what it gave and did not take, which each `run` writes anew."""

    function: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    results: tuple[Tensor, ...]

    @property
    def tensors(self) -> list[Tensor]:
        return _tensors((self.arguments, self.options, self.results))

    def run(self) -> Callable[[], object]:
        """The call that does it again, as short as there is one."""
        if not self.results:
            return partial(self.function, *self.arguments, **self.options)
        if self.function in _COPIES:
            return partial(self.results[0].copy_, self.arguments[0])
        if writing := _writing(self.function):
            return partial(writing, *self.arguments, **self.options, out=self.results[0])
        return self._run_and_copy

    def _run_and_copy(self) -> None:
        found = tree_leaves(self.function(*self.arguments, **self.options))
        for kept, result in zip(self.results, found, strict=True):
            kept.copy_(result)


class Recording:
    """What `record` noted, done again by each `run`.

    `memory(n)` gives a block of n bytes or more for what only kernels touch; what is in it between two runs does not matter.
    """

    def __init__(self, notes: "_Notes", result: Tensor, memory: Callable[[int], Tensor]) -> None:
        shown = {_address(tensor) for step in notes.steps if isinstance(step, _Operator) for tensor in step.tensors}
        self._kept = [tensor for tensor in notes.made if _address(tensor) in shown]
        hidden = [tensor for tensor in notes.made if _address(tensor) not in shown]
        steps, self._arena, offsets = packed(notes.steps, hidden, result=result, memory=memory)
        self._result = result if _address(result) not in offsets else _moved(result, self._arena, offsets[_address(result)])
        self._runs: list[Callable[[], object]] = []
        for is_call, group in groupby(steps, key=lambda step: isinstance(step, Call)):
            if is_call:
                self._runs.append(Replay([step for step in group if isinstance(step, Call)]).run)
            else:
                self._runs += [step.run() for step in group if isinstance(step, _Operator)]
        self.num_bytes = sum({_address(tensor): tensor.untyped_storage().nbytes() for tensor in self._kept}.values())

    def run(self) -> Tensor:
        """Do it all again; the result is valid until the next time."""
        for run in self._runs:
            run()
        return self._result


def record(function: Callable[[], Tensor], memory: Callable[[int], Tensor]) -> tuple[Tensor, Recording]:
    """What `function` gives, and what it did. `memory`: see `Recording`. Raises `NotReplayable`."""
    notes = _Notes()
    with _Looks(), notes, noting(notes.call):
        result = function()
    return result, Recording(notes, result, memory)


class _Looks(TorchFunctionMode):
    """Refuses what gives numbers to Python."""

    def __torch_function__(self, func: Any, types: Any, *given: Any) -> Any:
        if func in _READERS:
            raise NotReplayable(f"{func.__name__} gives numbers to Python")
        args, options = _arguments(given)
        return func(*args, **options)


class _Notes(TorchDispatchMode):
    """Takes the steps down. `made` are all new tensors: while they live, no address means two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Operator | Call] = []
        self.made: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped by torch's compiler, it would have to be imported, which takes 150 MiB and seconds. Nothing is compiled."""
        return False

    def call(self, kernel: Kernel, arguments: tuple[Argument, ...]) -> None:
        """A kernel was called."""
        self.steps.append(Call(kernel, arguments))

    def __torch_dispatch__(self, func: Any, types: Any, *given: Any) -> Any:
        args, options = _arguments(given)
        with self:  # in inference mode operators that are made of others arrive whole
            parts = func.decompose(*args, **options)
        if parts is not NotImplemented:
            return parts
        if not _UNREPEATABLE.isdisjoint(func.tags) and not _is_lookup(func, args):
            raise NotReplayable(f"what {func} gives depends on numbers")
        found = func(*args, **options)
        results = tree_leaves(found)
        if not all(isinstance(result, Tensor) for result in results):
            raise NotReplayable(f"{func} gives numbers to Python")
        taken = {_address(tensor) for tensor in _tensors((args, options))}
        new = tuple(result for result in results if _address(result) not in taken)
        self.made += new
        if func._schema.is_mutable:
            self.steps.append(_Operator(func, args, options, ()))
        elif new and not func.overloadpacket.__name__.startswith(("empty", "new_empty")):
            if len(new) < len(results):
                raise NotReplayable(f"{func} gives some of what it takes")
            self.steps.append(twin(func, args, options, new) or _Operator(func, args, options, new))
        return found


def packed(
    steps: Sequence[_Operator | Call], tensors: Iterable[Tensor], *, result: Tensor, memory: Callable[[int], Tensor]
) -> tuple[list[_Operator | Call], Tensor, dict[int, int]]:
    """The same steps with `tensors`, which only kernels touch, in one block of memory, where tensors that are not in use at the
    same time share a place: what is used again soon is still in the processor's cache. With the block, and each one's place."""
    sizes = {_address(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    starts = sorted(sizes)
    uses: dict[int, list[int]] = {}
    bases: dict[int, int] = {}
    for index, step in enumerate(steps):
        for pointer in step.pointers if isinstance(step, Call) else ():
            place = bisect_right(starts, pointer) - 1
            if place >= 0 and pointer < (base := starts[place]) + sizes[base]:
                bases[pointer] = base
                uses.setdefault(base, []).append(index)
    if _address(result) in uses:
        uses[_address(result)].append(len(steps))  # it is read at the end
    offsets, end = places({base: (sizes[base], at[0], at[-1]) for base, at in uses.items()})
    arena = memory(end + ALIGNMENT)
    shift = -arena.data_ptr() % ALIGNMENT
    offsets = {base: shift + offset for base, offset in offsets.items()}
    new = {pointer: arena.data_ptr() + offsets[base] + pointer - base for pointer, base in bases.items()}
    return [step.moved(new) if isinstance(step, Call) else step for step in steps], arena, offsets


def places(blocks: Mapping[int, tuple[int, int, int]]) -> tuple[dict[int, int], int]:
    """An offset for each block `(bytes, first use, last use)`, and where the last of them ends; blocks that are in use at the same
    time do not overlap. Each takes the first gap that holds it, in the order of first use."""
    offsets: dict[int, int] = {}
    live: list[tuple[int, int, int]] = []
    end = 0
    for name, (size, first, last) in sorted(blocks.items(), key=lambda item: item[1][1]):
        live = sorted(block for block in live if block[2] >= first)
        offset = 0
        for begin, until, _ in live:
            if offset + size <= begin:
                break
            offset = max(offset, until)
        until = offset + -(-size // ALIGNMENT) * ALIGNMENT
        offsets[name] = offset
        live.append((offset, until, last))
        end = max(end, until)
    return offsets, end


def _arguments(given: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """As torch's modes are given them: both may be left out."""
    args, options, *_ = *given, (), None
    return args, options or {}


def _moved(tensor: Tensor, arena: Tensor, offset: int) -> Tensor:
    """The same tensor in the arena, with its memory from `offset` on."""
    memory = arena[offset : offset + tensor.untyped_storage().nbytes()].view(tensor.dtype)
    return memory.as_strided(tensor.shape, tensor.stride(), memory.storage_offset() + tensor.storage_offset())


def _writing(function: Any) -> Any | None:
    """The form of an operator that writes its only result to `out`, if it has one."""
    packet, wanted = function.overloadpacket, [argument.name for argument in function._schema.arguments]
    for name in (f"{function._overloadname}_out", "out"):
        if name in packet.overloads() and [each.name for each in getattr(packet, name)._schema.arguments] == [*wanted, "out"]:
            return getattr(packet, name)
    return None


def _is_lookup(func: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether it is an indexing by numbers: only by a mask are there as many results as the mask says."""
    is_index = func is torch.ops.aten.index.Tensor
    return is_index and all(index.dtype not in (torch.bool, torch.uint8) for index in _tensors(arguments[1]))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    """What two tensors of the same memory have in common. oneDNN's packed weights have none that can be asked for."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else -id(tensor)
