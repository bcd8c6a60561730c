"""What one operation costs: FLOPs, bytes read and written, kernels, read off its arguments and results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# A plan's stand-in for an attention kernel calls this marker: it computes nothing and carries what the kernel
# would do.
_LIBRARY = torch.library.Library("showo_plan", "DEF")
_LIBRARY.define("attention(Tensor query, Tensor key, Tensor value, int pairs, bool backward) -> ()")
_LIBRARY.impl("attention", lambda *_: None, "CompositeExplicitAutograd")
ATTENTION = torch.ops.showo_plan.attention.default

_PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
_CONVOLUTIONS = {aten.convolution, aten.convolution_backward}
# Made without a kernel: memory, metadata, or another name for a tensor.
_FREE = {
    *(aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided),
    *(
        aten.detach,
        aten.alias,
        aten._unsafe_view,
        aten.is_pinned,
        aten.lift_fresh,
        aten.lift,
        aten.set_,
    ),
    *(aten.record_stream, aten._local_scalar_dense, aten.sym_size, aten.is_same_size),
}
# What these write into is not read.
_OVERWRITE = {aten.copy_, aten.fill_, aten.zero_, aten._foreach_zero_, aten._foreach_copy_}
# These read as many elements as they return, whatever the size of the source.
_READ_ROWS = {aten.index_select, aten.embedding, aten.index, aten.gather, aten.take}
# These touch as many elements of their target as the last argument has.
_WRITE_ROWS = {aten.index_copy_, aten.index_add_, aten.scatter_add_, aten.scatter_, aten.index_put_}
_SPECIAL = {
    *(aten.gelu, aten.gelu_backward, aten.exp, aten.exp_, aten.tanh, aten.log, aten.cos, aten.sin),
    *(aten._softmax, aten._softmax_backward_data, aten.sigmoid, aten.silu, aten.silu_backward),
}
_NORMS = {aten.native_layer_norm, aten.native_layer_norm_backward, aten.native_group_norm}
# One launch of torch's kernels over many tensors covers so many elements or tensors.
_MULTI_ELEMENTS, _MULTI_TENSORS = 320 * 65536, 64


@dataclass(frozen=True)
class Cost:
    """Cost of one operation.

    Attributes:
        kind: ``product``, ``convolution``, ``attention``, ``norm``, ``special`` (exp and the like), ``rows``
            (gathers), ``update`` (AdamW) or ``pass``: everything else that goes over tensors once.
        flops: of products, convolutions and attention; 0 else.
        read, written: bytes.
        kernels: launches on a GPU.
        dtype: of the computation.
        least: the shortest side of a matrix product, which its speed depends on; head width of attention.
        backward: of attention, whose backward is slower.
        aligned: whether all rows of a product's factors begin at a multiple of 16 bytes.
        exact: of convolutions in fp32, that TF32 is switched off for.
    """

    kind: str
    flops: float = 0.0
    read: int = 0
    written: int = 0
    kernels: int = 1
    dtype: torch.dtype = torch.float32
    least: int = 0
    backward: bool = False
    aligned: bool = True
    exact: bool = False

    @property
    def bytes(self) -> int:
        return self.read + self.written


def extent(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor; an expanded dimension counts once."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in sides if stride or not size) * tensor.itemsize


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors of a tree of arguments or results."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation writes into."""
    found = enumerate(func._schema.arguments)
    return tuple(
        (i, a.name) for i, a in found if a.alias_info is not None and a.alias_info.is_write
    )


def cost_of(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Cost | None:
    """The cost of ``func(*args, **kwargs)``, which returned ``result``; None for what runs no kernel."""
    packet = func.overloadpacket
    if func is ATTENTION:
        return _attention(*args)
    if func.is_view or packet in _FREE or func.namespace in ("c10d", "profiler", "prim"):
        return None
    given = list(tensors_of((args, kwargs)))
    targets = list(
        tensors_of([args[i] if i < len(args) else kwargs.get(n) for i, n in _written(func)])
    )
    made = [] if targets else list(tensors_of(result))
    if not targets and {id(t) for t in made} & {id(t) for t in given}:
        return None  # nothing was done, as by ``contiguous`` of a contiguous tensor
    if packet in _PRODUCTS or packet in _CONVOLUTIONS:
        return _product(func, args, kwargs, result)
    if packet is aten.index_fill_:
        row = extent(args[0]) // max(1, args[0].shape[args[1]])
        return Cost("rows", 0, extent(args[2]), row * args[2].numel())
    changed = {id(t) for t in targets}
    inputs = sum(extent(t) for t in given if id(t) not in changed)
    outputs = sum(map(extent, targets or made))
    if packet in _READ_ROWS:
        index = sum(extent(t) for t in given[1:])
        return Cost("rows", 0, index + outputs, outputs)
    if packet in _WRITE_ROWS:
        rows = extent(given[-1])
        return Cost("rows", 0, inputs + (0 if packet is aten.index_copy_ else rows), rows)
    read = inputs if packet in _OVERWRITE else inputs + sum(map(extent, targets))
    kind = "special" if packet in _SPECIAL else "norm" if packet in _NORMS else "pass"
    if packet is aten._fused_adamw_:
        kind = "update"
    kernels = 1
    if packet is aten.native_layer_norm_backward:  # one for the input, one for weight and bias
        kernels, read = 2, 2 * read
    elif packet is aten.embedding_dense_backward:  # the whole table is set to zero first
        kernels, read = 2, inputs + inputs
    elif len(targets or made) > 2:
        lists = targets or made
        elements = sum(t.numel() for t in lists)
        kernels = max(1, ceil(elements / _MULTI_ELEMENTS), ceil(len(lists) / _MULTI_TENSORS))
    dtype = next((t.dtype for t in (targets or made or given)), torch.float32)
    return Cost(kind, 0, read, outputs, kernels, dtype)


def _product(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Cost:
    given = list(tensors_of((args, kwargs)))
    made = list(tensors_of(result))
    flops = float(flop_registry[func.overloadpacket](*args, **_counted(kwargs), out_val=result))
    read, written = sum(map(extent, given)), sum(map(extent, made))
    factors = given[-2:] if func.overloadpacket in _PRODUCTS else given[:2]
    dtype = factors[0].dtype
    if func.overloadpacket in _CONVOLUTIONS:
        exact = dtype == torch.float32 and not torch.backends.cudnn.allow_tf32
        kernels = max(1, len(made))
        return Cost("convolution", flops, read, written, kernels, dtype, exact=exact)
    (m, k), n = factors[0].shape[-2:], factors[1].shape[-1]
    rows = 16 // dtype.itemsize
    aligned = all(max(t.stride()[-2:]) % rows == 0 for t in (*factors, made[0]))
    return Cost("product", flops, read, written, 1, dtype, min(m, k, n), aligned=aligned)


def _counted(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that torch's formulas take."""
    return {key: value for key, value in kwargs.items() if key in ("beta", "alpha")}


def _attention(query: Tensor, key: Tensor, value: Tensor, pairs: int, backward: bool) -> Cost:
    """Two products over the visible pairs; five in backward, which computes the scores again."""
    inputs, output = sum(map(extent, (query, key, value))), extent(query)
    width = query.shape[-1]
    if not backward:
        return Cost("attention", 4.0 * pairs * width, inputs, output, 1, query.dtype, width)
    # FlashAttention's backward has a pass before and one after the main kernel.
    read = inputs + 3 * output
    return Cost("attention", 10.0 * pairs * width, read, inputs, 3, query.dtype, width, True)
