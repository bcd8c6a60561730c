"""What a compiled module costs: the kernels and bytes of inductor's own schedule, without generating code.

A GPU's schedule is made of tensors that claim to be on one, which needs no GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from showo_dist.plan.costs import Cost


@dataclass(frozen=True)
class Schedule:
    """Costs of the fused kernels of one call; matrix products and other library calls are not among them."""

    forward: list[Cost]
    backward: list[Cost]


def is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile`` or ``Module.compile`` was applied to this very module."""
    return (
        module._compiled_call_impl is not None
        or isinstance(module, torch._dynamo.eval_frame.OptimizedModule)
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
    )


def signature(args: Any) -> tuple[Any, ...]:
    """Shapes and dtypes of a call, which its schedule depends on."""
    return tuple((x.shape, x.dtype) for x in tree_leaves(args) if isinstance(x, Tensor))


def schedule_of(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: str = "cpu"
) -> Schedule:
    """Schedule a module's forward and backward for arguments of these shapes.

    Args:
        module: its parameters may be on the meta device.
        args, kwargs: of the call; tensors may be on the meta device.
        device: ``cpu`` or ``cuda:0``, of the run.
    """
    inner = getattr(module, "_orig_mod", module)
    forward = getattr(inner.forward, "_torchdynamo_orig_callable", inner.forward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _schedule(inner, forward, args, kwargs, device)


def _schedule(
    inner: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any, device: str
) -> Schedule:
    names = [name for name, _ in (*inner.named_parameters(), *inner.named_buffers())]
    state = [_whole(x) for x in (*inner.parameters(), *inner.buffers())]
    flat, spec = tree_flatten((args, kwargs))
    where = [i for i, x in enumerate(flat) if isinstance(x, Tensor)]
    found = Schedule([], [])

    def call(*values: Tensor) -> Any:
        filled = list(flat)
        for i, value in zip(where, values[len(state) :], strict=True):
            filled[i] = value
        positional, named = tree_unflatten(filled, spec)
        with _reparametrize_module(inner, dict(zip(names, values, strict=False))):
            return forward(*positional, **named)

    compiled = aot_function(
        call,
        fw_compiler=_recorder(found.forward, device),
        bw_compiler=_recorder(found.backward, device),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=torch._inductor.decomposition.select_decomp_table(),
    )
    outputs = compiled(*state, *(_like(flat[i]) for i in where))
    needed = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if needed:
        torch.autograd.backward(needed, [torch.empty_like(x) for x in needed])
    return found


def _whole(tensor: Tensor) -> Tensor:
    """A tensor like a parameter, or like all of one that ZeRO-3 has partitioned."""
    shape = getattr(tensor, "ds_shape", None)
    if shape is None or shape == tensor.shape:
        return _like(tensor)
    return torch.empty(shape, dtype=tensor.dtype, device="meta").requires_grad_(
        tensor.requires_grad
    )


def _like(tensor: Tensor, device: str = "meta") -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return made.requires_grad_(tensor.requires_grad)


@contextmanager
def _hopper_there() -> Iterator[None]:
    """Let inductor schedule for an H100 or H200, whether this machine has one or not."""
    from torch._inductor import scheduler
    from torch._inductor.runtime.hints import DeviceProperties

    properties = DeviceProperties(
        *("cuda", 0, 132, 90),  # multiprocessors, compute capability
        major=9,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
    )
    with (
        patch.object(DeviceProperties, "create", lambda _: properties),
        patch.object(scheduler, "has_triton", lambda *_: True),
    ):
        yield


def _recorder(costs: list[Cost], device: str) -> Callable[..., Any]:
    """A compiler that schedules a graph, notes its kernels, and runs the graph as it is."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        there = copy.deepcopy(graph)
        for node in there.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device(device)}
        there.recompile()
        fake = FakeTensorMode()
        with fake:
            given = [_like(x, device).detach() if isinstance(x, Tensor) else x for x in inputs]
        FakeTensorProp(there, fake).propagate_dont_convert_inputs(*given)
        lowering = GraphLowering(there)
        with (
            DebugContext(),
            nullcontext() if device == "cpu" else _hopper_there(),
            V.set_graph_handler(lowering),
            V.set_fake_mode(fake),
        ):
            lowering.run(*given)
            lowering._update_scheduler()
            costs.extend(map(_cost, filter(_is_kernel, lowering.scheduler.nodes)))
        return make_boxed_func(graph.forward)

    return compile_graph


def _is_kernel(node: Any) -> bool:
    return not (node.is_extern() or node.is_template() or type(node).__name__.startswith("Nop"))


def _cost(node: Any) -> Cost:
    read = node.get_read_buffer_sizes()
    return Cost("fused", 0.0, read, node.get_read_write_buffers_sizes() - read)
