"""From a config to the parts of a run: flows, encoders, model. Everything a user can get wrong fails here."""

from pathlib import Path

import torch

from showo_data import FlowSpec, clip_transform, vq_transform
from showo_data.members import CODES, CONDITION, FEATURES, Encoded
from showo_data.samples import Kind, Weighted
from showo_data.shards import Storage
from showo_dist.config import TrainConfig, active_flows
from showo_dist.models.clip import ClipTower
from showo_dist.models.encoders import Encoders
from showo_dist.models.magvitv2 import MAGVITv2
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.pretrained import from_language_model
from showo_dist.models.weights.starting import attach_adapters, check_kind, start_from
from showo_dist.runtime.precision import uses_bf16
from showo_dist.sequences import TextEncoder
from showo_dist.training.data_checks import check_data_paths, external_captions
from showo_kernels import select_backend

_UNDERSTANDING: dict[str, Kind] = {
    "captioning": "caption",
    "llava_pretrain": "conversation",
    "llava_tuning": "conversation",
}


def flow_kind(config: TrainConfig, flow: str) -> Kind:
    """What a flow reads of its samples."""
    if flow == "mmu":
        return _UNDERSTANDING[config.dataset.und_type]
    kinds: dict[str, Kind] = {"t2i": "caption", "lm": "text", "recon": "image"}
    return kinds[flow]


def storage(config: TrainConfig) -> Storage:
    """How the shards of a run are reached."""
    data = config.data
    return Storage(
        cache_dir=data.cache_dir,
        cache_gb=data.cache_gb,
        retries=data.retries,
        allow_pipe=data.allow_pipe,
    )


def flow_specs(config: TrainConfig, clip_size: int | None = None) -> list[FlowSpec]:
    """The streams of the active flows.

    Args:
        config: of the run.
        clip_size: side of the images of the CLIP tower, for models that understand through it.

    Raises:
        ValueError: data that has to be turned into shards first.
    """
    check_data_paths(config)
    resolution = config.dataset.preprocessing.resolution
    squash = config.dataset.recon_type == "mid"
    transforms = {
        "t2i": vq_transform(resolution),
        "mmu": vq_transform(resolution),
        "recon": vq_transform(resolution, "squash" if squash else "short"),
    }
    encoded: dict[str, tuple[Encoded, ...]] = {
        "recon": (CODES, FEATURES if clip_size else CONDITION)
    }
    if clip_size and config.dataset.und_type != "captioning":  # captioning reads codes in any model
        transforms["mmu"], encoded["mmu"] = clip_transform(clip_size), (FEATURES,)
    return [
        FlowSpec(
            flow=name,
            kind=flow_kind(config, name),
            urls=() if flow.mixture else flow.paths,
            mixture=tuple(Weighted(part.paths, part.weight) for part in flow.mixture),
            batch=flow.batch_size,
            transform=transforms.get(name),
            encoded=encoded.get(name, (CODES,)),
            captions=external_captions(config, name),
            seed=config.data_seed,
            streams=config.data.streams,
            window=config.shuffle_window,
            sampling=config.data.sampling,
            storage=storage(config),
        )
        for name, flow in active_flows(config).items()
    ]


def load_text(config: TrainConfig) -> TextEncoder:
    """The text encoder, checked against the vocabulary."""
    source = config.text_tokenizer
    if source is None:
        raise ValueError(
            "model.showo.tokenizer_path and model.showo.llm_model_path are both null: set one"
        )
    return TextEncoder(source, config.model.showo.llm_vocab_size)


def load_encoders(config: TrainConfig, device: torch.device) -> Encoders:
    """The frozen image encoders on the device.

    Raises:
        FileNotFoundError, ValueError: they cannot be read, or do not have the config's codebook.
    """
    source = config.model.vq_model.pretrained_model_path or config.model.vq_model.vq_model_name
    vq = MAGVITv2.from_pretrained(source, device)
    vq.requires_grad_(False).eval()
    codebook = 2**vq.config.bits
    if codebook != config.model.showo.codebook_size:
        raise ValueError(
            f"model.showo.codebook_size = {config.model.showo.codebook_size}: the tokenizer at "
            f"{source} has {codebook} codes"
        )
    clip = None
    if config.model.showo.w_clip_vit:
        clip = ClipTower.from_pretrained(config.model.clip_model_name).to(device)
    return Encoders(
        vq, clip, down_scale=config.training.down_scale, resize_back=config.training.resize_back
    )


def build_model(
    config: TrainConfig, device: torch.device, resume: Path | None
) -> tuple[ShowO, str]:
    """The model on the CPU, and why its attention backend was chosen and what it starts from.

    Args:
        config: of the run.
        device: where it will train.
        resume: a checkpoint whose weights it gets, else the config says where it starts.

    Raises:
        FileNotFoundError, ValueError: weights cannot be read or do not fit.
    """
    dtype = torch.bfloat16 if uses_bf16(config.training.mixed_precision, device) else torch.float32
    backend, reason = select_backend(config.model.attention, device, dtype)
    notes = [f"attention {backend}: {reason}"]
    if resume is not None:
        check_kind(config, resume)
    source = resume if resume and not config.lora.rank else config.start_from
    if source is None:
        torch.manual_seed(config.training.seed)
        model = from_language_model(config.model.showo, backend)
    else:
        # DeepSpeed rounds what it is given to bf16, and has fp32 weights only from a checkpoint.
        kept = dtype if config.distributed.zero_stage else torch.float32
        model, weights = start_from(config, source, backend, kept, check=source is not resume)
        notes += weights.changes
        if config.lora.rank:
            notes.append(attach_adapters(model, weights, config, resume))
    model.label_smoothing = config.training.label_smoothing
    return model, "; ".join(notes)
