"""Show-o: one decoder for text and image codes; everything trainable is used inside one forward."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PhiConfig, PhiForCausalLM, PhiModel
from transformers.activations import NewGELUActivation

from showo_dist.models.attention import register
from showo_dist.sequences.pack import PackedBatch
from showo_dist.sequences.sequence import FLOWS
from showo_kernels import AttentionPlan, TanhGELU, build_plan, flow_losses, join_flows

# What this version of transformers calls the argument; the old name will be dropped.
_CACHE = "cache" if "cache" in inspect.signature(PhiModel.forward).parameters else "past_key_values"


class LossHead(nn.Linear):
    """The output head with its losses: both need the weight, gathered by ZeRO-3 for this one forward."""

    def forward(  # type: ignore[override]
        self,
        hidden_PD: Tensor,
        batch: PackedBatch | None = None,
        flow_scale_F: Tensor | None = None,
        label_smoothing: float = 0.0,
        ids: slice = slice(None),
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (P, V) without ``batch``, else the losses of its labels (see :meth:`ShowO.forward`).

        Args:
            hidden_PD: hidden states of the rows asked for, or of the labelled rows.
            batch: gives targets, flows and weights of the P labels.
            flow_scale_F: factor of each flow's sum in the total.
            label_smoothing: mass spread evenly over the vocabulary.
            ids: the part of the vocabulary whose logits are wanted.
        """
        if batch is None:
            bias = None if self.bias is None else self.bias[ids]
            return nn.functional.linear(hidden_PD, self.weight[ids], bias)
        assert flow_scale_F is not None
        return flow_losses(
            hidden_PD,
            self.weight,
            self.bias,
            batch.targets_P,
            batch.label_flow_P,
            batch.label_weights_P,
            flow_scale_F,
            label_smoothing=label_smoothing,
        )


def clip_projector(feature_width: int, width: int) -> nn.Sequential:
    """CLIP features to model width: Linear, GELU, Linear (docs/specification.md, section 2)."""
    return nn.Sequential(nn.Linear(feature_width, width), nn.GELU(), nn.Linear(width, width))


class ShowO(nn.Module):
    """Backbone, embedding table, optional CLIP projector, head and losses.

    Args:
        backbone: transformers config of the decoder; its ``vocab_size`` counts text, special tokens,
            image codes and the mask token. q/k LayerNorm is switched on.
        feature_width: width of the understanding features, 0 for a model without projector.
        attention: backend of :func:`showo_kernels.build_plan`.

    Attributes:
        adapters: what ``config.json`` says about LoRA adapters inside; None without.
    """

    def __init__(
        self, backbone: PhiConfig, feature_width: int = 0, attention: str = "sdpa"
    ) -> None:
        super().__init__()
        backbone.qk_layernorm = True
        backbone.use_cache = False
        backbone._attn_implementation = register()
        self.attention = attention
        self.feature_width = feature_width
        self.label_smoothing = 0.0
        self.adapters: dict[str, Any] | None = None
        self.showo = PhiForCausalLM(backbone)
        self.showo.lm_head = _loss_head(self.showo.lm_head)
        _fuse_activations(self.showo)
        if feature_width:
            self.mm_projector = clip_projector(feature_width, backbone.hidden_size)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> "ShowO":
        """See :func:`showo_dist.models.weights.pretrained.load_showo`."""
        from showo_dist.models.weights.pretrained import load_showo

        return load_showo(source, **options)

    @property
    def config(self) -> PhiConfig:
        return self.showo.config

    @property
    def token_multiple(self) -> int:
        """What the length of a packed row must be a multiple of."""
        return 128 if self.attention == "flex" else 1

    def forward(
        self,
        batch: PackedBatch,
        flow_scale_F: Tensor | None = None,
        logit_rows: Tensor | None = None,
        *,
        logit_ids: slice = slice(None),
        cache: Cache | None = None,
        plan: AttentionPlan | None = None,
    ) -> tuple[Tensor, Tensor] | Tensor:
        """One pass over all flows of a micro-batch.

        Args:
            batch: packed sequences on the model's device.
            flow_scale_F: (len(FLOWS),) factor of each flow's loss sum in the total, for training.
            logit_rows: rows whose logits (rows, V) to return instead of losses.
            logit_ids: the part of the vocabulary that those logits are wanted of.
            cache: gets the keys and values of the rows, and gives those of earlier rows (generation).
            plan: attention over what the cache gives; None attends within the batch.

        Returns:
            The total to call backward on (fp32 scalar: label sums times the scale of their flow) and
            the detached fp32 weighted cross-entropy sums of the flows (len(FLOWS),), in nats. A plain tuple:
            ZeRO-3's hooks look for tensors in tuples only.
        """
        if plan is None:
            plan = build_plan(self.attention, batch.visibility, batch.ids_N.device)
        hidden_TD = self._hidden(batch, plan, cache)
        if logit_rows is not None:
            return self.showo.lm_head(hidden_TD[logit_rows], ids=logit_ids)
        assert flow_scale_F is not None and len(flow_scale_F) == len(FLOWS)
        return self.showo.lm_head(
            hidden_TD[batch.label_rows_P], batch, flow_scale_F, self.label_smoothing
        )

    def _hidden(self, batch: PackedBatch, plan: AttentionPlan, cache: Cache | None) -> Tensor:
        embeds_TD = self._embed(batch)
        output = self.showo.model(
            inputs_embeds=embeds_TD[None],
            position_ids=batch.position_ids_T[None],
            plan=plan,
            **{_CACHE: cache},
        )
        return output.last_hidden_state[0]

    def _embed(self, batch: PackedBatch) -> Tensor:
        """Token embeddings and projected features in their rows; the projector runs even on no feature."""
        text_ND = self.showo.model.embed_tokens(batch.ids_N)
        if self.feature_width:
            features_FD = self.mm_projector(batch.features_FC.to(text_ND.dtype))
        else:
            features_FD = text_ND.new_zeros(0, text_ND.shape[-1])
        return join_flows(
            text_ND,
            batch.id_rows_N,
            features_FD,
            batch.feature_rows_F,
            batch.tokens,
            keep_grad_L=batch.keep_grad_T,
        )


def _loss_head(linear: nn.Linear) -> LossHead:
    """The same parameters in a head that knows its losses."""
    with torch.device("meta"):
        head = LossHead(linear.in_features, linear.out_features, bias=linear.bias is not None)
    head.weight, head.bias = linear.weight, linear.bias
    return head


def _fuse_activations(backbone: nn.Module) -> None:
    """One kernel instead of eight for ``gelu_new``: the same formula, several times faster on a CPU."""
    for module in backbone.modules():
        if isinstance(getattr(module, "activation_fn", None), NewGELUActivation):
            module.activation_fn = TanhGELU()
