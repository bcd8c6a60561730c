"""What a compiled module costs: the kernels and bytes of inductor's own schedule, without generating code.

The schedule is made for a CPU, where no GPU is needed; a GPU's differs in details of what it fuses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def schedule_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Schedule:
    """Schedule a module's forward and backward for arguments of these shapes, on any device.

    Args:
        module: its parameters may be on the meta device.
        args, kwargs: of the call; tensors may be on the meta device.
    """
    inner = getattr(module, "_orig_mod", module)
    forward = getattr(inner.forward, "_torchdynamo_orig_callable", inner.forward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _schedule(inner, forward, args, kwargs)


def _schedule(inner: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Schedule:
    names = [name for name, _ in (*inner.named_parameters(), *inner.named_buffers())]
    state = [_like(x) for x in (*inner.parameters(), *inner.buffers())]
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
        fw_compiler=_recorder(found.forward),
        bw_compiler=_recorder(found.backward),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=torch._inductor.decomposition.select_decomp_table(),
    )
    outputs = compiled(*state, *(_like(flat[i]) for i in where))
    needed = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if needed:
        torch.autograd.backward(needed, [torch.empty_like(x) for x in needed])
    return found


def _like(tensor: Tensor, device: str = "meta") -> Tensor:
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return made.requires_grad_(tensor.requires_grad)


def _recorder(costs: list[Cost]) -> Callable[..., Any]:
    """A compiler that schedules a graph, notes its kernels, and runs the graph as it is."""
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    def compile_graph(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        there = copy.deepcopy(graph)
        for node in there.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": torch.device("cpu")}
        there.recompile()
        fake = FakeTensorMode()
        with fake:
            given = [_like(x, "cpu").detach() if isinstance(x, Tensor) else x for x in inputs]
        FakeTensorProp(there, fake).propagate_dont_convert_inputs(*given)
        lowering = GraphLowering(there)
        with DebugContext(), V.set_graph_handler(lowering), V.set_fake_mode(fake):
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
