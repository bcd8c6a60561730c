"""Show-o: one decoder for text and image codes; everything trainable is used inside one forward.

Every trainable part (embedding table, CLIP projector, blocks, head) must run once per micro-step inside the
one ``forward`` that an engine wraps, on every rank and for every mix of flows. Otherwise DDP waits for
gradients that never come, and ZeRO-3's gather hooks run in a different order on each rank and hang.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PhiConfig, PhiForCausalLM, PhiModel
from transformers.activations import NewGELUActivation

from showo_dist.config.flows import FLOWS
from showo_dist.config.model import ShowoConfig
from showo_dist.sequences.pack import PackedBatch
from showo_kernels import (
    AttentionPlan,
    TanhGELU,
    allow_capacities,
    attend,
    build_plan,
    compilable,
    flow_losses,
    join_flows,
)

ATTENTION = "showo_omni"


def _omni_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    plan: Any,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: output is (B, T, H, D), and no attention weights exist."""
    # Under autocast the q/k norms come out in fp32; the kernels want one type.
    query_BHTD, key_BHTD = (x.to(value_BHTD.dtype) for x in (query_BHTD, key_BHTD))
    out_BHTD = attend(query_BHTD, key_BHTD, value_BHTD, plan, scale=scaling)
    return out_BHTD.transpose(1, 2), None


def register() -> str:
    """Make the attention known to transformers; returns the name to put in a model's config."""
    AttentionInterface.register(ATTENTION, _omni_attention)
    return ATTENTION


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
        compiled: whether blocks train under ``torch.compile``; see :meth:`compile_blocks`.
    """

    def __init__(
        self, backbone: PhiConfig, feature_width: int = 0, attention: str = "sdpa"
    ) -> None:
        super().__init__()
        # Not in phi-1.5's own config: Show-o adds it (docs/specification.md, section 2).
        backbone.qk_layernorm = True
        # Training keeps no keys and values; generation passes its own cache.
        backbone.use_cache = False
        backbone._attn_implementation = register()
        self.attention = attention
        self.feature_width = feature_width
        self.label_smoothing = 0.0
        self.adapters: dict[str, Any] | None = None
        self.compiled = False
        self.showo = PhiForCausalLM(backbone)
        # The losses are computed inside the head: ZeRO-3 gathers a weight for its own module only, and so the
        # fused head and cross-entropy never see an empty weight.
        self.showo.lm_head = _loss_head(self.showo.lm_head)
        _fuse_activations(self.showo)
        if feature_width:
            self.mm_projector = clip_projector(feature_width, backbone.hidden_size)

    @property
    def config(self) -> PhiConfig:
        return self.showo.config

    def compile_blocks(self) -> None:
        """Put every block under ``torch.compile`` for training, one graph per block and capacity.

        The inner forward is compiled and not the module, so that hooks on the module run outside of the
        graph. Without gradients (held-out losses, generation) blocks run as they are.
        """
        allow_capacities()
        self.compiled = True
        for block in self.showo.model.layers:
            block.forward = _compiled_for_training(block.forward)

    @property
    def token_multiple(self) -> int:
        """What the length of a packed row must be a multiple of."""
        return 128 if self.attention == "flex" else 1

    def recompute_activations(self, every: int) -> None:
        """Drop the activations of the first of every ``every`` blocks and compute them again in backward."""
        self.showo.gradient_checkpointing_enable({"use_reentrant": False})
        for number, block in enumerate(self.showo.model.layers):
            # Recomputing every k-th block trades memory for time in steps of 1/k.
            block.gradient_checkpointing = number % every == 0

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
            return self.showo.lm_head(hidden_TD[logit_rows], ids=logit_ids)
        assert flow_scale_F is not None and len(flow_scale_F) == len(FLOWS)
        return self.showo.lm_head(
            hidden_TD[batch.label_rows_P], batch, flow_scale_F, self.label_smoothing
        )

    def _hidden(self, batch: PackedBatch, plan: AttentionPlan, cache: Cache | None) -> Tensor:
        # The packed row is a batch of one: the attention plan separates documents, not a batch axis.
        embeds_TD = self._embed(batch)
        output = self.showo.model(
            inputs_embeds=embeds_TD[None],
            position_ids=batch.position_ids_T[None],
            plan=compilable(plan) if self.compiled and torch.is_grad_enabled() else plan,
            **{_CACHE: cache},
        )
        return output.last_hidden_state[0]

    def _embed(self, batch: PackedBatch) -> Tensor:
        """Token embeddings and projected features in their rows; the projector runs even on no feature."""
        text_ND = self.showo.model.embed_tokens(batch.ids_N)
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
    for module in backbone.modules():
        if isinstance(getattr(module, "activation_fn", None), NewGELUActivation):
            # Same formula in one pass over the activations.
            module.activation_fn = TanhGELU()


# Its sizes are PhiConfig's defaults, so no file has to be read for them.
PHI_1_5 = "microsoft/phi-1_5"


def backbone_config(showo: ShowoConfig) -> PhiConfig:
    """The decoder's config: from ``llm_config``, else from ``llm_model_path``.

    Raises:
        ValueError: the language model's config cannot be read, or neither key is set.
    """
    if showo.llm_config is not None:
        settings = {**showo.llm_config, "vocab_size": showo.vocab_size}
        return _named("model.showo.llm_config", PhiConfig, **settings)
    path = showo.llm_model_path
    if path is None:
        raise ValueError(
            "model.showo.llm_model_path and model.showo.llm_config are both null: set one"
        )
    if path == PHI_1_5:
        return PhiConfig(vocab_size=showo.vocab_size)
    key = f"model.showo.llm_model_path = {path}"
    return _named(key, PhiConfig.from_pretrained, path, vocab_size=showo.vocab_size)


def _named(key: str, make: Callable[..., PhiConfig], *args: Any, **settings: Any) -> PhiConfig:
    """Call ``make``; an error becomes one line that names the config key."""
    try:
        return make(*args, **settings)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{key}: {str(error).strip().partition(chr(10))[0]}") from None


def build_showo(showo: ShowoConfig, attention: str = "sdpa") -> ShowO:
    """A model of the config's sizes with random weights from torch's global generator."""
    return ShowO(backbone_config(showo), showo.clip_dim if showo.w_clip_vit else 0, attention)


def empty_model(showo: ShowoConfig, attention: str = "sdpa") -> ShowO:
    """A model of the config's sizes on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return build_showo(showo, attention)
