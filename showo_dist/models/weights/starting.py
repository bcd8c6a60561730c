"""What a run's model starts from: other weights, resized where they must be, with adapters if asked for."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from showo_dist.checkpoint import CheckpointReader
from showo_dist.checkpoint.slices import WEIGHT, Piece
from showo_dist.config import TrainConfig
from showo_dist.models.showo import ShowO
from showo_dist.models.weights.initial import InitialWeights
from showo_dist.models.weights.pretrained import empty_model, initial_weights, materialise
from showo_dist.models.weights.sources import adapter_record, check_base, own_weights
from showo_dist.training import engine_state


def start_from(
    config: TrainConfig,
    source: str | Path,
    attention: str,
    dtype: torch.dtype,
    check: bool = True,
) -> tuple[ShowO, InitialWeights]:
    """A model with the weights of a folder or hub id, and these: they know what had to be changed.

    Args:
        config: of the run.
        source: checkpoint of ours, released folder, export or hub id.
        attention: backend name.
        dtype: that the model trains in; it never exists whole in a wider one.
        check: compare a checkpoint's files with their checksums first.

    Raises:
        FileNotFoundError, ValueError: the weights cannot be read or do not fit.
    """
    showo = config.model.showo
    model = empty_model(showo, attention)
    weights = initial_weights(showo, source, config.training.seed, model, check)
    materialise(model, lambda name: weights.read(name).to(dtype))
    return model, weights


def check_kind(config: TrainConfig, resume: Path) -> None:
    """A checkpoint of adapters goes on as a LoRA run of the same settings, any other without LoRA.

    Raises:
        ValueError: the config says otherwise.
    """
    record = adapter_record(resume)
    rank = record["rank"] if record else 0
    if rank != config.lora.rank:
        held = f"holds LoRA adapters of rank {rank}" if record else "holds no LoRA adapters"
        raise ValueError(
            f"lora.rank = {config.lora.rank}: {resume} {held}; set lora.rank={rank} to go on, or "
            "begin in another experiment.output_dir with experiment.init_from"
        )


def attach_adapters(
    model: ShowO, weights: InitialWeights, config: TrainConfig, resume: Path | None
) -> str:
    """Freeze the model and add adapters; returns what is trained, in words.

    Args:
        model: on the CPU.
        weights: what it was filled with.
        config: with ``lora.rank`` above 0.
        resume: the checkpoint that the adapters will be read from, if they are not new.

    Raises:
        ValueError: new rows would never be trained, or the checkpoint to go on from has other adapters;
            or peft is missing.
    """
    try:  # peft takes a second to import, and is optional
        from showo_dist.models.weights.lora import add_adapters, record_of
    except ModuleNotFoundError as error:
        raise ValueError(f"lora.rank: pip install 'showo-dist[lora]' ({error})") from error

    base = config.start_from
    assert base is not None, "a rule of the config"
    add_adapters(model, config.lora, config.training.seed)
    _check_new_rows(model, weights)
    model.adapters = record_of(model, config.lora, base, weights.source)
    if resume is not None:
        _check_same(model, resume)
        _read_trained(model, resume)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"LoRA of rank {config.lora.rank}: {trained:,} parameters are trained"


def _check_new_rows(model: ShowO, weights: InitialWeights) -> None:
    """What was drawn has to be trained, and lies in the checkpoint then."""
    parameters = dict(model.named_parameters())
    for name in weights.drawn:
        if not parameters[name].requires_grad:
            raise ValueError(
                f"lora: {name} has rows that {weights.source.folder} lacks, and they would never be "
                "trained; set lora.train_embeddings, lora.train_head and lora.train_projector to true"
            )


def _check_same(model: ShowO, resume: Path) -> None:
    record = adapter_record(resume)
    assert record is not None and model.adapters is not None
    check_base(record, model.adapters["base_sha256"], resume)
    own = {**model.adapters, "base": record["base"]}
    changed = [key for key in own if own[key] != record.get(key)]
    if changed:
        raise ValueError(
            f"lora.{changed[0]} = {own[changed[0]]}: {resume} was trained with "
            f"{record.get(changed[0])}"
        )


def _read_trained(model: ShowO, resume: Path) -> None:
    """Give a model the adapters of a checkpoint whose sums were checked: the engine is built around them."""
    source = own_weights(resume, check=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(source.read(name))


def carry_optimizer(engine: Any, config: TrainConfig) -> None:
    """Take AdamW's moments and step count from ``experiment.init_from``; new rows have none yet.

    Raises:
        ValueError: the source is no checkpoint of ours, or holds adapters.
    """
    source = Path(str(config.experiment.init_from))
    reader = CheckpointReader(source)
    if adapter_record(source):
        raise ValueError(f"experiment.init_optimizer = True: {source} holds LoRA adapters")
    weights = initial_weights(config.model.showo, source, config.training.seed)

    def whole(kind: str, name: str) -> Tensor:
        if kind == WEIGHT:
            return weights.read(name)
        known = name in weights.source.meta
        return weights.carried(name, reader.read(kind, name) if known else None)

    def read(piece: Piece) -> Tensor:
        return whole(piece.kind, piece.name).flatten()[piece.start : piece.stop]

    engine_state.restore(engine, read, reader.state.optimizer_steps)
