"""What a run starts from: the one entry is :func:`load_initial`."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from showo_dist.config import TrainConfig
from showo_dist.config.model import ShowoConfig
from showo_dist.models.backbone import backbone_config, head_width, windows_note
from showo_dist.models.families import family_of
from showo_dist.models.showo import ShowO, empty_model
from showo_dist.models.weights.folder import local_folder
from showo_dist.models.weights.initial import PROJECTOR, InitialWeights
from showo_dist.models.weights.language import LanguageStart
from showo_dist.models.weights.pretrained import (
    fill_parts,
    from_language_model,
    materialise,
    read_config,
)
from showo_dist.models.weights.sources import adapter_record, open_weights
from showo_dist.runtime.numerics import hashed_seed, uses_bf16
from showo_kernels import select_backend

Shard = Callable[[nn.Module], None]


def load_initial(
    config: TrainConfig,
    device: torch.device,
    resume: Path | None = None,
    shard: Shard | None = None,
) -> tuple[ShowO, str]:
    """Build a run's model on the CPU with the weights that the run starts from.

    The weights are, in this order: those of the checkpoint ``resume`` (of a LoRA run: its adapters over their
    base), of ``experiment.init_from``, of ``model.showo.pretrained_model_path`` (with
    ``model.showo.load_from_showo``), or of the language model alone.

    Args:
        config: of the run.
        device: where it will train; decides attention backend and number format.
        resume: checkpoint to resume from.
        shard: keeps this rank's share of a part of the model (ZeRO-3), part by part. A Phi without Show-o
            weights is built whole: its draws are those of the published code.

    Returns:
        The model, and notes for the log: the attention backend with its reason, resized or new weights,
        adapters, attention windows that are off.

    Raises:
        FileNotFoundError, ValueError: weights cannot be read or do not fit.
    """
    dtype = torch.bfloat16 if uses_bf16(config.training.mixed_precision, device) else torch.float32
    width = head_width(backbone_config(config.model.showo))
    backend, reason = select_backend(config.model.attention, device, dtype, width)
    if backend == "flex" and device.type != "cuda":
        raise ValueError(
            f"model.attention = flex: cannot train on {device.type}: choose auto or sdpa"
        )
    notes = [f"attention {backend}: {reason}"]
    # Before any weights are read: a wrong LoRA setting is a config error, not a shape error.
    if resume is not None:
        _check_kind(config, resume)
    source = resume if resume and not config.lora.rank else config.start_from
    # ZeRO 1 to 3 get their fp32 master weights from a checkpoint and round the module to bf16; loading it
    # in bf16 keeps the whole model from ever being in memory at 4 bytes per weight.
    kept = dtype if config.shards_state else torch.float32
    showo = config.model.showo
    if source is None:
        model, note = _from_language_model(config, backend, kept, shard)
        notes.append(note)
    else:
        model = empty_model(showo, backend)
        weights = initial_weights(
            showo, source, config.training.seed, model, check=source is not resume
        )
        read: Callable[[str], Tensor] = weights.read
        notes += weights.changes
        if config.lora.rank:
            read, note = _attach_adapters(model, weights, config, kept, resume)
            notes.append(note)
        # Read, cast and assigned one tensor at a time.
        materialise(model, lambda name: read(name).to(kept), shard)
    notes += filter(None, [windows_note(model.config)])
    model.label_smoothing = config.training.label_smoothing
    return model, "; ".join(notes)


def _from_language_model(
    config: TrainConfig, backend: str, dtype: torch.dtype, shard: Shard | None
) -> tuple[ShowO, str]:
    """A model without Show-o weights, and a note for the log."""
    showo, seed = config.model.showo, config.training.seed
    random = showo.llm_config is not None
    note = "random weights" if random else f"starts from {showo.llm_model_path}"
    if family_of(backbone_config(showo).model_type).drawn_whole:
        # On the CPU and before sharding, so that every rank initialises the same weights.
        torch.manual_seed(seed)
        model = from_language_model(showo, backend)
        return model, note + (_built_whole(model) if shard else "")
    model = empty_model(showo, backend)
    if random:
        draw_weights(model, seed, dtype, shard)
    else:
        start = LanguageStart(showo, model, seed)
        materialise(model, lambda name: start.read(name).to(dtype), shard)
    return model, note


def _built_whole(model: ShowO) -> str:
    """A note on the memory that part-by-part construction would have saved."""
    held = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
    return f", built whole on every rank ({held:.1f} GB) because Phi's draws need it"


def initial_weights(
    showo: ShowoConfig,
    source: str | Path,
    seed: int,
    model: ShowO | None = None,
    check: bool = True,
) -> InitialWeights:
    """The weights of ``source`` fitted to a model's sizes.

    Args:
        showo: sizes of the new model.
        source: folder or hub id; adapters in it are merged.
        seed: of rows that the source does not have.
        model: a model of these sizes, if there is one already.
        check: compare a checkpoint's files with their checksums first.

    Raises:
        FileNotFoundError, ValueError: the weights cannot be read, or sizes differ that may not.
    """
    folder = local_folder(source)
    model = model or empty_model(showo)
    return InitialWeights(
        showo,
        {name: tensor.to("meta") for name, tensor in model.state_dict().items()},
        open_weights(folder, check),
        read_config(folder),
        tables=model.tables,
        seed=seed,
        std=model.config.initializer_range,
    )


def _check_kind(config: TrainConfig, resume: Path) -> None:
    """Raise ``ValueError`` unless checkpoint and config agree on LoRA and its rank."""
    record = adapter_record(resume)
    rank = record["rank"] if record else 0
    if rank != config.lora.rank:
        held = f"holds LoRA adapters of rank {rank}" if record else "holds no LoRA adapters"
        raise ValueError(
            f"lora.rank = {config.lora.rank}: {resume} {held}; set lora.rank={rank} to resume, or "
            "start in another experiment.output_dir with experiment.init_from"
        )


def _attach_adapters(
    model: ShowO,
    weights: InitialWeights,
    config: TrainConfig,
    dtype: torch.dtype,
    resume: Path | None,
) -> tuple[Callable[[str], Tensor], str]:
    try:  # peft is optional and takes a second to import
        from showo_dist.models.weights.lora import attach_adapters
    except ModuleNotFoundError as error:
        raise ValueError(f"lora.rank: pip install 'showo-dist[lora]' ({error})") from error
    assert config.start_from is not None, "a rule of the config"
    return attach_adapters(
        model, weights, config.lora, config.start_from, config.training.seed, dtype, resume
    )


def draw_weights(
    model: ShowO,
    seed: int,
    dtype: torch.dtype = torch.float32,
    shard: Callable[[nn.Module], None] | None = None,
) -> None:
    """Fill a meta model with weights that are distributed as its family's own.

    The weights of a part depend on the seed, the part's name and its sizes, not on ranks or on other parts.

    Args:
        model: on the meta device.
        seed: of the run.
        dtype: of the weights, which are drawn in fp32.
        shard: as of :func:`~showo_dist.models.weights.pretrained.materialise`.

    Raises:
        ValueError: the family's code leaves a weight without values.
    """

    @torch.no_grad()
    def fill(prefix: str, part: nn.Module) -> None:
        torch.manual_seed(hashed_seed(f"{seed}/{prefix}".encode()))
        unset = {name: torch.full(t.shape, torch.nan) for name, t in part.state_dict().items()}
        part.load_state_dict(unset, assign=True)
        if prefix.startswith(PROJECTOR):
            part.reset_parameters()  # type: ignore[operator]  # nn.Linear's default
        else:
            part.apply(model.showo._init_weights)
        for name, parameter in part.named_parameters():
            if parameter.isnan().any():
                kind = model.config.model_type
                raise ValueError(
                    f"{kind}'s code in transformers gives {prefix}{name} no first values"
                )
            parameter.data = parameter.data.to(dtype)

    fill_parts(model, fill, shard)
