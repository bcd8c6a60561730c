"""A decoder of any family of transformers, and the refusal of those that cannot take Show-o's mask.

Every family with an embedding table, blocks that take attention through transformers' interface, position
ids and a linear head will do. A family is not trusted by name: its code runs once on shapes, with a plan
that notes which blocks ask it for attention.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from showo_dist.config.model import ShowoConfig
from showo_dist.config.rules import BACKBONE_KEYS
from showo_dist.models.families import RELEASED, family_of
from showo_kernels import attend

ATTENTION = "showo_omni"
EMBEDDINGS = ("embed_tokens.", "embed_in.", "wte.")  # the last part of a table's name, by family
_BLOCK = re.compile(r"\.(?:layers|h)\.(\d+)\.")
_EXPERTS = re.compile(r"(?:Experts|Router)$")
# Arguments of transformers' attention interface that would change the result, and that no kernel of ours has.
_NOT_COMPUTED = {
    "softcap": "soft-capped attention scores",
    "s_aux": "attention sinks",
    "dropout": "dropout on attention weights (set it to 0 in its config)",
    "position_bias": "a bias on attention scores",
    "head_mask": "a mask over heads",
}


def block_of(name: str) -> int | None:
    """The number of the block that a parameter belongs to by its name; None outside of blocks."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None


def _omni_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    plan: Any = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: output is (B, T, H, D), and no attention weights exist."""
    if plan is None:
        raise ValueError("its blocks do not hand the attention plan on, so our mask would be lost")
    if attention_mask is not None:
        raise ValueError("it makes an attention mask of its own")
    for name, words in _NOT_COMPUTED.items():
        # A tensor would be there for a reason, whatever its values.
        if isinstance(others.get(name), Tensor) or others.get(name):
            raise ValueError(f"it needs {words}")
    if query_BHTD.shape[-1] != value_BHTD.shape[-1]:
        sizes = f"{query_BHTD.shape[-1]} for queries and {value_BHTD.shape[-1]} for values"
        raise ValueError(f"its heads are of two sizes, {sizes}")
    # Under autocast the q/k norms come out in fp32; the kernels want one type.
    query_BHTD, key_BHTD = (x.to(value_BHTD.dtype) for x in (query_BHTD, key_BHTD))
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    out_BHTD = attend(query_BHTD, key_BHTD, value_BHTD, plan, scale=scale)
    return out_BHTD.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _omni_attention)


def head_width(config: PreTrainedConfig) -> int:
    """Numbers of a query of one head, D."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def backbone_config(showo: ShowoConfig) -> PreTrainedConfig:
    """The decoder's config: from ``llm_config``, else from ``llm_model_path``.

    Raises:
        ValueError: the language model's config cannot be read, neither key is set, or a field is unknown.
    """
    if showo.llm_config is not None:
        return _named("model.showo.llm_config", _from_fields, showo.llm_config, showo.rows)
    path = showo.llm_model_path
    if path is None:
        raise ValueError(
            "model.showo.llm_model_path and model.showo.llm_config are both null: set one"
        )
    if path in RELEASED:
        return _from_fields(RELEASED[path], showo.rows)
    key = f"model.showo.llm_model_path = {path}"
    return _named(
        key,
        AutoConfig.from_pretrained,
        path,
        vocab_size=showo.rows,
        trust_remote_code=False,
    )


def _from_fields(fields: dict[str, Any], vocab_size: int) -> PreTrainedConfig:
    settings = dict(fields)
    model_type = settings.pop("model_type", "phi")
    unknown = unknown_fields(model_type, settings)
    if unknown:
        raise ValueError("; ".join(unknown))
    kind = CONFIG_MAPPING[model_type]
    # Ids of the language model's own tokens have no meaning here, and may lie outside of a smaller table.
    names = [f"{name}_token_id" for name in ("bos", "eos", "pad")]
    needed = {f.name for f in dataclasses.fields(kind) if "None" not in str(f.type)}
    ids = {name: 0 if name in needed else None for name in names}
    values: dict[str, Any] = {**ids, **settings, "vocab_size": vocab_size}
    return kind(**values)


def unknown_fields(model_type: str, settings: dict[str, Any]) -> list[str]:
    """One phrase for a family that transformers lacks, or for each field that its config does not have."""
    if model_type not in CONFIG_MAPPING:
        near = get_close_matches(str(model_type), list(CONFIG_MAPPING.keys()), n=1, cutoff=0.0)
        return [f"model_type = {model_type!r}: unknown family; nearest known: {near[0]}"]
    kind = CONFIG_MAPPING[model_type]
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    known = {field.name for field in dataclasses.fields(kind)} - general
    known |= set(kind.attribute_map) | set(BACKBONE_KEYS)
    return [
        f"{name} = {value!r}: unknown field of {model_type}; nearest known: "
        f"{get_close_matches(str(name), sorted(known), n=1, cutoff=0.0)[0]}"
        for name, value in settings.items()
        if name not in known
    ]


def _named(
    key: str, make: Callable[..., PreTrainedConfig], *args: Any, **settings: Any
) -> PreTrainedConfig:
    """Call ``make``; an error becomes one line that names the config key."""
    try:
        return make(*args, **settings)
    except (NotImplementedError, OSError, StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"{key}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    # transformers' checks of fields give the reason in their second line.
    reason = lines[isinstance(error, StrictDataclassError) :]
    return reason[0].strip() if reason else type(error).__name__


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """The decoder with its head, random weights from torch's global generator, our attention inside.

    Args:
        config: changed in place: table and head are two tensors, no token counts as padding, and what
            :mod:`showo_dist.models.families` says.

    Raises:
        ValueError: the family cannot take our mask, or its logits are not its head's product.
    """
    for name, value in family_of(config.model_type).changes.items():
        setattr(config, name, value)
    # Training keeps no keys and values; generation passes its own cache.
    config.use_cache = False
    config.tie_word_embeddings = False
    # Our table has a padding row of its own; nn.Embedding would never train the row that a config names.
    _without_padding(config)
    config._attn_implementation = ATTENTION
    _check(cast(Any, type(config)), json.dumps(config.to_dict(), sort_keys=True, default=str))
    return _class_of(config)(config)


def _without_padding(config: PreTrainedConfig) -> None:
    try:
        config.pad_token_id = None
    except StrictDataclassError:
        raise ValueError(
            f"{config.model_type} is no backbone for Show-o: its config always has a padding token, "
            "whose row would not be trained"
        ) from None


def _class_of(config: PreTrainedConfig) -> Callable[[PreTrainedConfig], PreTrainedModel]:
    try:
        return cast(Any, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    except KeyError:
        raise ValueError("transformers has no causal language model of it") from None


def blocks_of(backbone: PreTrainedModel) -> list[nn.Module]:
    """The decoder's blocks, in order."""
    decoder = backbone.get_decoder()
    return [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]


def cache_name(backbone: PreTrainedModel) -> str:
    """The name of the decoder's argument for a cache of keys and values, which transformers is changing."""
    known = inspect.signature(type(backbone.get_decoder()).forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def windows_note(config: PreTrainedConfig) -> str | None:
    """A note for the log when the family's attention windows are off; None without windows."""
    names = ("sliding_window", "attention_chunk_size")
    found = [(name, getattr(config, name, None)) for name in names]
    if getattr(config, "use_sliding_window", True) is False:
        found = []
    for name, size in found:
        if size:
            return (
                f"{config.model_type}'s {name} of {size} tokens is off: Show-o's mask alone decides"
            )
    return None


def fill_buffers(backbone: PreTrainedModel) -> None:
    """Compute the buffers of a meta model that no checkpoint holds: rotary frequencies, scales.

    Its weights must still be on the meta device, where initialising them costs nothing.
    """
    for module in backbone.modules():
        unsaved = [n for n in module._non_persistent_buffers_set if module._buffers[n] is not None]
        for name in unsaved:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")  # type: ignore[arg-type]
        if unsaved:
            backbone._init_weights(module)


@cache
def _check(kind: Any, fields: str) -> None:
    """Raise ``ValueError`` in one line unless the family computes what Show-o needs; remembered per config.

    Args:
        kind: class of the config.
        fields: the config as JSON.
    """
    with _disable_current_modes():
        config = kind.from_dict(json.loads(fields))
        config._attn_implementation = ATTENTION
        try:
            _check_kind(config)
            # On shapes: no memory, whatever the size.
            with torch.device("meta"):
                backbone = _class_of(config)(config)
            _check_parts(backbone)
            _check_blocks(backbone)
            _check_head(backbone)
        except Exception as error:  # families raise whatever they like
            if isinstance(error, KeyError) and error.args == (ATTENTION,):
                error = ValueError("its attention is not transformers' interface")
            elif not isinstance(error, ValueError):
                reason = f"{type(error).__name__}: {_first_line(error)}"
                error = ValueError(f"its code fails on packed rows ({reason})")
            raise ValueError(
                f"{config.model_type} is no backbone for Show-o: {_first_line(error)}"
            ) from None


def _check_kind(config: PreTrainedConfig) -> None:
    """Raise ``ValueError`` for models of several parts, and for a second table in every block."""
    text = config.get_text_config(decoder=True).model_type
    if text != config.model_type:
        raise ValueError(f"it has several parts; name its language model alone, {text or 'if any'}")
    if getattr(config, "hidden_size_per_layer_input", None):
        raise ValueError("its blocks look up token ids in tables of their own")


def _check_parts(backbone: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless a table, a linear head, blocks and position ids exist."""
    config, decoder = backbone.config, backbone.get_decoder()
    names = (type(module).__name__ for module in decoder.modules())
    if getattr(config, "num_experts_per_tok", None) or any(map(_EXPERTS.search, names)):
        raise ValueError("it is a mixture of experts, whose balance loss would be left out")
    if not isinstance(backbone.get_input_embeddings(), nn.Embedding):
        raise ValueError("it has no embedding table")
    if not isinstance(backbone.get_output_embeddings(), nn.Linear):
        raise ValueError("it has no linear head")
    known = inspect.signature(type(decoder).forward).parameters
    for name in ("inputs_embeds", "position_ids"):
        if name not in known:
            raise ValueError(f"its decoder takes no {name}, which packed rows need")
    if not blocks_of(backbone):
        raise ValueError("its decoder has no blocks of transformers' usual class")
    _check_names(backbone)


def _check_names(backbone: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless names tell blocks and table apart, for Muon, weight decay and inspect."""
    inside = {id(p) for block in blocks_of(backbone) for p in block.parameters()}
    table = backbone.get_input_embeddings().weight
    for name, parameter in backbone.named_parameters():
        if (id(parameter) in inside) != (block_of(f".{name}") is not None):
            raise ValueError(f"{name}: its blocks are not named layers.N or h.N")
        if (parameter is table) != any(known in name for known in EMBEDDINGS):
            raise ValueError(f"{name}: its table has none of the names {', '.join(EMBEDDINGS)}")


class _Noted:
    """A plan for T tokens of shapes that notes how often it is asked for attention."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self.asked = tokens, 0

    def __len__(self) -> int:
        return self._tokens

    def attend(
        self, query_BHTD: Tensor, key_BHTD: Tensor, value_BHTD: Tensor, scale: float
    ) -> Tensor:
        """Note the call; the result has the query's shape, and gradients for all three."""
        self.asked += 1
        return query_BHTD + (key_BHTD.sum() + value_BHTD.sum())


def _check_blocks(backbone: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless every block mixes tokens by our attention alone."""
    plan, before = _Noted(3), 0
    without: list[int] = []
    blocks = blocks_of(backbone)

    def begin(*_: Any) -> None:
        nonlocal before
        before = plan.asked

    for number, block in enumerate(blocks):

        def end(*_: Any, number: int = number) -> None:
            if plan.asked == before:
                without.append(number)

        block.register_forward_pre_hook(begin)
        block.register_forward_hook(end)
    width = cast(nn.Embedding, backbone.get_input_embeddings()).embedding_dim
    with torch.enable_grad():
        output = backbone.get_decoder().train()(
            inputs_embeds=torch.empty(1, 3, width, device="meta"),
            position_ids=torch.arange(3, device="meta")[None],
            plan=plan,
        )
    if without:
        named = ", ".join(map(str, without[:3])) + (", …" if len(without) > 3 else "")
        raise ValueError(
            f"{len(without)} of its {len(blocks)} blocks ({named}) mix tokens without transformers' "
            "attention interface"
        )
    # A convolution over tokens beside the attention would see tokens that our mask hides.
    if any(isinstance(module, nn.Conv1d) for block in blocks for module in block.modules()):
        raise ValueError("its blocks have convolutions over tokens")
    _check_gradients(backbone, output.last_hidden_state)


def _check_gradients(backbone: PreTrainedModel, hidden_BTD: Tensor) -> None:
    """Raise ``ValueError`` if a parameter is not used: ranks would wait for its gradient."""
    todo: list[Any] = [hidden_BTD.grad_fn]
    nodes, reached = set(todo), set()
    while todo:
        node = todo.pop()
        reached.add(id(getattr(node, "variable", None)))
        new = {parent for parent, _ in node.next_functions if parent is not None} - nodes
        nodes |= new
        todo += new
    outside = (backbone.get_input_embeddings(), backbone.get_output_embeddings())
    reached |= {id(p) for module in outside for p in module.parameters()}
    left = [name for name, p in backbone.named_parameters() if id(p) not in reached]
    if left:
        raise ValueError(
            f"{len(left)} of its parameters, as {left[0]}, have no part in a text's pass"
        )


class _Given(nn.Module):
    """In place of a decoder: returns the hidden states that it was made with."""

    def __init__(self, hidden_BTD: Tensor) -> None:
        super().__init__()
        self._hidden_BTD = hidden_BTD

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """As a decoder, whatever the arguments."""
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self._hidden_BTD)


def _check_head(backbone: PreTrainedModel) -> None:
    """Raise ``ValueError`` unless logits are the head's product: our losses would lose a scale or a cap."""
    decoder, width = backbone.get_decoder(), backbone.get_output_embeddings().in_features
    (path,) = (name for name, module in backbone.named_modules() if module is decoder)
    parent, _, name = path.rpartition(".")
    # Real numbers, also where a model is built on the meta device.
    with torch.no_grad(), torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        weight_VD = torch.randn(5, width, generator=generator)
        hidden_BTD = torch.randn(1, 2, width, generator=generator)
        head = nn.Linear(width, 5, bias=False, device="meta")
        head.weight = nn.Parameter(weight_VD)
        backbone.set_output_embeddings(head)
        setattr(backbone.get_submodule(parent), name, _Given(hidden_BTD))
        logits = backbone(input_ids=torch.zeros(1, 2, dtype=torch.int64)).logits
        if not torch.equal(logits, head(hidden_BTD)):
            raise ValueError("its logits are scaled or capped behind the head")


def named_tables(backbone: PreTrainedModel, prefix: str) -> Iterator[str]:
    """Names of the parameters of embedding table and head, as ``prefix`` and the name inside."""
    table, head = backbone.get_input_embeddings(), backbone.get_output_embeddings()
    owned = {id(parameter) for module in (table, head) for parameter in module.parameters()}
    for name, parameter in backbone.named_parameters():
        if id(parameter) in owned:
            yield prefix + name
