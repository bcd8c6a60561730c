"""Attention and loss kernels for packed sequences with Show-o's attention visibility; needs torch alone."""

from showo_kernels.attention import AttentionPlan, attend, build_plan, select_backend
from showo_kernels.cached import CachedPlan
from showo_kernels.cpu.gelu import TanhGELU
from showo_kernels.join import JoinFlows, join_flows
from showo_kernels.losses import FlowLosses, flow_losses
from showo_kernels.visibility import Span, Visibility

__all__ = [
    "AttentionPlan",
    "CachedPlan",
    "FlowLosses",
    "JoinFlows",
    "Span",
    "TanhGELU",
    "Visibility",
    "attend",
    "build_plan",
    "flow_losses",
    "join_flows",
    "select_backend",
]
