"""Section ``model``: the image tokenizer, the CLIP tower and Show-o."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from showo_dist.config.hints import AT_LEAST_ONE


@dataclass(kw_only=True)
class VQModelConfig:
    """The frozen image tokenizer."""

    type: Literal["magvitv2"] = "magvitv2"
    """Tokenizer architecture."""
    vq_model_name: str = "showlab/magvitv2"
    """Folder or hub id of its weights."""
    pretrained_model_path: str | None = None
    """A folder that takes precedence over `vq_model_name`; null: none."""
    downsample: Annotated[int, AT_LEAST_ONE] = 16
    """Pixels per image token along one side (16 in the released tokenizer)."""


@dataclass(kw_only=True)
class ShowoConfig:
    """The transformer and its vocabulary (docs/specification.md, sections 1 and 2)."""

    vocab_size: int | None = None
    """Rows of the embedding table: `llm_vocab_size + num_new_special_tokens + codebook_size + 1`
    (the mask token), 58,498 by default; null: worked out."""
    llm_vocab_size: Annotated[int, AT_LEAST_ONE] = 50295
    """Text ids of the tokenizer, its chat and other added tokens included; more than it has leaves rows
    unused."""
    num_new_special_tokens: Annotated[int, AT_LEAST_ONE] = 10
    """Special tokens after the text tokens: [PAD] and nine more (docs/specification.md, section 1)."""
    codebook_size: Annotated[int, AT_LEAST_ONE] = 8192
    """Image codes of the tokenizer."""
    num_vq_tokens: Annotated[int, AT_LEAST_ONE] = 256
    """Image tokens per image: `(resolution / model.vq_model.downsample)` squared."""
    w_clip_vit: bool = False
    """Conversations and reconstruction, not captions, get CLIP features instead of image codes."""
    clip_dim: Annotated[int, AT_LEAST_ONE] = 1024
    """Width of the CLIP features."""
    clip_tokens: Annotated[int, AT_LEAST_ONE] = 576
    """CLIP features per image."""
    load_from_showo: bool = False
    """Start from the weights at `pretrained_model_path`; false: from the language model alone."""
    pretrained_model_path: str | None = None
    """Show-o weights: a folder or hub id. Read when `load_from_showo` is true, and by every
    inference tool."""
    llm_model_path: str | None = "microsoft/phi-1_5"
    """Language model to start from (folder or hub id); null with `llm_config`."""
    llm_config: dict[str, Any] | None = None
    """Fields of the backbone's own config, to build it with random weights; `model_type` names its family in
    transformers (default `phi`; docs/backbones.md). null: read `llm_model_path`."""
    tokenizer_path: str | None = None
    """Text tokenizer, a folder or hub id; null: `llm_model_path`."""
    resize: bool = False
    """Start from weights of another vocabulary or codebook: shared rows are kept, new ones are
    initialised from `training.seed`, and an unused CLIP projector is dropped. false: an error."""

    @property
    def rows(self) -> int:
        """Rows of the embedding table: `vocab_size`, worked out where it is null."""
        if self.vocab_size is not None:
            return self.vocab_size
        return self.llm_vocab_size + self.num_new_special_tokens + self.codebook_size + 1


@dataclass(kw_only=True)
class ModelConfig:
    """All networks of a run."""

    vq_model: VQModelConfig = field(default_factory=VQModelConfig)
    showo: ShowoConfig = field(default_factory=ShowoConfig)
    clip_model_name: str = "openai/clip-vit-large-patch14-336"
    """CLIP vision tower (folder or hub id), loaded when `model.showo.w_clip_vit` is true."""
    attention: Literal["auto", "flex", "flash", "native", "sdpa", "dense"] = "auto"
    """Attention backend; `auto` takes the fastest one of this machine, `dense` is the slow
    reference."""
    encoder_dtype: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Number format of the frozen encoders while training on images. `fp32`: the codes of
    `showo-dist encode`; `tf32` (convolutions of the tokenizer, on NVIDIA GPUs only) and `bf16` (the CLIP
    tower too) are faster and change some codes. Without effect on encoded shards."""
    compile: bool = False
    """Compile the transformer blocks with `torch.compile` for training, once per row capacity
    (`training.row_steps_per_octave`): norms, rotary positions, residuals and activation become few
    kernels. ZeRO-3 then gathers the weights of a whole block at once."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    gradient_checkpointing_every: Annotated[int, AT_LEAST_ONE] = 1
    """With `gradient_checkpointing`: recompute the first of every so many blocks, keep the
    activations of the others. 1: all blocks."""
