"""Show-o: one decoder for text and image codes; everything trainable is used inside one forward.

Every trainable part (embedding table, CLIP projector, blocks, head) must run once per micro-step inside the
one ``forward`` that an engine wraps, on every rank and for every mix of flows. Otherwise DDP waits for
gradients that never come, and ZeRO-3's gather hooks run in a different order on each rank and hang.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig
from transformers.activations import NewGELUActivation

from showo_dist.config.flows import FLOWS
from showo_dist.config.model import ShowoConfig
from showo_dist.models.backbone import (
    backbone_config,
    blocks_of,
    build_backbone,
    cache_name,
    head_width,
    named_tables,
)
from showo_dist.sequences.pack import PackedBatch
from showo_kernels import (
    AttentionPlan,
    FusedChunk,
    TanhGELU,
    allow_capacities,
    build_plan,
    compilable,
    compiled_chunk,
    flow_losses,
    join_flows,
)


class LossHead(nn.Linear):
    """The output head with its losses: both need the weight, gathered by ZeRO-3 for this one forward.

    Attributes:
        fused: compiled passes over the logits; None: uncompiled ones.
    """

    fused: FusedChunk | None

    def __init__(self, width: int, vocabulary: int, bias: bool) -> None:
        super().__init__(width, vocabulary, bias=bias)
        self.fused = None

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
            fused=self.fused,
        )


def clip_projector(feature_width: int, width: int) -> nn.Sequential:
    """CLIP features to model width: Linear, GELU, Linear (docs/specification.md, section 2)."""
    return nn.Sequential(nn.Linear(feature_width, width), nn.GELU(), nn.Linear(width, width))


class ShowO(nn.Module):
    """Backbone, embedding table, optional CLIP projector, head and losses.

    Args:
        backbone: transformers config of the decoder, of any family that
            :func:`~showo_dist.models.backbone.build_backbone` accepts; its ``vocab_size`` counts text,
            special tokens, image codes and the mask token.
        feature_width: width of the understanding features, 0 for a model without projector.
        attention: backend of :func:`showo_kernels.build_plan`.

    Attributes:
        adapters: what ``config.json`` says about LoRA adapters inside; None without.
        compiled: whether blocks and losses train under ``torch.compile``; see :meth:`compile_blocks`.

    Raises:
        ValueError: the family cannot take Show-o's mask; see :mod:`showo_dist.models.backbone`.
    """

    def __init__(
        self, backbone: PreTrainedConfig, feature_width: int = 0, attention: str = "sdpa"
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feature_width = feature_width
        self.label_smoothing = 0.0
        self.adapters: dict[str, Any] | None = None
        self.compiled = False
        self.showo = build_backbone(backbone)
        self._cache_name = cache_name(self.showo)
        # The losses are computed inside the head: ZeRO-3 gathers a weight for its own module only, and so the
        # fused head and cross-entropy never see an empty weight.
        self.showo.set_output_embeddings(_loss_head(self.showo.get_output_embeddings()))
        _fuse_activations(self.showo)
        if feature_width:
            self.mm_projector = clip_projector(feature_width, backbone.hidden_size)

    @property
    def config(self) -> PreTrainedConfig:
        return self.showo.config

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, in order."""
        return blocks_of(self.showo)

    @property
    def head(self) -> LossHead:
        """The output head with its losses."""
        return cast(LossHead, self.showo.get_output_embeddings())

    @property
    def embeddings(self) -> nn.Embedding:
        """The embedding table."""
        return cast(nn.Embedding, self.showo.get_input_embeddings())

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the parameters of embedding table and head."""
        return tuple(named_tables(self.showo, "showo."))

    @property
    def attention_width(self) -> int:
        """Heads times head width, summed over the blocks."""
        config = self.config
        return config.num_hidden_layers * config.num_attention_heads * head_width(config)

    def compile_blocks(self) -> None:
        """Put blocks and losses under ``torch.compile`` for training, one graph per block and capacity.

        The inner forward is compiled and not the module, so that hooks on the module run outside of the
        graph. Without gradients (held-out losses, generation) blocks run as they are.
        """
        allow_capacities()
        self.compiled = True
        self.head.fused = compiled_chunk()
        for block in self.blocks:
            block.forward = _compiled_for_training(block.forward)

    @property
    def token_multiple(self) -> int:
        """What the length of a packed row must be a multiple of."""
        return 128 if self.attention == "flex" else 1

    def recompute_activations(self, every: int) -> None:
        """Drop the activations of the first of every ``every`` blocks and compute them again in backward."""
        self.showo.gradient_checkpointing_enable({"use_reentrant": False})
        for number, block in enumerate(self.blocks):
            # Recomputing every k-th block trades memory for time in steps of 1/k.
            cast(Any, block).gradient_checkpointing = number % every == 0

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
        # Planned once per forward pass and shared by all layers.
        if plan is None:
            plan = batch.plan or build_plan(self.attention, batch.visibility, batch.ids_N.device)
        hidden_TD = self._hidden(batch, plan, cache)
        if logit_rows is not None:
            return self.head(hidden_TD[logit_rows], ids=logit_ids)
        assert flow_scale_F is not None and len(flow_scale_F) == len(FLOWS)
        return self.head(hidden_TD[batch.label_rows_P], batch, flow_scale_F, self.label_smoothing)

    def _hidden(self, batch: PackedBatch, plan: AttentionPlan, cache: Cache | None) -> Tensor:
        # The packed row is a batch of one: the attention plan separates documents, not a batch axis.
        embeds_TD = self._embed(batch)
        output = self.showo.get_decoder()(
            inputs_embeds=embeds_TD[None],
            position_ids=batch.position_ids_T[None],
            plan=compilable(plan) if self.compiled and torch.is_grad_enabled() else plan,
            **{self._cache_name: cache},
        )
        return output.last_hidden_state[0]

    def _embed(self, batch: PackedBatch) -> Tensor:
        """Token embeddings and projected features in their rows; the projector runs even on no feature."""
        text_ND = self.embeddings(batch.ids_N)
        if self.feature_width:
            # The projector runs on zero rows too: if a rank skipped it, DDP would wait for its gradients,
            # and ZeRO-3 would gather in another order than the other ranks and hang.
            features_FD = self.mm_projector(batch.features_FC.to(text_ND.dtype))
        else:
            features_FD = text_ND.new_zeros(0, text_ND.shape[-1])
        return join_flows(
            text_ND,
            batch.id_rows_N,
            features_FD,
            batch.feature_rows_F,
            batch.tokens,
            keep_grad_T=batch.keep_grad_T,
        )


def _compiled_for_training(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The compiled function where gradients are recorded, else the function itself."""
    # Phi's two output biases have the same gradient; a CPU in bf16 would fuse them into code that declares a
    # name twice (torch 2.13).
    options: dict[str, Any] = {"cpp.max_horizontal_fusion_size": 1}
    compiled = torch.compile(forward, fullgraph=True, dynamic=False, options=options)

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    run._torchdynamo_orig_callable = forward  # type: ignore[attr-defined]  # as torch.compile marks its own
    return run


def _loss_head(linear: nn.Linear) -> LossHead:
    """The same parameters in a head that knows its losses."""
    with torch.device("meta"):
        head = LossHead(linear.in_features, linear.out_features, bias=linear.bias is not None)
    # The same tensors, so names and initialisation stay those of the backbone.
    head.weight, head.bias = linear.weight, linear.bias
    return head


def _fuse_activations(backbone: nn.Module) -> None:
    """One kernel instead of eight for ``gelu_new``: the same formula, several times faster on a CPU."""
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                # Same formula in one pass over the activations.
                setattr(module, name, TanhGELU())


def build_showo(showo: ShowoConfig, attention: str = "sdpa") -> ShowO:
    """A model of the config's sizes with random weights from torch's global generator."""
    return ShowO(backbone_config(showo), showo.clip_dim if showo.w_clip_vit else 0, attention)


def empty_model(showo: ShowoConfig, attention: str = "sdpa") -> ShowO:
    """A model of the config's sizes on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return build_showo(showo, attention)
