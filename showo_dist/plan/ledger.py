"""The ledger of a step: every operation of the code that runs, with its cost and the part that it belongs to.

A dispatch mode sees each operation below autograd, forward and backward. Tensors of the device are shapes on
torch's meta device; tensors of the host are real. So a copy between the two, and a value that the host reads
from the device, show where they would happen.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from showo_dist.plan.costs import Cost, aten, cost_of, tensors_of
from showo_dist.plan.fusion import Schedule, is_compiled, schedule_of, signature

_HEAD = "head and loss"
# The last part of a module's name, or of its parent's, to the part of the step; families differ in names.
_MODULES = {
    "embed_tokens": "embed",
    "embed_in": "embed",
    "mm_projector": "embed",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
    "pre_feedforward_layernorm": "norms",
    "post_feedforward_layernorm": "norms",
    "final_layernorm": "norms",
    "final_layer_norm": "norms",
    "norm": "norms",
    "q_layernorm": "q/k norm",
    "k_layernorm": "q/k norm",
    "q_norm": "q/k norm",
    "k_norm": "q/k norm",
    "rotary_emb": "rotary",
    "q_proj": "projections",
    "k_proj": "projections",
    "v_proj": "projections",
    "dense": "projections",
    "o_proj": "projections",
    "query_key_value": "projections",
    "attention": "rotary",
    "self_attn": "rotary",  # what is left of it once attention itself is set apart
    "mlp": "MLP",
    "layers": "residuals",  # a block's own operations
    "lm_head": _HEAD,
    "embed_out": _HEAD,
}
# Operations outside of all modules, by the phase of the step.
_PHASES = {
    "exchange": "losses",
    "forward": "losses",
    "backward": "gradient sums",
    "step": "optimizer",
}
PARTS = (
    *("planning", "packing", "encoders", "embed", "norms", "q/k norm", "rotary", "projections"),
    *(
        "attention",
        "MLP",
        "residuals",
        "compiled blocks",
        _HEAD,
        "losses",
        "gradient sums",
    ),
    "optimizer",
)
_LAST_NUMBER = 2**63  # autograd's nodes that add to a gradient are numbered beyond this


@dataclass(frozen=True)
class Entry:
    """One operation.

    Attributes:
        name: of the operation.
        part: one of :data:`PARTS`.
        phase: ``read``, ``exchange``, ``forward``, ``recompute``, ``backward`` or ``step``.
        cost: its cost.
        compiled: whether it is inside a compiled module.
    """

    name: str
    part: str
    phase: str
    cost: Cost
    compiled: bool = False


@dataclass(frozen=True)
class Transfer:
    """A copy between host and device, or a value that the host waits for.

    Attributes:
        kind: ``to device``, ``to host`` or ``value`` (``item`` …).
        bytes: of the copy.
        pinned: whether the host's memory is pinned.
        blocking: whether the host waits for it.
        part: one of :data:`PARTS`.
        site: file and line of our code.
        ahead: made for the next window, by the thread that prepares it.
    """

    kind: str
    bytes: int
    pinned: bool
    blocking: bool
    part: str
    site: str
    ahead: bool = False

    @property
    def waits(self) -> bool:
        """Whether the main thread waits for what the device still has to do."""
        return self.blocking and self.kind != "to device" and not self.ahead


def _site() -> str:
    """The innermost line outside torch and of this package's recording."""
    for frame in reversed(traceback.extract_stack(limit=40)):
        path = frame.filename
        if "/torch/" not in path and not path.endswith(("plan/ledger.py", "plan/shapes.py")):
            return f"{'/'.join(path.split('/')[-2:])}:{frame.lineno}"
    return "?"


_active: list[Ledger] = []


def host_work() -> Any:
    """:meth:`Ledger.host` of the ledger that is open now; without one, just no dispatch modes."""
    return _active[-1].host() if _active else _disable_current_modes()


class Ledger(TorchDispatchMode):
    """Record all operations inside the ``with`` block.

    Args:
        device: kind of device of the run; on a CPU host and device are the same.
        ahead: a thread makes the next window (``training.pack_ahead``), so the step does not wait for it.

    Attributes:
        entries: operations in order.
        transfers: copies and waits in order.
        collectives: names of the collectives in order.
    """

    def __init__(self, device: torch.device, ahead: bool = True) -> None:
        super().__init__()
        self.ahead = ahead
        self.apart = device.type != "cpu"
        self.entries: list[Entry] = []
        self.transfers: list[Transfer] = []
        self.collectives: list[str] = []
        self.phase = "forward"
        self._stack: list[str] = []
        self._compiled: list[nn.Module] = []
        self._calls: list[tuple[nn.Module, Any, str, str]] = []
        self._last_compiled = False
        self._of_node: dict[int, tuple[str, bool]] = {}
        self._pinned: dict[int, Any] = {}

    def __enter__(self) -> Ledger:
        _active.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _active.remove(self)
        super().__exit__(*error)

    def enter(self, phase: str) -> None:
        """Begin a phase of the step, as :class:`~showo_dist.training.step.Stepper` names them."""
        self.phase = phase

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Operations inside belong to this part."""
        self._stack.append(name)
        try:
            yield
        finally:
            self._stack.pop()

    @contextmanager
    def host(self) -> Iterator[None]:
        """Inside, the host's own tensors are real; what is copied to the device is recorded."""
        with _disable_current_modes(), _HostWork(self):
            yield

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Attribute operations to the parts of a model by its modules."""
        handles = []
        for name, module in model.named_modules():
            if is_compiled(module):
                handles += _bracket(module, module, self._compiled, self._called)
            part = _part_of(name.replace("._orig_mod", ""))
            if part is not None:
                handles += _bracket(module, part, self._stack)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _called(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        again = torch._C._current_autograd_node() is not None
        part = _HEAD if _HEAD in self._stack else "compiled blocks"
        self._calls.append((module, (args, kwargs), "recompute" if again else self.phase, part))

    def fuse(self) -> None:
        """Replace what compiled modules fuse by the kernels of their schedules, call by call.

        Matrix products and attention stay: inductor calls the same library for them.
        """
        schedules: dict[Any, Schedule] = {}
        kept = [e for e in self.entries if not e.compiled or _stays(e)]
        for module, call, phase, part in self._calls:
            key = type(module), signature(call)
            if key not in schedules:
                args, kwargs = call
                where = "cuda:0" if self.apart else "cpu"
                schedules[key] = schedule_of(module, args, kwargs, where)
            found = schedules[key]
            costs = [(phase, cost) for cost in found.forward]
            if phase != "recompute":
                costs += [("backward", cost) for cost in found.backward]
            kept += [Entry("fused", part, when, cost) for when, cost in costs]
        self.entries, self._calls = kept, []

    def _where(self) -> tuple[str, str, bool]:
        """Part and phase of the operation that runs now, and whether it is inside a compiled module.

        Autograd numbers its nodes in forward; the operation of a node's backward belongs to the same part.
        """
        node = torch._C._current_autograd_node()
        if self._stack:
            here = self._stack[-1], bool(self._compiled)
            # The first operation after a node was made is the node's own.
            self._of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, here)
            # Modules that run inside backward are computed again.
            return here[0], self.phase if node is None else "recompute", here[1]
        if node is None:
            # Autograd adds gradients up between two nodes; within a compiled module that is fused.
            inside = self._last_compiled and self.phase == "backward"
            return _PHASES.get(self.phase, "losses"), self.phase, inside
        number = node._sequence_nr()
        if number >= _LAST_NUMBER:
            return "gradient sums", "backward", False
        part, compiled = self._of_node.get(number, ("losses", False))
        self._last_compiled = compiled
        return part, "backward", compiled

    def add(self, name: str, cost: Cost) -> None:
        """Record an operation."""
        part, phase, compiled = self._where()
        self.entries.append(Entry(name, part, phase, cost, compiled))

    def transfer(self, kind: str, size: int, pinned: bool, blocking: bool) -> None:
        """Record a copy between host and device, or a wait."""
        part, *_ = self._where()
        ahead = self.ahead and self.phase == "read"
        self.transfers.append(Transfer(kind, size, pinned, blocking, part, _site(), ahead))

    @property
    def waits(self) -> int:
        """How often the host has waited for the device so far."""
        return sum(transfer.waits for transfer in self.transfers)

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor of the host is in memory that was pinned."""
        return tensor.untyped_storage().data_ptr() in self._pinned

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy that counts as pinned."""
        copy = tensor.clone()
        self._pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if func.is_view:
            self._where()  # a view costs nothing, but its backward may
            return func(*args, **kwargs)
        if func.namespace == "c10d":
            self.collectives.append(packet.__name__)
            return func(*args, **kwargs)
        if self.apart:
            if packet is aten._local_scalar_dense and args[0].is_meta:
                self.transfer("value", args[0].itemsize, False, True)
            elif packet is aten._to_copy and args[0].is_meta and _names_cpu(kwargs):
                late = bool(kwargs.get("non_blocking"))  # torch then takes pinned memory
                self.transfer("to host", args[0].nbytes, late, not late)
                with _disable_current_modes():
                    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            elif packet is aten.nonzero and args[0].is_meta:
                self.transfer("value", 8, False, True)
                return args[0].new_empty((0, args[0].dim()), dtype=torch.int64)
            elif packet is aten._pin_memory:
                return self.pin(args[0])
        result = func(*args, **kwargs)
        if self.apart and packet in (aten._to_copy, aten.copy_):
            self._copied(packet, args, kwargs, result)
        cost = cost_of(func, args, kwargs, result)
        on_device = not self.apart or any(t.is_meta for t in tensors_of((args, kwargs, result)))
        if cost is not None and on_device:
            self.add(packet.__name__, cost)
        return result

    def _copied(self, packet: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        source = args[1] if packet is aten.copy_ else args[0]
        if source.is_meta or not result.is_meta:
            return
        late = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        pinned = self.is_pinned(source)
        self.transfer("to device", source.nbytes, pinned, not (late and pinned))


class _HostWork(TorchDispatchMode):
    """Runs the host's work on real tensors; records what it copies to the device."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is aten._pin_memory:
            return self._ledger.pin(args[0])
        result = func(*args, **kwargs)
        if func.overloadpacket in (aten._to_copy, aten.copy_) and self._ledger.apart:
            self._ledger._copied(func.overloadpacket, args, kwargs, result)
        return result


def _names_cpu(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu"


def _part_of(name: str) -> str | None:
    """The part of a module by its name; None: its parent's."""
    rest, _, last = name.rpartition(".")
    if not last.isdigit():
        return "embed" if not name else _MODULES.get(last)
    return _MODULES.get(rest.rpartition(".")[2]) if rest else None


def _stays(entry: Entry) -> bool:
    return entry.part == "attention" or entry.cost.kind == "product"


def _bracket(
    module: nn.Module, item: Any, stack: list[Any], called: Callable[..., None] | None = None
) -> list[Any]:
    """Hooks that keep ``item`` on a stack while a module runs; ``called`` gets the call's arguments."""

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        stack.append(item)
        if called is not None:
            called(module, args, kwargs)

    def end(*_: Any) -> None:
        stack.pop()

    return [
        module.register_forward_pre_hook(begin, with_kwargs=True),
        module.register_forward_hook(end, always_call=True),
    ]
