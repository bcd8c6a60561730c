"""Random packed layouts, the rule in plain Python, and an emulated variable-length kernel."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from showo_kernels import Span, Visibility
from showo_kernels.cpu import compiled
from showo_kernels.varlen import VarlenCall

LARGEST = 1024

NO_NATIVE = compiled.obstacle()
NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(NO_NATIVE is not None, reason=f"{NO_NATIVE}")
)

_SPANS = st.builds(
    Span,
    length=st.one_of(st.integers(1, 4), st.integers(1, 40), st.integers(1, 300)),
    bidirectional=st.booleans(),
    is_global=st.booleans(),
)
_DOCUMENTS = st.lists(st.lists(_SPANS, min_size=1, max_size=6), min_size=1, max_size=8)


def _shrink(documents: list[list[Span]]) -> list[list[Span]]:
    """Scale the lengths of a layout that is too long; 48 spans of at least 1 always fit."""
    total = sum(span.length for document in documents for span in document)
    if total <= LARGEST:
        return documents
    return [
        [
            Span(max(1, span.length * (LARGEST - 48) // total), span.bidirectional, span.is_global)
            for span in document
        ]
        for document in documents
    ]


# 1 to 8 documents of 1 to 6 spans with any flags, at most 1,024 tokens together.
LAYOUTS = _DOCUMENTS.map(_shrink)

# The layouts of the specification (section 4) and the corners of the rule.
NAMED = {
    "t2i": [[Span(12), Span(18, True)]],
    "lm": [[Span(40)]],
    "mmu": [[Span(19, True), Span(23)]],
    "mmu clip": [[Span(7), Span(24, True, True), Span(15)]],
    "recon": [[Span(1), Span(18, True), Span(9), Span(18, True)]],
    "recon clip": [
        [Span(2), Span(24, True, True), Span(9), Span(1), Span(16, True), Span(1)],
        [Span(2), Span(24, True, True), Span(5), Span(1), Span(16, True), Span(1)],
    ],
    "global spans before, inside and behind": [
        [Span(3, False, True), Span(8), Span(5, True, True), Span(8), Span(4, False, True)]
    ],
    "adjacent bidirectional": [[Span(5, True), Span(6, True), Span(7, True, True), Span(3, True)]],
    "adjacent global": [[Span(4), Span(3, True, True), Span(3, False, True), Span(2), Span(2)]],
    "global causal at both ends": [[Span(6, False, True), Span(9, True), Span(6, False, True)]],
    # Too long to be worth joining: the last run is causal with keys before it.
    "long": [[Span(100), Span(150, True), Span(200)], [Span(90), Span(80, True, True), Span(90)]],
    "one token documents": [[Span(1)], [Span(1, True, True)], [Span(1, False, True)], [Span(1)]],
}

# An image before the rows in front of it, which it attends to.
IMAGE_FIRST = [
    [Span(24, True, ahead=7), Span(22)],
    [Span(24, True, ahead=2), Span(2), Span(10), Span(16, True), Span(1)],
    [Span(6, True, ahead=1), Span(1)],
]


def rule(documents: list[list[Span]]) -> Tensor:
    """The visibility as in docs/specification.md, section 4, from the spans themselves: bool (T, T)."""
    tokens = [
        (number, place, span)
        for number, document in enumerate(documents)
        for place, span in enumerate(document)
        for _ in range(span.length)
    ]
    return torch.tensor(
        [
            [
                query[0] == key[0]
                and (k <= q or (query[1] == key[1] and key[2].bidirectional) or key[2].is_global)
                for k, key in enumerate(tokens)
            ]
            for q, query in enumerate(tokens)
        ]
    )


def padded(documents: list[list[Span]]) -> Visibility:
    """The layout padded to the next multiple of 128."""
    visibility = Visibility.from_documents(documents)
    return visibility.pad_to(-(-len(visibility) // 128) * 128)


class EmulatedVarlen:
    """What a variable-length FlashAttention call computes, one sequence at a time, and its gradient.

    NaN for rows without keys and keys without rows, which a kernel need not write. Backward checks the output
    and the log-sum-exps that it gets, from which a real kernel computes the gradients.
    """

    def forward(
        self, q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, call: VarlenCall, scale: float
    ) -> tuple[Tensor, Tensor]:
        out_QHD = torch.full_like(q_QHD, torch.nan)
        sums_HQ = torch.full((q_QHD.shape[1], len(q_QHD)), torch.nan)
        for cu, longest in ((call.cu_rows_S, call.max_rows), (call.cu_keys_S, call.max_keys)):
            assert int(cu.diff().max()) == longest
        assert len(q_QHD) == int(call.cu_rows_S[-1])
        assert len(k_KHD) == len(v_KHD) == int(call.cu_keys_S[-1])
        for rows, keys in _pairs(call):
            out_QHD[rows] = _one(q_QHD[rows], k_KHD[keys], v_KHD[keys], call.causal, scale)
            sums_HQ[:, rows] = _sums(q_QHD[rows], k_KHD[keys], call.causal, scale)
        return out_QHD, sums_HQ

    def backward(
        self,
        grad_QHD: Tensor,
        q_QHD: Tensor,
        k_KHD: Tensor,
        v_KHD: Tensor,
        out_QHD: Tensor,
        sums_HQ: Tensor,
        call: VarlenCall,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grads = tuple(torch.full_like(x, torch.nan) for x in (q_QHD, k_KHD, v_KHD))
        for rows, keys in _pairs(call):
            parts = (q_QHD[rows], k_KHD[keys], v_KHD[keys])
            leaves = [x.detach().requires_grad_() for x in parts]
            with torch.enable_grad():
                own_QHD = _one(*leaves, call.causal, scale)
            torch.testing.assert_close(out_QHD[rows], own_QHD)
            sums = _sums(q_QHD[rows], k_KHD[keys], call.causal, scale)
            torch.testing.assert_close(sums_HQ[:, rows], sums)
            own = torch.autograd.grad(own_QHD, leaves, grad_QHD[rows])
            for whole, part, found in zip(grads, (rows, keys, keys), own, strict=True):
                whole[part] = found
        return grads


def _pairs(call: VarlenCall) -> list[tuple[slice, slice]]:
    """Rows and keys of the sequences that have both."""
    cu_rows, cu_keys = call.cu_rows_S.tolist(), call.cu_keys_S.tolist()
    all_of = zip(pairwise(cu_rows), pairwise(cu_keys), strict=True)
    return [(slice(*q), slice(*k)) for q, k in all_of if q[0] < q[1] and k[0] < k[1]]


def _one(q_QHD: Tensor, k_KHD: Tensor, v_KHD: Tensor, causal: bool, scale: float) -> Tensor:
    """Attention of one sequence: (Q, H, D)."""
    q_HQD, k_HKD, v_HKD = (x.transpose(0, 1) for x in (q_QHD, k_KHD, v_KHD))
    mask_QK = _mask(len(q_QHD), len(k_KHD), causal)
    return F.scaled_dot_product_attention(
        q_HQD, k_HKD, v_HKD, attn_mask=mask_QK, scale=scale, enable_gqa=True
    ).transpose(0, 1)


def _sums(q_QHD: Tensor, k_KHD: Tensor, causal: bool, scale: float) -> Tensor:
    """Log-sum-exps of one sequence in fp32: (H, Q)."""
    q_HQD, k_HKD = (x.transpose(0, 1).float() for x in (q_QHD, k_KHD))
    k_HKD = k_HKD.repeat_interleave(len(q_HQD) // len(k_HKD), dim=0)
    hidden_QK = ~_mask(len(q_QHD), len(k_KHD), causal)
    scores_HQK = (q_HQD @ k_HKD.transpose(1, 2) * scale).masked_fill(hidden_QK, -torch.inf)
    return scores_HQK.logsumexp(-1)


def _mask(rows: int, keys: int, causal: bool) -> Tensor:
    """Which keys each row sees: bool (Q, K)."""
    mask_QK = torch.ones(rows, keys, dtype=torch.bool)
    # Bottom right: the last row sees all keys.
    return mask_QK.tril(keys - rows) if causal else mask_QK
