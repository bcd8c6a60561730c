"""Run real training code on shapes alone, and record every allocation, release and collective.

Tensors are on torch's meta device, which has no memory and no values. A dispatch mode keeps them there
whatever device the code asks for, and returns a constant where the code reads a value.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")


@dataclass(frozen=True)
class Collective:
    """One call of a collective, as one rank makes it.

    Attributes:
        kind: ``all_reduce``, ``all_gather``, ``all_to_all``, ``reduce_scatter``, ``broadcast`` or
            ``reduce``.
        bytes: size of the whole result for all_gather, of the whole operand otherwise.
        ranks: number of ranks of the group.
        phase: phase of the step in which the call is made.
    """

    kind: str
    bytes: int
    ranks: int
    phase: str


# c10d's operations -> (kind, index of the argument that holds the whole tensors)
_WHOLE: dict[str, tuple[str, int]] = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "alltoall_base_": ("all_to_all", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
}

# ZeRO-1 and 2 note shapes as such copies, which they explicitly create on the meta device: those take no
# memory in a real run either. Copies on a parameter's device, which is the meta device only here, would.
_NOTES = {torch.ops.aten.zeros_like.default, torch.ops.aten.empty_like.default}


def _nbytes(value: Any) -> int:
    """Bytes of the tensors themselves, not of the storages that they view."""
    return sum(leaf.nbytes for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


@dataclass
class Ledger:
    """Record of allocations, releases and collectives, in order.

    Attributes:
        events: (storage, bytes) of every allocation and (storage, -bytes) of every release.
        part: the one of :data:`PARTS` that a storage belongs to; may be corrected until it is read.
        marks: number of events at the begin of each phase.
        collectives: calls in order.
    """

    events: list[tuple[int, int]] = field(default_factory=list)
    part: dict[int, str] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    collectives: list[Collective] = field(default_factory=list)

    def peak(self, since: str | None = None) -> tuple[int, dict[str, int]]:
        """Largest number of live bytes from phase ``since`` on, and the live bytes of each part then."""
        first = self.marks[since] if since else 0
        live = top = at = 0
        for index, (_, size) in enumerate(self.events):
            live += size
            if index >= first and live > top:
                top, at = live, index
        return top, self._by_part(at + 1)

    def live(self) -> dict[str, int]:
        """Live bytes of each part at the end of the record."""
        return self._by_part(len(self.events))

    def _by_part(self, until: int) -> dict[str, int]:
        sums = dict.fromkeys(PARTS, 0)
        for storage, size in self.events[:until]:
            sums[self.part[storage]] += size
        return sums


class Shapes(TorchDispatchMode):
    """The dispatch mode: code inside the ``with`` block runs on shapes.

    Args:
        device: kind of device of a real run.

    Attributes:
        ledger: the record.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.ledger = Ledger()
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._part, self._phase = "buffers", ""
        self._shapes: dict[Any, tuple[Any, ...]] = {}

    def phase(self, name: str, part: str) -> None:
        """Begin phase ``name``; allocations in it belong to ``part``."""
        self.ledger.marks[name] = len(self.ledger.events)
        self._phase, self._part = name, part

    @contextmanager
    def allocating(self, part: str) -> Iterator[None]:
        """Assign the allocations inside the block to ``part``."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def assign(self, part: str, tensors: Any) -> None:
        """Assign the storages of these tensors to ``part``, whenever they were allocated."""
        for tensor in tensors:
            storage = self._known.get(tensor.untyped_storage())
            if storage is not None:
                self.ledger.part[storage] = part

    def survivors(self, since: str) -> set[int]:
        """Storages allocated from phase ``since`` on that are still live."""
        live: set[int] = set()
        for storage, size in self.ledger.events[self.ledger.marks[since] :]:
            (live.add if size > 0 else live.discard)(storage)
        return live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        # A view allocates nothing. It comes first for speed: ZeRO-3 makes one per parameter and rank.
        if func.is_view:
            return func(*args, **kwargs)
        if func.namespace == "c10d":
            self._collective(func, args)
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return _any_number(args[0].dtype)
        if func is torch.ops.aten.is_pinned.default:
            return False
        if func is torch.ops.aten._to_copy.default and self._stays(args[0], kwargs):
            return args[0].detach()
        if func in _NOTES and _is_meta(kwargs.get("device")):
            return func(*args, **kwargs)
        if _takes_device(func) and not _like_one_of_the_host(args, kwargs):
            kwargs["device"] = META
        if _changes_values_only(func) and args[0].is_meta:
            return args[0]  # on shapes nothing changes
        result = self._computed(func, args, kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._allocated(leaf.untyped_storage())
        return result

    def _computed(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operation; shapes that it gave before are remembered.

        torch derives most shapes in Python, which takes a hundred times as long as to allocate them.
        """
        key = _key((func, args, kwargs)) if _makes_one_tensor(func) else None
        if key is not None and key in self._shapes:
            shape, stride, dtype = self._shapes[key]
            return torch.empty_strided(shape, stride, dtype=dtype, device=META)
        result = func(*_all_on_meta(args), **kwargs)
        if key is not None and result.is_meta:
            self._shapes[key] = result.shape, result.stride(), result.dtype
        return result

    def _stays(self, tensor: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether a real run would return the tensor itself: it has the requested device and dtype."""
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        there = device is not None and torch.device(device).type == self._device.type
        return tensor.is_meta and there and dtype in (None, tensor.dtype)

    def _allocated(self, storage: Any) -> None:
        if storage in self._known or not storage.nbytes():
            return
        number, size = len(self.ledger.part), storage.nbytes()
        self._known[storage] = number
        self.ledger.part[number] = self._part
        self.ledger.events.append((number, size))
        # The finalizer records the release when the storage is garbage-collected.
        weakref.finalize(storage, self.ledger.events.append, (number, -size)).atexit = False

    def _collective(self, func: Any, args: Any) -> None:
        name = func.overloadpacket.__name__
        if name not in _WHOLE:
            return
        kind, index = _WHOLE[name]
        ranks = dist.get_world_size()
        if func in collective_ops:
            ranks = CollectiveOp.get_process_group(func, args).size()
        call = Collective(kind, _nbytes(args[index]), ranks, self._phase)
        self.ledger.collectives.append(call)
        if kind == "reduce_scatter" and self._device.type == "cpu":
            # gloo sums a copy of the operand, which is released when the call returns.
            copy = torch.empty(call.bytes, dtype=torch.uint8, device=META)
            self._allocated(copy.untyped_storage())


def _all_on_meta(args: Any) -> Any:
    """Move all tensors to the meta device if one is there already; torch.tensor makes them elsewhere."""
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    if len({tensor.is_meta for tensor in tensors}) < 2:
        return args
    return tree_map_only(Tensor, lambda tensor: tensor if tensor.is_meta else tensor.to(META), args)


def _like_one_of_the_host(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a tensor is made like one that a ledger has copied to the host."""
    source = args[0] if args else None
    return isinstance(source, Tensor) and not source.is_meta and kwargs.get("device") is None


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


@cache
def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


# In-place operations that change the shape or the storage of a tensor, not only its values.
_RESHAPE = (
    "resize",
    "set_",
    "t_",
    "transpose",
    "squeeze",
    "unsqueeze",
    "as_strided",
    "swap",
    "detach",
)


@cache
def _changes_values_only(func: Any) -> bool:
    """Whether an operation only writes into its first argument and returns it."""
    name, schema = func.overloadpacket.__name__, func._schema
    if not name.endswith("_") or name.startswith(_RESHAPE) or func.namespace != "aten":
        return False
    first, returned = schema.arguments[0].alias_info, [r.alias_info for r in schema.returns]
    others = [a.alias_info for a in schema.arguments[1:] if a.alias_info is not None]
    plain = str(schema.arguments[0].type) == "Tensor" and len(returned) == 1
    return plain and not others and first is not None and first.is_write


@cache
def _makes_one_tensor(func: Any) -> bool:
    """Whether an operation returns one new tensor, whose shape depends on its arguments' alone."""
    schema = func._schema
    returns = [str(r.type) for r in schema.returns]
    aliased = any(a.alias_info is not None for a in (*schema.arguments, *schema.returns))
    # Its schema does not tell that it is a view.
    return returns == ["Tensor"] and not aliased and func is not torch.ops.aten._unsafe_view.default


def _key(value: Any) -> Any:
    """A hashable description of arguments; None where a tensor is not on the meta device."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else None
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, list | tuple):
        parts = tuple(_key(item) if item is not None else "none" for item in value)
        return None if None in parts else parts
    # 1, 1.0 and True are equal, but give different dtypes.
    return type(value), value


def _any_number(dtype: torch.dtype) -> bool | int | float:
    """The value that code reads from a tensor: 0, which means no overflow and skips no step."""
    if dtype == torch.bool:
        return False
    return 0.0 if dtype.is_floating_point else 0


def storages_of(module: nn.Module) -> list[Tensor]:
    """The tensors of a module's parameters, ZeRO-3's partitions included."""
    tensors: list[Tensor] = []
    for parameter in module.parameters():
        tensors.append(parameter.data)
        partition = getattr(parameter, "ds_tensor", None)
        if partition is not None:
            tensors.append(partition)
    return tensors
