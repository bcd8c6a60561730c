"""Attention and loss kernels for packed sequences with Show-o's attention visibility; needs torch alone."""

from showo_kernels.attention import AttentionPlan, attend, build_plan, compilable, select_backend
from showo_kernels.cached import CachedPlan
from showo_kernels.capacity import allow_capacities, capacity
from showo_kernels.cpu.gelu import TanhGELU
from showo_kernels.join import JoinFlows, join_flows
from showo_kernels.losses import FlowLosses, FusedChunk, compiled_chunk, flow_losses
from showo_kernels.planned import PlanHandle
from showo_kernels.transfer import to_device
from showo_kernels.visibility import Span, Visibility

__all__ = [
    "AttentionPlan",
    "CachedPlan",
    "FlowLosses",
    "FusedChunk",
    "JoinFlows",
    "PlanHandle",
    "Span",
    "TanhGELU",
    "Visibility",
    "allow_capacities",
    "attend",
    "build_plan",
    "capacity",
    "compilable",
    "compiled_chunk",
    "flow_losses",
    "join_flows",
    "select_backend",
    "to_device",
]
